//! One JSON value from one row, strictly: no key twice, and every fault named with its place.

use crate::fault::RowFault;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// How deep values may nest; serde_json's own limit, which keeps the stack safe.
pub(crate) const MAX_DEPTH: usize = 128;

/// A fault and its byte offset in the text.
pub(crate) type Fault = (usize, RowFault);

/// Parse all of `text` as one value.
pub(crate) fn parse(text: &str) -> Result<Value, Fault> {
    let duplicate = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let parsed = StrictValue { duplicate: &duplicate }.deserialize(&mut reader);
    match parsed.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(error) => Err(classify(text, &error, duplicate.into_inner())),
    }
}

/// The type of a value as a person says it.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn classify(text: &str, error: &serde_json::Error, duplicate: Option<String>) -> Fault {
    let offset = byte_offset(text, error.line(), error.column());
    if let Some(key) = duplicate {
        return (offset, RowFault::DuplicateKey { key });
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    if message.starts_with("recursion limit") {
        return (offset, RowFault::TooDeep { cap: MAX_DEPTH });
    }
    if (message.contains("surrogate") || message.contains("hex escape"))
        && let Some((at, escape)) = first_lone_surrogate(text)
    {
        return (at, RowFault::LoneSurrogate { escape: escape.to_owned() });
    }
    let rest = text.get(offset..).unwrap_or_default();
    for literal in ["-Infinity", "-NaN", "NaN", "Infinity"] {
        // serde_json has already taken a sign when it fails.
        let start = if literal.starts_with('-') { offset.saturating_sub(1) } else { offset };
        if text.get(start..).is_some_and(|rest| rest.starts_with(literal)) {
            return (start, RowFault::NotANumber { literal });
        }
    }
    (offset, RowFault::Syntax { message: message.to_owned(), remedy: remedy(message, rest) })
}

fn remedy(message: &str, rest: &str) -> Option<&'static str> {
    if ["True", "False", "None", "'"].iter().any(|python| rest.starts_with(python)) {
        Some("this is Python's notation; write the row with `json.dumps`")
    } else if message.starts_with("EOF") {
        Some("a row must be whole on its line; `jq -c . file` puts pretty-printed objects on one line each")
    } else if message.starts_with("trailing characters") {
        Some("one object per line: put what follows on its own line")
    } else if message.starts_with("control character") {
        Some("write control characters in strings as escapes: \\n, \\t, \\u0000")
    } else {
        None
    }
}

/// serde_json's line and column (bytes, from 1, or 0 before the first byte) as an offset.
fn byte_offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut offset = (start + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The first `\uXXXX` that is half of a pair. A doubled backslash starts no escape.
fn first_lone_surrogate(text: &str) -> Option<(usize, &str)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => return Some((at, &text[at..at + 6])),
            _ => at += 2,
        }
    }
    None
}

#[derive(Clone, Copy)]
struct StrictValue<'a> {
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                *self.duplicate.borrow_mut() = Some(key);
                return Err(serde::de::Error::custom("duplicate key"));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(text: &str) -> (usize, RowFault) {
        parse(text).unwrap_err()
    }

    #[test]
    fn python_number_literals_are_named_with_their_place() {
        for (text, offset, literal) in [
            (r#"{"a": NaN}"#, 6, "NaN"),
            (r#"{"a": [1, Infinity]}"#, 10, "Infinity"),
            (r#"{"é": -Infinity}"#, 7, "-Infinity"),
        ] {
            assert_eq!(fault(text), (offset, RowFault::NotANumber { literal }), "{text}");
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_named_and_an_escaped_backslash_is_not_one() {
        let lone = |text: &str| match fault(text) {
            (at, RowFault::LoneSurrogate { escape }) => (at, escape),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(lone(r#"{"a": "x\ud83d"}"#), (8, r"\ud83d".into()));
        assert_eq!(lone(r#"{"a": "\ude42"}"#), (7, r"\ude42".into()));
        assert_eq!(lone(r#"{"a": "\ud83d\u0041"}"#), (7, r"\ud83d".into()));
        assert_eq!(lone(r#"{"a": "\ud83d\ude42 \\ud83d \uD800"}"#), (28, r"\uD800".into()));
        assert_eq!(parse(r#"{"a": "\\ud83d\ud83d\ude42"}"#).unwrap()["a"], "\\ud83d\u{1F642}");
    }

    #[test]
    fn a_key_twice_deep_nesting_and_trailing_text_are_errors() {
        assert!(
            matches!(fault(r#"{"a": 1, "b": {"c": 1, "c": 2}}"#).1, RowFault::DuplicateKey { key } if key == "c")
        );
        let deep = "[".repeat(100_000);
        assert!(matches!(fault(&deep).1, RowFault::TooDeep { .. }));
        let (at, twice) = fault(r#"{"a": 1} {"a": 2}"#);
        assert_eq!(at, 9);
        assert!(twice.hint().unwrap().contains("own line"));
        assert!(fault("{'a': 1}").1.hint().is_none_or(|hint| hint.contains("Python")));
        assert!(fault("{\"a\": True}").1.hint().unwrap().contains("json.dumps"));
        assert!(fault("{").1.hint().unwrap().contains("jq -c"));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_json_writes_is_read_back(value in json()) {
            let text = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(parse(&text).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
        }

        #[test]
        fn any_text_gives_a_value_or_a_fault_inside_the_text(text in "[\\[\\]{}\",:\\\\udDaNI0-9 é\n-]{0,40}") {
            match parse(&text) {
                Ok(value) => prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap()),
                Err((offset, _)) => prop_assert!(text.is_char_boundary(offset)),
            }
        }
    }
}
