//! Normalised match and token F1, as SQuAD's evaluation scripts have them.
//!
//! Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016, and the two evaluation scripts
//! published with the data (v1.1, v2.0).

use super::words::{one_space, split_words, word_runs};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How two texts without a token are scored: the only point on which the two scripts part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SquadVersion {
    /// v1.1: token F1 is 0 whenever no token is shared, so of two empty texts too.
    V1,
    /// v2.0: where one text has no token, token F1 is 1 if the other has none either, else 0.
    #[default]
    V2,
}

impl SquadVersion {
    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1.1",
            Self::V2 => "v2.0",
        }
    }
}

/// The text that SQuAD compares, by four steps in this order: lower case; the 32 ASCII punctuation characters taken out, with
/// nothing in their place; each of the words `a`, `an` and `the` replaced by a space; white space made one space, none at the ends.
///
/// Punctuation outside ASCII (`“`, `。`) stays. A word here is a run of letters, numbers and `_`.
pub fn normalize_answer(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let without_articles = word_runs().replace_all(&bare, |found: &regex::Captures<'_>| match &found[0] {
        "a" | "an" | "the" => " ".to_owned(),
        word => word.to_owned(),
    });
    one_space(&without_articles)
}

/// Whether the texts are equal after [`normalize_answer`].
pub fn normalised_match(expected: &str, output: &str) -> bool {
    normalize_answer(expected) == normalize_answer(output)
}

/// How [`normalised_match`] compares.
pub fn normalised_match_signature() -> String {
    "normalised_match|norm:squad|version:1".into()
}

/// The harmonic mean of precision and recall over the words of both normalised texts, each counted as often as it stands in both.
pub fn token_f1(expected: &str, output: &str, version: SquadVersion) -> f64 {
    let (expected, output) = (normalize_answer(expected), normalize_answer(output));
    let wanted: Vec<&str> = split_words(&expected).collect();
    let given: Vec<&str> = split_words(&output).collect();
    if version == SquadVersion::V2 && (wanted.is_empty() || given.is_empty()) {
        return if wanted == given { 1.0 } else { 0.0 };
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &wanted {
        *left.entry(word).or_default() += 1;
    }
    let mut same = 0usize;
    for word in &given {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (same as f64 / given.len() as f64, same as f64 / wanted.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// How [`token_f1`] counts.
pub fn token_f1_signature(version: SquadVersion) -> String {
    format!("token_f1|norm:squad|empty:{}|version:1", version.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_punctuation_case_and_spaces_do_not_count() {
        assert_eq!(normalize_answer("The  (quick) brown-fox, an apple!"), "quick brownfox apple");
        // Taken out before the words are looked at: `a.b` is no article beside `b`.
        assert_eq!(normalize_answer("a.b"), "ab");
        assert!(normalised_match("the Eiffel Tower", "Eiffel tower."));
        assert!(!normalised_match("Eiffel Tower", "Eiffel tower。"));
    }

    #[test]
    fn shared_words_count_as_often_as_they_stand_in_both() {
        // 2 of 3 given, 2 of 4 expected.
        let f1 = token_f1("x x y z", "x x x", SquadVersion::V2);
        assert!((f1 - 2.0 * (2.0 / 3.0) * 0.5 / (2.0 / 3.0 + 0.5)).abs() < 1e-15);
        assert_eq!([SquadVersion::V1, SquadVersion::V2].map(|v| token_f1("the", "", v)), [0.0, 1.0]);
    }
}
