//! ROUGE-L as google's rouge-score computes it: the longest common subsequence of words.
//!
//! Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. Held against rouge-score 0.1.2. Words are runs of
//! `a` to `z` and digits after lower-casing: a text without Latin letters or digits (Chinese, Greek) has none and scores 0.

use super::porter;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// How the score is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RougeL {
    /// Compare stems of words longer than three letters (English only).
    pub stem: bool,
    /// `rougeLsum`: lines are sentences, and each expected line may be found across several lines. Else `rougeL`: a line end is a space.
    pub by_line: bool,
}

/// Shares of the words that are in the common subsequence.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RougeScore {
    /// Of the words given.
    pub precision: f64,
    /// Of the words expected.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

impl RougeScore {
    fn new(hits: usize, wanted: usize, given: usize) -> Self {
        if wanted == 0 || given == 0 {
            return Self::default();
        }
        let (precision, recall) = (hits as f64 / given as f64, hits as f64 / wanted as f64);
        let f1 = if hits == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
        Self { precision, recall, f1 }
    }
}

impl RougeL {
    /// The score of one answer beside the one expected. Time grows with the product of their words.
    pub fn score(self, expected: &str, output: &str) -> RougeScore {
        if !self.by_line {
            let (wanted, given) = (self.words(expected), self.words(output));
            return RougeScore::new(lcs_len(&wanted, &given), wanted.len(), given.len());
        }
        let lines = |text: &str| -> Vec<Vec<String>> {
            text.split('\n').filter(|line| !line.is_empty()).map(|line| self.words(line)).collect()
        };
        let (wanted, given) = (lines(expected), lines(output));
        let words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
        RougeScore::new(union_hits(&wanted, &given), words(&wanted), words(&given))
    }

    /// How it computes.
    pub fn signature(self) -> String {
        let kind = if self.by_line { "rougeLsum" } else { "rougeL" };
        let stem = if self.stem { "porter" } else { "no" };
        format!("rouge_l|kind:{kind}|stem:{stem}|tok:a-z0-9|score:f1|version:1")
    }

    fn words(self, text: &str) -> Vec<String> {
        text.to_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(|word| if self.stem && word.len() > 3 { porter::stem(word) } else { word.to_owned() })
            .filter(|word| !word.is_empty())
            .collect()
    }
}

fn lcs_len(wanted: &[String], given: &[String]) -> usize {
    let mut row = vec![0usize; given.len() + 1];
    for word in wanted {
        let mut diagonal = 0;
        for (j, other) in given.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[given.len()]
}

/// Words of each expected line that are in its common subsequence with any line given. A word counts at most as often as it stands
/// on either side.
fn union_hits(wanted: &[Vec<String>], given: &[Vec<String>]) -> usize {
    let count = |lines: &[Vec<String>]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in lines.iter().flatten() {
            *counts.entry(word.clone()).or_default() += 1;
        }
        counts
    };
    let (mut left_wanted, mut left_given) = (count(wanted), count(given));
    let mut hits = 0;
    for line in wanted {
        let union: BTreeSet<usize> = given.iter().flat_map(|other| lcs_places(line, other)).collect();
        for place in union {
            let (Some(a), Some(b)) = (left_wanted.get_mut(&line[place]), left_given.get_mut(&line[place]))
            else {
                continue;
            };
            if *a > 0 && *b > 0 {
                *a -= 1;
                *b -= 1;
                hits += 1;
            }
        }
    }
    hits
}

/// The places in `wanted` of one longest common subsequence: of several, the one that the reference reads out of its table from the
/// end. The table itself is not kept, only whether a cell's left neighbour is above its upper one: a bit each.
fn lcs_places(wanted: &[String], given: &[String]) -> Vec<usize> {
    let width = given.len();
    let mut goes_left = vec![0u64; (wanted.len() * width).div_ceil(64)];
    let mut row = vec![0usize; width + 1];
    for (i, word) in wanted.iter().enumerate() {
        let mut diagonal = 0;
        for (j, other) in given.iter().enumerate() {
            let (above, left) = (row[j + 1], row[j]);
            if left > above {
                let bit = i * width + j;
                goes_left[bit / 64] |= 1 << (bit % 64);
            }
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(left) };
            diagonal = above;
        }
    }
    let (mut i, mut j) = (wanted.len(), width);
    let mut places = Vec::new();
    while i > 0 && j > 0 {
        let bit = (i - 1) * width + j - 1;
        if wanted[i - 1] == given[j - 1] {
            places.push(i - 1);
            i -= 1;
            j -= 1;
        } else if goes_left[bit / 64] >> (bit % 64) & 1 == 1 {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subsequence_keeps_the_order_and_may_have_gaps() {
        // The paper's example: `police the gunman` has two in order, `the gunman police killed` two.
        let score = |output| RougeL::default().score("police killed the gunman", output).f1;
        assert!((score("police kill the gunman") - 0.75).abs() < 1e-15);
        assert!((score("the gunman kill police") - 0.5).abs() < 1e-15);
        assert_eq!(score("日本語"), 0.0);
        assert_eq!(RougeL::default().score("", ""), RougeScore::default());
    }

    #[test]
    fn lines_are_found_across_lines() {
        // The paper's union: w1 w2 and w1 w3 w5 of `w1 w2 w3 w4 w5` are four of five words.
        let by_line = RougeL { by_line: true, stem: false };
        let score = by_line.score("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5");
        assert!((score.recall - 0.8).abs() < 1e-15 && (score.precision - 0.4).abs() < 1e-15);
    }

    #[test]
    fn stems_make_forms_of_a_word_equal() {
        let of = |stem| RougeL { stem, by_line: false }.score("the cats jumped", "the cat jumps").recall;
        assert!((of(false) - 1.0 / 3.0).abs() < 1e-15);
        // `cat` has three letters and is compared as it is; `cats` loses its `s`.
        assert_eq!(of(true), 1.0);
    }
}
