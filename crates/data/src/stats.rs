//! How large a dataset is, in tokens.

use crate::tokenize::TokenizedExample;
use serde::Serialize;
use std::fmt;

/// Counts of a tokenised dataset. Lengths are in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct DatasetStats {
    /// Examples.
    pub examples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens that are learned.
    pub supervised_tokens: usize,
    /// `supervised_tokens / tokens`, 0 when there are none.
    pub supervised_share: f64,
    /// Shortest example.
    pub min_length: usize,
    /// Half of the examples are at most this long.
    pub p50_length: usize,
    /// Nine in ten are.
    pub p90_length: usize,
    /// Ninety-nine in a hundred are.
    pub p99_length: usize,
    /// Longest example.
    pub max_length: usize,
}

impl DatasetStats {
    /// Count.
    pub fn of(examples: &[TokenizedExample]) -> Self {
        let mut lengths: Vec<usize> = examples.iter().map(|example| example.input_ids.len()).collect();
        lengths.sort_unstable();
        let tokens: usize = lengths.iter().sum();
        let supervised_tokens = examples.iter().map(TokenizedExample::target_tokens).sum();
        Self {
            examples: examples.len(),
            tokens,
            supervised_tokens,
            supervised_share: if tokens == 0 { 0.0 } else { supervised_tokens as f64 / tokens as f64 },
            min_length: lengths.first().copied().unwrap_or(0),
            p50_length: percentile(&lengths, 50),
            p90_length: percentile(&lengths, 90),
            p99_length: percentile(&lengths, 99),
            max_length: lengths.last().copied().unwrap_or(0),
        }
    }
}

impl fmt::Display for DatasetStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, tokens, supervised_tokens, min_length, p50_length, p90_length, .. } = self;
        let share = 100.0 * self.supervised_share;
        write!(f, "{examples} examples, {tokens} tokens, {supervised_tokens} learned ({share:.0}%); ")?;
        write!(f, "length {min_length} to {} tokens, ", self.max_length)?;
        write!(f, "median {p50_length}, 90% {p90_length}, 99% {}", self.p99_length)
    }
}

/// Nearest rank: the smallest value that at least `percent` of the values do not exceed.
fn percentile(sorted: &[usize], percent: usize) -> usize {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occur() {
        let lengths: Vec<usize> = (1..=10).collect();
        assert_eq!(
            (percentile(&lengths, 50), percentile(&lengths, 90), percentile(&lengths, 99)),
            (5, 9, 10)
        );
        assert_eq!((percentile(&[7], 50), percentile(&[], 50)), (7, 0));
    }

    #[test]
    fn no_examples_have_no_share() {
        assert_eq!(DatasetStats::of(&[]), DatasetStats::default());
    }
}
