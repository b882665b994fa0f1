//! A request's fields, read one by one with their types and ranges; all that is wrong is told at once.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Characters of a wrong value that a message shows.
const SHOWN: usize = 40;

/// The fields of an object in a request. `null` is as good as absent.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: &'static str,
    problems: Vec<(String, String)>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: "", problems: Vec::new() }
    }

    /// The fields of an object inside another, whose name stands before theirs.
    pub(crate) fn within(object: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Self { prefix, ..Self::new(object) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    /// Remember that a field is wrong.
    pub(crate) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push((self.name(key), message.into()));
    }

    fn expected(&mut self, key: &str, what: &str, given: &Value) {
        let message = format!("`{}` must be {what}, not {}", self.name(key), shown(given));
        self.refuse(key, message);
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        let given = self.get(key)?;
        let value = given.as_bool();
        if value.is_none() {
            self.expected(key, "true or false", given);
        }
        value
    }

    pub(crate) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let given = self.get(key)?;
        let value = given.as_i64().filter(|value| range.contains(value));
        if value.is_none() {
            let what = match *range.end() {
                i64::MAX => format!("an integer, {} or more", range.start()),
                end => format!("an integer from {} to {end}", range.start()),
            };
            self.expected(key, &what, given);
        }
        value
    }

    /// An integer from `least` to `most`.
    pub(crate) fn count(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let value = self.integer(key, bound(*range.start())..=bound(*range.end()))?;
        usize::try_from(value).ok()
    }

    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let what = format!("a number from {} to {}", range.start(), range.end());
        self.number_where(key, &what, |value| range.contains(&value))
    }

    pub(crate) fn number_where(&mut self, key: &str, what: &str, holds: impl Fn(f64) -> bool) -> Option<f64> {
        let given = self.get(key)?;
        let value = given.as_f64().filter(|value| value.is_finite() && holds(*value));
        if value.is_none() {
            self.expected(key, what, given);
        }
        value
    }

    pub(crate) fn text(&mut self, key: &str, most_bytes: usize) -> Option<&'a str> {
        let given = self.get(key)?;
        let Some(text) = given.as_str() else {
            self.expected(key, "a string", given);
            return None;
        };
        if text.len() > most_bytes {
            let message = format!("`{}` is longer than {most_bytes} bytes", self.name(key));
            self.refuse(key, message);
            return None;
        }
        Some(text)
    }

    pub(crate) fn object(&mut self, key: &str) -> Option<&'a Map<String, Value>> {
        let given = self.get(key)?;
        let object = given.as_object();
        if object.is_none() {
            self.expected(key, "an object", given);
        }
        object
    }

    pub(crate) fn list(&mut self, key: &str, most: usize) -> Option<&'a [Value]> {
        let given = self.get(key)?;
        let Some(list) = given.as_array() else {
            self.expected(key, "a list", given);
            return None;
        };
        if list.len() > most {
            let message =
                format!("`{}` has {} entries, and may have {most} at most", self.name(key), list.len());
            self.refuse(key, message);
            return None;
        }
        Some(list)
    }

    /// A string, or a list of strings, none of them empty.
    pub(crate) fn strings(&mut self, key: &str, most: usize, most_bytes: usize) -> Vec<String> {
        let Some(given) = self.get(key) else { return Vec::new() };
        let list = match given {
            Value::String(_) => std::slice::from_ref(given),
            _ => match self.list(key, most) {
                Some(list) => list,
                None => return Vec::new(),
            },
        };
        let mut strings = Vec::with_capacity(list.len());
        for value in list {
            match value.as_str() {
                Some("") => self.refuse(key, format!("`{}` has an empty string", self.name(key))),
                Some(text) if text.len() > most_bytes => {
                    let message =
                        format!("`{}` has a string of more than {most_bytes} bytes", self.name(key));
                    self.refuse(key, message);
                }
                Some(text) => strings.push(text.to_owned()),
                None => self.expected(key, "a string or a list of strings", value),
            }
        }
        strings
    }

    /// A list of token ids below `vocab_size`.
    pub(crate) fn token_ids(&mut self, key: &str, most: usize, vocab_size: usize) -> Vec<u32> {
        let list = self.list(key, most).unwrap_or_default();
        match token_ids(list, vocab_size) {
            Ok(ids) => ids,
            Err(given) => {
                self.expected(key, &format!("a list of token ids below {vocab_size}"), given);
                Vec::new()
            }
        }
    }

    /// A field that is known and not served, unless it says what is done anyway.
    pub(crate) fn unserved(&mut self, key: &str, neutral: &[Value], instead: &str) {
        let Some(given) = self.get(key).filter(|given| !neutral.contains(given)) else { return };
        let empty =
            given.as_array().is_some_and(Vec::is_empty) || given.as_object().is_some_and(Map::is_empty);
        if !empty {
            let message = format!("`{}` is not supported{instead}", self.name(key));
            self.refuse(key, message);
        }
    }

    /// Take over what is wrong inside an object.
    pub(crate) fn absorb(&mut self, inner: Fields<'_>) {
        self.problems.extend(inner.problems);
    }

    /// The request is sound, or all that is wrong with it.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some((param, _)) = self.problems.first() else { return Ok(()) };
        let all: Vec<&str> = self.problems.iter().map(|(_, message)| message.as_str()).collect();
        Err(ApiError::invalid(param, all.join("; ")))
    }
}

/// Token ids, or the value that is none.
pub(crate) fn token_ids(list: &[Value], vocab_size: usize) -> Result<Vec<u32>, &Value> {
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64)?;
        u32::try_from(id).ok()
    };
    list.iter().map(|value| id(value).ok_or(value)).collect()
}

/// A value in a few words.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(object) => format!("an object with {} keys", object.len()),
        other => {
            let text = other.to_string();
            let start: String = text.chars().take(SHOWN).collect();
            if start.len() < text.len() { format!("`{start}…`") } else { format!("`{start}`") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_is_wrong_is_told_at_once_and_the_first_is_the_param() {
        let object = json!({
            "a": 3, "b": "x", "c": [1, 900], "d": ["", 5], "e": null, "f": 1.5, "g": {"x": 1}, "h": "long"
        });
        let mut fields = Fields::new(object.as_object().unwrap());
        assert_eq!(fields.number("a", 0.0..=2.0), None);
        assert_eq!(fields.boolean("b"), None);
        assert!(fields.token_ids("c", 9, 100).is_empty());
        assert!(fields.strings("d", 9, 9).is_empty());
        assert_eq!(fields.boolean("e"), None);
        assert_eq!(fields.integer("f", 0..=9), None);
        fields.unserved("g", &[], "");
        assert_eq!(fields.text("h", 3), None);
        let error = fields.finish().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("a"));
        assert_eq!(
            error.message,
            "`a` must be a number from 0 to 2, not `3`; `b` must be true or false, not `\"x\"`; \
             `c` must be a list of token ids below 100, not `900`; `d` has an empty string; \
             `d` must be a string or a list of strings, not `5`; `f` must be an integer from 0 to 9, not `1.5`; \
             `g` is not supported; `h` is longer than 3 bytes"
        );
    }

    #[test]
    fn what_is_neutral_or_empty_passes() {
        let object = json!({ "a": [], "b": {}, "c": "auto", "d": null });
        let mut fields = Fields::new(object.as_object().unwrap());
        for key in ["a", "b", "d", "absent"] {
            fields.unserved(key, &[], "");
        }
        fields.unserved("c", &[json!("auto")], "");
        assert_eq!(fields.finish(), Ok(()));
    }
}
