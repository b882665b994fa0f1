//! What was measured of a candidate.

use crate::statistics::Interval;

/// A candidate, as the evaluation found it.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateFacts {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub serving: Serving,
    /// Share of right answers (0 to 1), where the metric that decides is one.
    pub accuracy: Option<f64>,
    /// 95 % of it.
    pub interval: Option<Interval>,
    /// Items that were answered.
    pub items: u64,
    /// Tokens of all of them, as its own server or tokenizer counts them.
    pub tokens: Tokens,
    /// Whether it is as good as the best, or not shown to be worse by the margin that the caller chose.
    pub is_not_worse: bool,
}

/// Where a candidate runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Serving {
    /// On a machine of one's own.
    Local {
        /// Measured seconds of an item, when the machine is as busy as it will be.
        seconds_per_item: Option<f64>,
        /// Energy of all items, where it was measured.
        joules: Option<f64>,
        /// Whether it pays for the training.
        is_trained: bool,
    },
    /// Behind an address, paid by tokens.
    Remote {
        /// The name in the price file.
        model: String,
    },
}

/// Tokens of several items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Of the prompts, all of them.
    pub input: u64,
    /// Of these, read from a cache.
    pub cached_input: u64,
    /// Of these, written to a cache.
    pub cache_write: u64,
    /// Of the answers, thoughts included.
    pub output: u64,
}
