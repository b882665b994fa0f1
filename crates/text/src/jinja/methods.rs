//! Methods of Python's strings, lists and dicts, beyond those that minijinja-contrib has.

use super::limits;
use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// A method that minijinja does not know: ours first, then pycompat's.
pub(crate) fn call(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    limits::method(state, value, method, args)?;
    // Made up by the template, and perhaps without end.
    let walked = match value.kind() {
        ValueKind::Iterable => Some(Value::from(limits::walked(value)?)),
        _ => None,
    };
    let value = walked.as_ref().unwrap_or(value);
    let ours = match value.kind() {
        ValueKind::String => string_method(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => sequence_method(value, method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match ours {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn string_method(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" => Value::from(strip(text, args, true, true)?),
        "lstrip" => Value::from(strip(text, args, true, false)?),
        "rstrip" => Value::from(strip(text, args, false, true)?),
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            triple(match text.split_once(separator) {
                Some((head, tail)) => [head, separator, tail],
                None => [text, "", ""],
            })
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            triple(match text.rsplit_once(separator) {
                Some((head, tail)) => [head, separator, tail],
                None => ["", "", text],
            })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            Value::from(super::joined(state, &items, text, None)?)
        }
        "casefold" => Value::from(text.to_lowercase()),
        "isdecimal" => Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())),
        // Python: an empty string is none of these.
        "isspace" | "isalpha" | "isalnum" | "isdigit" | "isnumeric" if text.is_empty() => Value::from(false),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            Value::from(zfill(text, width.min(4096)))
        }
        "index" => {
            let (what,): (&str,) = from_args(args)?;
            let at = text.find(what).ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        // Python counts characters, not bytes.
        "find" | "rfind" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "find" { text.find(what) } else { text.rfind(what) };
            Value::from(at.map_or(-1, |at| text[..at].chars().count() as i64))
        }
        _ => return Ok(None),
    }))
}

fn sequence_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (what,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == what);
            Value::from(at.ok_or_else(|| invalid("value is not in the list"))?)
        }
        "copy" => value.try_iter()?.collect(),
        "append" | "extend" | "insert" | "pop" | "remove" | "sort" | "reverse" | "clear" => {
            return Err(invalid(format!("a template may not change a list with `{method}`")));
        }
        _ => return Ok(None),
    }))
}

/// Python's idea of whitespace is Unicode's and four more control characters.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip(text: &str, args: &[Value], left: bool, right: bool) -> Result<String, Error> {
    let (chars,): (Option<Value>,) = from_args(args)?;
    let set: Option<Vec<char>> = match chars.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => {
            Some(v.as_str().ok_or_else(|| invalid("strip takes a string"))?.chars().collect::<Vec<_>>())
        }
    };
    let drop = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let text = if left { text.trim_start_matches(drop) } else { text };
    Ok(if right { text.trim_end_matches(drop) } else { text }.to_owned())
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<Value>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|n| usize::try_from(n).ok());
    let separator = separator.filter(|v| !v.is_none());
    let mut parts: Vec<String> = match &separator {
        None => return Ok(split_spaces(text, from_right, most)),
        Some(v) => {
            let separator = v.as_str().ok_or_else(|| invalid("split takes a string"))?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            match (most, from_right) {
                (None, _) => text.split(separator).map(str::to_owned).collect(),
                (Some(n), false) => text.splitn(n.saturating_add(1), separator).map(str::to_owned).collect(),
                (Some(n), true) => text.rsplitn(n.saturating_add(1), separator).map(str::to_owned).collect(),
            }
        }
    };
    if from_right && most.is_some() {
        parts.reverse();
    }
    Ok(Value::from(parts))
}

/// Without a separator, runs of whitespace separate, and there are no empty parts.
fn split_spaces(text: &str, from_right: bool, most: Option<usize>) -> Value {
    let mut parts = Vec::new();
    let mut rest = text.trim_matches(is_space);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let (Some(at), false) = (cut, most.is_some_and(|n| parts.len() >= n)) else {
            break;
        };
        let width = rest[at..].chars().next().map_or(0, char::len_utf8);
        if from_right {
            parts.push(rest[at + width..].to_owned());
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(rest[..at].to_owned());
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        parts.push(rest.to_owned());
    }
    if from_right {
        parts.reverse();
    }
    Value::from(parts)
}

fn triple(parts: [&str; 3]) -> Value {
    parts.into_iter().map(Value::from).collect()
}

fn zfill(text: &str, width: usize) -> String {
    let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
    match text.strip_prefix(['-', '+']) {
        Some(digits) => format!("{}{zeros}{digits}", &text[..1]),
        None => format!("{zeros}{text}"),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_do_what_python_does() {
        let mut env = minijinja::Environment::new();
        env.set_unknown_method_callback(super::call);
        for (source, expected) in [
            ("{{ ' a  b c '.split() }}", r#"["a", "b", "c"]"#),
            ("{{ ' a  b c '.split(none, 1) }}", r#"["a", "b c"]"#),
            ("{{ ' a  b c '.rsplit(none, 1) }}", r#"["a  b", "c"]"#),
            ("{{ 'a,b,,c'.split(',') }}", r#"["a", "b", "", "c"]"#),
            ("{{ 'a,b,c'.split(',', 1) }}", r#"["a", "b,c"]"#),
            ("{{ 'a,b,c'.rsplit(',', 1) }}", r#"["a,b", "c"]"#),
            ("{{ 'xxaxx'.strip('x') }}{{ '\x1c a\n'.strip() }}", "aa"),
            ("{{ 'k: v: w'.partition(': ') }}", r#"["k", ": ", "v: w"]"#),
            ("{{ 'abc'.removeprefix('a').removesuffix('c') }}", "b"),
            ("{{ 'né?'.find('?') }} {{ 'a'.find('b') }} {{ '-7'.zfill(4) }}", "2 -1 -007"),
            ("{{ {'a': 1}.get('b', 2) }} {{ {'a': 1}.items()|list }}", r#"2 [["a", 1]]"#),
        ] {
            assert_eq!(env.render_str(source, ()).unwrap(), expected, "{source}");
        }
        assert!(env.render_str("{{ [1].append(2) }}", ()).is_err());
        assert!(env.render_str("{{ 'a'.split('') }}", ()).is_err());
    }
}
