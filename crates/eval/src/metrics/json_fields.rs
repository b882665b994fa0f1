//! Fields of two JSON texts, compared without a schema. With one see [`super::extraction`].

use super::exact::exact_match;
use crate::Normalize;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The fields of a JSON answer beside those expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JsonFields {
    /// Fields expected.
    pub expected: usize,
    /// Fields given; 0 where the answer is not JSON.
    pub given: usize,
    /// Fields that are in both with equal values.
    pub equal: usize,
}

impl JsonFields {
    /// `2 equal / (expected + given)`: the harmonic mean of precision and recall. 1 when both have no field.
    pub fn f1(self) -> f64 {
        match self.expected + self.given {
            0 => 1.0,
            fields => 2.0 * self.equal as f64 / fields as f64,
        }
    }

    /// The fields of several answers together (micro average).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            expected: self.expected + other.expected,
            given: self.given + other.given,
            equal: self.equal + other.equal,
        }
    }
}

/// Compare the fields of two JSON texts. `None` when the expected one is not a JSON object or list.
///
/// A field is a value that is not an object or a list, named by its path (`a.b`, `items[2].name`; lists by position); an empty
/// object or list is a field too. Strings are compared as `normalize` says, numbers by value.
pub fn json_fields(expected: &str, output: &str, normalize: Normalize) -> Option<JsonFields> {
    let wanted = structured(expected)?;
    let given = structured(output).unwrap_or_default();
    let equal = wanted
        .iter()
        .filter(|(path, value)| given.get(*path).is_some_and(|other| equal_leaf(value, other, normalize)))
        .count();
    Some(JsonFields { expected: wanted.len(), given: given.len(), equal })
}

fn structured(text: &str) -> Option<BTreeMap<String, Value>> {
    let value: Value = serde_json::from_str(text.trim()).ok()?;
    if !value.is_object() && !value.is_array() {
        return None;
    }
    let mut leaves = BTreeMap::new();
    collect(&value, String::new(), &mut leaves);
    Some(leaves)
}

fn collect(value: &Value, path: String, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, inner) in object {
                let dot = if path.is_empty() { "" } else { "." };
                collect(inner, format!("{path}{dot}{key}"), leaves);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, inner) in list.iter().enumerate() {
                collect(inner, format!("{path}[{index}]"), leaves);
            }
        }
        leaf => {
            leaves.insert(path, leaf.clone());
        }
    }
}

fn equal_leaf(a: &Value, b: &Value, normalize: Normalize) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => exact_match(a, b, normalize),
        // As doubles only where one is not whole: large whole numbers share a double.
        (Value::Number(a), Value::Number(b)) => {
            a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(expected: &str, output: &str) -> JsonFields {
        json_fields(expected, output, Normalize::Whitespace).unwrap()
    }

    #[test]
    fn fields_are_counted_by_hand() {
        let expected = r#"{"name": "Ann", "age": 3, "tags": ["a", "b"], "none": null, "empty": {}}"#;
        assert_eq!(fields(expected, expected), JsonFields { expected: 6, given: 6, equal: 6 });
        // The age is wrong, a tag is missing, `extra` is invented; order and 1.0 for 1 do not matter.
        let output = r#"{"extra": true, "tags": ["a"], "empty": {}, "none": null, "age": 4, "name": " Ann"}"#;
        let got = fields(expected, output);
        assert_eq!(got, JsonFields { expected: 6, given: 6, equal: 4 });
        assert!((got.f1() - 2.0 * 4.0 / 12.0).abs() < 1e-15);
        assert_eq!(fields(r#"{"a": 1}"#, r#"{"a": 1.0}"#).equal, 1);
        assert_eq!(fields(r#"{"a": "1"}"#, r#"{"a": 1}"#).equal, 0);
        // Two whole numbers that are the same double are still two account numbers.
        assert_eq!(fields(r#"{"a": 9007199254740993}"#, r#"{"a": 9007199254740992}"#).equal, 0);
    }

    #[test]
    fn an_answer_that_is_not_json_has_no_fields_and_an_expected_one_that_is_not_has_no_score() {
        assert_eq!(fields(r#"{"a": 1}"#, "sorry"), JsonFields { expected: 1, given: 0, equal: 0 });
        assert_eq!(fields(r#"{"a": 1}"#, "7"), JsonFields { expected: 1, given: 0, equal: 0 });
        assert_eq!(json_fields("plain", "{}", Normalize::None), None);
        assert_eq!(json_fields("7", "7", Normalize::None), None);
        assert_eq!(JsonFields::default().f1(), 1.0);
    }
}
