//! chrF and chrF++ as sacrebleu computes them by default: character n-grams of orders 1 to 6 without white space, for chrF++ also words
//! of orders 1 and 2, beta 2, no smoothing. Scores are 0 to 100.
//!
//! Sources: Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015; "chrF++: words helping character n-grams",
//! WMT 2017. Held against sacrebleu 2.6.0.

use super::words::{is_space, split_words};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;
use std::ops::AddAssign;

const CHAR_ORDERS: usize = 6;
const WORD_ORDERS: usize = 2;
const ORDERS: usize = CHAR_ORDERS + WORD_ORDERS;
/// Recall counts beta² = 4 times as much as precision.
const FACTOR: f64 = 4.0;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chrf {
    /// Characters alone.
    #[default]
    Chrf,
    /// chrF++: characters and words.
    PlusPlus,
}

impl Chrf {
    fn orders(self) -> usize {
        match self {
            Self::Chrf => CHAR_ORDERS,
            Self::PlusPlus => ORDERS,
        }
    }

    /// How it computes, in sacrebleu's form.
    pub fn signature(self) -> String {
        let words = self.orders() - CHAR_ORDERS;
        format!("chrf|nrefs:1|case:mixed|eff:yes|nc:{CHAR_ORDERS}|nw:{words}|space:no|version:1")
    }
}

/// What one answer adds to the score of a corpus; the counts of many answers are summed, then scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChrfCounts {
    /// Which of the two the counts are for.
    pub kind: Chrf,
    /// For each order the n-grams given, expected and in both; characters first.
    pub orders: [[u64; 3]; ORDERS],
}

impl ChrfCounts {
    /// No counts.
    pub fn empty(kind: Chrf) -> Self {
        Self { kind, orders: [[0; 3]; ORDERS] }
    }

    /// The counts of one answer beside the one expected.
    pub fn of(expected: &str, output: &str, kind: Chrf) -> Self {
        let mut counts = Self::empty(kind);
        let characters = |text: &str| text.chars().filter(|c| !is_space(*c)).collect::<Vec<char>>();
        let (wanted, given) = (characters(expected), characters(output));
        for n in 1..=CHAR_ORDERS {
            counts.orders[n - 1] = matches(&wanted, &given, n);
        }
        if kind == Chrf::PlusPlus {
            let (wanted, given) = (words(expected), words(output));
            for n in 1..=WORD_ORDERS {
                counts.orders[CHAR_ORDERS + n - 1] = matches(&wanted, &given, n);
            }
        }
        counts
    }

    /// These counts `weight` times, as a resample of a bootstrap needs them.
    #[must_use]
    pub fn times(self, weight: u32) -> Self {
        Self { orders: self.orders.map(|order| order.map(|count| count * u64::from(weight))), ..self }
    }

    /// `(1 + beta²) P R / (beta² P + R)`, P and R the means of precision and recall over the orders of which both sides have an
    /// n-gram. Of one answer's counts this is its own score, of summed ones the corpus score.
    pub fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for [given, wanted, both] in self.orders[..self.kind.orders()].iter().copied() {
            if given > 0 && wanted > 0 {
                precision += both as f64 / given as f64;
                recall += both as f64 / wanted as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        100.0 * (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
    }
}

impl AddAssign for ChrfCounts {
    fn add_assign(&mut self, other: Self) {
        for (mine, others) in self.orders.iter_mut().flatten().zip(other.orders.into_iter().flatten()) {
            *mine += others;
        }
    }
}

/// N-grams given, expected and in both. Where none is expected none is counted as given: the reference does so.
fn matches<T: Eq + Hash>(wanted: &[T], given: &[T], n: usize) -> [u64; 3] {
    let mut left: HashMap<&[T], u64> = HashMap::new();
    for gram in wanted.windows(n) {
        *left.entry(gram).or_default() += 1;
    }
    if left.is_empty() {
        return [0; 3];
    }
    let (mut total, mut both) = (0, 0);
    for gram in given.windows(n) {
        total += 1;
        if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            both += 1;
        }
    }
    [total, wanted.windows(n).count() as u64, both]
}

/// Words, of each one ASCII punctuation character parted: the last, else the first.
fn words(text: &str) -> Vec<&str> {
    let is_mark = |part: &str| part.chars().all(|c| c.is_ascii_punctuation());
    let mut words = Vec::new();
    for word in split_words(text) {
        let first = word.chars().next().map_or(0, char::len_utf8);
        let last = word.len() - word.chars().next_back().map_or(0, char::len_utf8);
        if last == 0 {
            words.push(word);
        } else if is_mark(&word[last..]) {
            words.extend([&word[..last], &word[last..]]);
        } else if is_mark(&word[..first]) {
            words.extend([&word[..first], &word[first..]]);
        } else {
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_of_a_word_is_parted() {
        assert_eq!(words("(hi) (hi well-known . «x»"), ["(hi", ")", "(", "hi", "well-known", ".", "«x»"]);
    }

    #[test]
    fn the_score_of_two_letters_is_that_counted_by_hand() {
        // Order 1: 2 of 3 given, 2 of 2 expected; order 2: 1 of 2 and 1 of 1; order 3: expected has none.
        let score = ChrfCounts::of("ab", "ab c", Chrf::Chrf).score();
        let (p, r) = ((2.0 / 3.0 + 0.5) / 2.0, 1.0);
        assert!((score - 100.0 * 5.0 * p * r / (4.0 * p + r)).abs() < 1e-12);
        assert_eq!(ChrfCounts::of("", "", Chrf::PlusPlus).score(), 0.0);
    }
}
