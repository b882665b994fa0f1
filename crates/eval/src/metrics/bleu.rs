//! BLEU as sacrebleu computes it by default: the `13a` tokeniser, orders 1 to 4, exponential smoothing. Scores are 0 to 100.
//!
//! Sources: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; Post, "A Call for Clarity in
//! Reporting BLEU Scores", WMT 2018; smoothing is method 3 of Chen and Cherry, WMT 2014. Held against sacrebleu 2.6.0.

use super::words::split_words;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::AddAssign;

/// The longest n-grams.
const ORDERS: usize = 4;

/// What one answer adds to the score of a corpus: lengths and n-gram counts. Those of many answers are summed, then scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BleuCounts {
    /// Tokens of the answers.
    pub output_len: u64,
    /// Tokens of the expected answers.
    pub expected_len: u64,
    /// N-grams of the answers that stand in the expected ones, n from 1.
    pub correct: [u64; ORDERS],
    /// N-grams of the answers.
    pub total: [u64; ORDERS],
}

impl BleuCounts {
    /// The counts of one answer beside the one expected.
    pub fn of(expected: &str, output: &str) -> Self {
        let (expected, output) = (tokenize_13a(expected), tokenize_13a(output));
        let wanted: Vec<&str> = split_words(&expected).collect();
        let given: Vec<&str> = split_words(&output).collect();
        let mut counts =
            Self { output_len: given.len() as u64, expected_len: wanted.len() as u64, ..Self::default() };
        for n in 1..=ORDERS {
            let mut left: HashMap<&[&str], u64> = HashMap::new();
            for gram in wanted.windows(n) {
                *left.entry(gram).or_default() += 1;
            }
            for gram in given.windows(n) {
                counts.total[n - 1] += 1;
                if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
                    *count -= 1;
                    counts.correct[n - 1] += 1;
                }
            }
        }
        counts
    }

    /// These counts `weight` times, as a resample of a bootstrap needs them.
    #[must_use]
    pub fn times(self, weight: u32) -> Self {
        let weight = u64::from(weight);
        Self {
            output_len: self.output_len * weight,
            expected_len: self.expected_len * weight,
            correct: self.correct.map(|count| count * weight),
            total: self.total.map(|count| count * weight),
        }
    }

    /// `BP exp(mean of ln p_n)`, BP = `min(1, exp(1 - expected / output))`. An order without a match has the precision
    /// `1 / (2^k total)`, k the orders without one so far; without a match of any order, or with an order that no answer is long
    /// enough for, the score is 0.
    pub fn corpus_bleu(&self) -> f64 {
        self.score(false)
    }

    /// The same over the orders that the answer is long enough for: sacrebleu's `sentence_bleu`. The mean of these is not
    /// [`BleuCounts::corpus_bleu`].
    pub fn sentence_bleu(&self) -> f64 {
        self.score(true)
    }

    fn score(&self, effective_order: bool) -> f64 {
        if self.correct.iter().all(|count| *count == 0) {
            return 0.0;
        }
        let mut halvings = 1.0;
        let (mut ln_sum, mut orders) = (0.0, 0);
        for (correct, total) in self.correct.into_iter().zip(self.total) {
            if total == 0 {
                break;
            }
            orders += 1;
            let matches = if correct == 0 {
                halvings *= 2.0;
                1.0 / halvings
            } else {
                correct as f64
            };
            ln_sum += (100.0 * matches / total as f64).ln();
        }
        if orders < ORDERS && !effective_order {
            return 0.0;
        }
        self.brevity_penalty() * (ln_sum / orders as f64).exp()
    }

    fn brevity_penalty(&self) -> f64 {
        match self.output_len {
            0 => 0.0,
            len if len < self.expected_len => (1.0 - self.expected_len as f64 / len as f64).exp(),
            _ => 1.0,
        }
    }
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        self.output_len += other.output_len;
        self.expected_len += other.expected_len;
        let mine = self.correct.iter_mut().chain(&mut self.total);
        mine.zip(other.correct.into_iter().chain(other.total)).for_each(|(mine, others)| *mine += others);
    }
}

/// How [`BleuCounts::corpus_bleu`] computes, in sacrebleu's form.
pub fn corpus_bleu_signature() -> String {
    "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:1".into()
}

/// How [`BleuCounts::sentence_bleu`] computes, in sacrebleu's form.
pub fn sentence_bleu_signature() -> String {
    "bleu|nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp|version:1".into()
}

/// The text with a space around each token of WMT's `mteval-v13a`: ASCII punctuation parts words, but for an apostrophe, a period or
/// comma between digits, and a hyphen that no digit stands before.
pub fn tokenize_13a(text: &str) -> String {
    let text = text.trim_end_matches(super::words::is_space);
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    }
    // The reference has four substitutions, one after the other; each sees what the one before it wrote.
    let mut chars = vec![' '];
    for c in line.chars() {
        if is_parting(c) { chars.extend([' ', c, ' ']) } else { chars.push(c) }
    }
    chars.push(' ');
    let is_point = |c: char| c == '.' || c == ',';
    let digit = |c: char| c.is_ascii_digit();
    chars = rewrite(&chars, |a, b| !digit(a) && is_point(b), |a, b| [a, ' ', b, ' ']);
    chars = rewrite(&chars, |a, b| is_point(a) && !digit(b), |a, b| [' ', a, ' ', b]);
    chars = rewrite(&chars, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' ']);
    super::words::one_space(&chars.iter().collect::<String>())
}

fn is_parting(c: char) -> bool {
    matches!(c, '{'..='~' | '['..='`' | '!'..='&' | '('..='+' | ':'..='@' | '/')
}

/// Replace every pair that `matches`, from left to right and without overlap.
fn rewrite(
    chars: &[char],
    matches: impl Fn(char, char) -> bool,
    replacement: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut out = Vec::with_capacity(chars.len() + 8);
    let mut at = 0;
    while at < chars.len() {
        match chars.get(at + 1) {
            Some(&next) if matches(chars[at], next) => {
                out.extend(replacement(chars[at], next));
                at += 2;
            }
            _ => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_part_at_punctuation_and_not_inside_numbers() {
        assert_eq!(
            tokenize_13a("It's 1,234.5 km (ca. 3-4 h), well-known."),
            "It's 1,234.5 km ( ca . 3 - 4 h ) , well-known ."
        );
        assert_eq!(tokenize_13a("a &amp; b &lt;c&gt; hyphen-\nated\nline"), "a & b < c > hyphenated line");
        assert_eq!(tokenize_13a(" \n"), "");
    }

    #[test]
    fn a_score_is_that_of_the_summed_counts_and_not_the_mean_of_scores() {
        let pairs =
            [("the cat sat on the mat", "the cat sat on a mat"), ("hello there world again", "hello")];
        let mut corpus = BleuCounts::default();
        for (expected, output) in pairs {
            corpus += BleuCounts::of(expected, output);
        }
        // Precisions 6/7, 3/5, 2/4, 1/3; 7 tokens of 10: BP = exp(1 - 10/7).
        let expected = 100.0 * (1.0 - 10.0 / 7.0f64).exp() * (6.0 / 7.0 * 0.6 * 0.5 / 3.0f64).powf(0.25);
        assert!((corpus.corpus_bleu() - expected).abs() < 1e-9, "{}", corpus.corpus_bleu());
        let one = BleuCounts::of(pairs[1].0, pairs[1].1);
        assert_eq!(one.corpus_bleu(), 0.0);
        assert!((one.sentence_bleu() - 100.0 * (-3.0f64).exp()).abs() < 1e-9);
        assert_eq!(one.times(3).correct[0], 3);
    }
}
