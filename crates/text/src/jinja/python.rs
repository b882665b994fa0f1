//! Values as Python writes them: `str()`, `repr()` and `json.dumps`.
//!
//! Templates are written for Jinja2, where `{{ true }}` is `True`, a list prints with single quotes, and transformers
//! replaces `tojson` by `json.dumps(..., ensure_ascii=False)` without HTML escapes.

use super::limits;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Values nested deeper than this are refused; Python stops at its recursion limit, about as deep.
const MAX_DEPTH: usize = 200;

/// `str(value)`; an undefined value is the empty string, as Jinja2 prints it.
pub(crate) fn str_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

/// `json.dumps(value, ensure_ascii=False)` with the keywords that transformers' `tojson` takes.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keywords over by value")]
pub(crate) fn tojson(value: &Value, ascii: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let ascii = match ascii {
        Some(given) => given.is_true(),
        None => kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match (v.as_str(), v.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(n)) => " ".repeat(n.clamp(0, 64) as usize),
            (None, None) => return Err(invalid("`indent` must be a number or a string")),
        }),
    };
    let mut dump = Dump {
        ascii,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        indent,
        out: String::new(),
    };
    if let Some(pair) = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        let parts: Vec<Value> = pair.try_iter()?.collect();
        let [item, key] = parts.as_slice() else {
            return Err(invalid("`separators` must be a pair of strings"));
        };
        dump.item = str_of(item)?;
        dump.key = str_of(key)?;
    }
    kwargs.assert_all_used()?;
    dump.value(value, 0)?;
    Ok(Value::from(dump.out))
}

struct Dump {
    ascii: bool,
    sort_keys: bool,
    item: String,
    key: String,
    indent: Option<String>,
    out: String,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("a value is nested too deeply for `tojson`"));
        }
        limits::within_value(self.out.len())?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value, ["NaN", "Infinity", "-Infinity"])?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            other => return Err(invalid(format!("a value of type {other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.separate(&mut empty, depth);
            self.value(&item, depth + 1)?;
        }
        self.close(empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut pairs = Vec::new();
        for key in value.try_iter()? {
            let item = value.get_item(&key)?;
            pairs.push((json_key(&key)?, item));
        }
        if self.sort_keys {
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.out.push('{');
        let mut empty = true;
        for (key, item) in pairs {
            self.separate(&mut empty, depth);
            self.string(&key);
            self.out.push_str(&self.key);
            self.value(&item, depth + 1)?;
        }
        self.close(empty, depth, '}');
        Ok(())
    }

    fn separate(&mut self, empty: &mut bool, depth: usize) {
        if !*empty {
            self.out.push_str(&self.item);
        }
        *empty = false;
        self.line(depth + 1);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// JSON's keys are strings; Python writes the others as it would write the value.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => number(key, ["NaN", "Infinity", "-Infinity"]),
        other => Err(invalid(format!("a key of type {other} is not JSON serializable"))),
    }
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("a value is nested too deeply to be printed"));
    }
    limits::within_value(out.len())?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, ["nan", "inf", "-inf"])?),
        ValueKind::String => repr_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// Python prefers single quotes, and takes double ones for a text with a single quote and no double one.
fn repr_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as Python's `repr`, with the given words for NaN and the infinities.
fn number(value: &Value, [nan, inf, minus_inf]: [&str; 3]) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    Ok(if float.is_nan() {
        nan.into()
    } else if float.is_infinite() {
        if float > 0.0 { inf.into() } else { minus_inf.into() }
    } else {
        float_repr(float)
    })
}

/// Rust and Python both print the shortest digits and change to exponents at the same sizes; only the exponent is
/// written differently (`1e-5` against `1e-05`).
fn float_repr(float: f64) -> String {
    let text = format!("{float:?}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(rest) => ('-', rest),
        None => ('+', exponent),
    };
    format!("{}e{sign}{exponent:0>2}", digits.strip_suffix(".0").unwrap_or(digits))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        Value::from_serialize(serde_json::from_str::<serde_json::Value>(json).unwrap())
    }

    #[test]
    fn values_print_as_in_python() {
        for (json, python) in [
            ("null", "None"),
            ("true", "True"),
            ("1.0", "1.0"),
            ("1e-5", "1e-05"),
            ("1.5e-7", "1.5e-07"),
            ("0.0001", "0.0001"),
            ("1e16", "1e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("18446744073709551615", "18446744073709551615"),
            (r#"{"a": [1, "it's", "say \"it's\"", null]}"#, r#"{'a': [1, "it's", 'say "it\'s"', None]}"#),
            (r#"["\t\u0001"]"#, r"['\t\x01']"),
        ] {
            assert_eq!(str_of(&value(json)).unwrap(), python, "{json}");
        }
    }

    #[test]
    fn tojson_takes_the_keywords_of_json_dumps() {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let show = |source: &str| {
            let context = minijinja::context! { x => value(r#"{"b": [1, {}], "a": "é<\u0007&>", "c": []}"#) };
            env.render_str(source, context).unwrap()
        };
        assert_eq!(show("{{ x|tojson }}"), r#"{"b": [1, {}], "a": "é<\u0007&>", "c": []}"#);
        assert_eq!(
            show("{{ x|tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}"),
            r#"{"a":"\u00e9<\u0007&>","b":[1,{}],"c":[]}"#
        );
        assert_eq!(
            show("{{ x|tojson(indent=2) }}"),
            "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": \"é<\\u0007&>\",\n  \"c\": []\n}"
        );
        assert!(env.render_str("{{ nothing|tojson }}", ()).is_err());
        assert!(env.render_str("{{ 1|tojson(width=3) }}", ()).is_err());
    }
}
