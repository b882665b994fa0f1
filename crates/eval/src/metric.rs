//! Scores of one answer: pure functions of what was expected and what was written.

use crate::Normalize;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Whether `output` equals `expected`, as far as `normalize` looks.
pub fn exact_match(expected: &str, output: &str, normalize: Normalize) -> bool {
    normalized(expected, normalize) == normalized(output, normalize)
}

/// The answer in `output`, without what a reasoning model thought before it: a first `<think>` block. Where the expected
/// answer has such a block itself, or the thoughts do not end, nothing is taken out.
pub fn without_thoughts<'a>(output: &'a str, expected: &str) -> &'a str {
    let thoughts = |text: &'a str| text.trim_start().strip_prefix("<think>")?.split_once("</think>");
    match thoughts(output) {
        Some((_, answer)) if !expected.trim_start().starts_with("<think>") => answer.trim_start(),
        _ => output,
    }
}

/// A text with what is overlooked taken out.
pub fn normalized(text: &str, normalize: Normalize) -> Cow<'_, str> {
    match normalize {
        Normalize::None => Cow::Borrowed(text),
        Normalize::Whitespace => Cow::Owned(one_space(text)),
        Normalize::Lenient => {
            let bare: String =
                text.chars().filter(|c| !c.is_ascii_punctuation()).flat_map(char::to_lowercase).collect();
            Cow::Owned(one_space(&bare))
        }
    }
}

fn one_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

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

/// `exp(loss_sum / tokens)`; losses in nats. `None` without a token.
pub fn perplexity(loss_sum: f64, tokens: usize) -> Option<f64> {
    (tokens > 0).then(|| (loss_sum / tokens as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_match_as_far_as_is_looked() {
        use Normalize::{Lenient, None, Whitespace};
        for (expected, output, none, whitespace, lenient) in [
            ("a b", "a b", true, true, true),
            ("a b", " a \n b\t", false, true, true),
            ("a b", "A, b!", false, false, true),
            ("a b", "ab", false, false, false),
            ("", "  ", false, true, true),
            ("Öl", "öl", false, false, true),
        ] {
            let got = [None, Whitespace, Lenient].map(|n| exact_match(expected, output, n));
            assert_eq!(got, [none, whitespace, lenient], "{expected:?} {output:?}");
        }
    }

    #[test]
    fn what_is_thought_before_an_answer_is_not_the_answer() {
        for (expected, output, answer) in [
            ("yes", "<think>\n\n</think>\n\nyes", "yes"),
            ("yes", "\n<think>is it? </think> yes", "yes"),
            // Thoughts that never end, tags inside an answer, and thoughts that are expected stay.
            ("yes", "<think>yes", "<think>yes"),
            ("yes", "yes <think>x</think>", "yes <think>x</think>"),
            ("<think>a</think>yes", "<think>a</think>yes", "<think>a</think>yes"),
        ] {
            assert_eq!(without_thoughts(output, expected), answer, "{output:?}");
        }
    }

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

    #[test]
    fn perplexity_is_the_exponential_of_the_mean_loss() {
        assert_eq!(perplexity(0.0, 4), Some(1.0));
        // Uniform over 8: each token costs ln 8.
        assert!((perplexity(3.0 * 8f64.ln(), 3).unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(perplexity(0.0, 0), None);
    }
}
