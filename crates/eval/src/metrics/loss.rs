//! What the losses of given tokens say of a text. Losses are natural logarithms (nats).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// `exp(loss_sum / tokens)`; losses in nats. `None` without a token.
pub fn perplexity(loss_sum: f64, tokens: usize) -> Option<f64> {
    (tokens > 0).then(|| (loss_sum / tokens as f64).exp())
}

/// The losses of one text, or those of several summed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LossSum {
    /// Sum of the losses of the scored tokens, in nats.
    pub nats: f64,
    /// Scored tokens.
    pub tokens: u64,
    /// Bytes of the text that these tokens stand for, in UTF-8.
    pub bytes: u64,
}

impl LossSum {
    /// The losses of one text of `bytes` bytes.
    pub fn of(losses: &[f32], bytes: usize) -> Self {
        Self {
            nats: losses.iter().map(|loss| f64::from(*loss)).sum(),
            tokens: losses.len() as u64,
            bytes: bytes as u64,
        }
    }

    /// This sum `weight` times, as a resample of a bootstrap needs it.
    #[must_use]
    pub fn times(self, weight: u32) -> Self {
        let count = u64::from(weight);
        Self { nats: self.nats * f64::from(weight), tokens: self.tokens * count, bytes: self.bytes * count }
    }

    /// `exp(nats / tokens)`: comparable between models of one tokenizer only. Of summed losses it is the corpus value, which is
    /// not the mean of the texts' own. `None` without a token.
    pub fn perplexity(&self) -> Option<f64> {
        perplexity(self.nats, self.tokens as usize)
    }

    /// `nats / (bytes ln 2)`: comparable between models of different tokenizers. `None` without a byte.
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.nats / (self.bytes as f64 * std::f64::consts::LN_2))
    }
}

impl AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
        self.bytes += other.bytes;
    }
}

/// How [`LossSum::perplexity`] computes.
pub fn perplexity_signature() -> String {
    "perplexity|per:token|base:e|corpus:sum|version:1".into()
}

/// How [`LossSum::bits_per_byte`] computes.
pub fn bits_per_byte_signature() -> String {
    "bits_per_byte|bytes:utf-8|corpus:sum|version:1".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_is_the_exponential_of_the_mean_loss() {
        assert_eq!(perplexity(0.0, 4), Some(1.0));
        // Uniform over 8: each token costs ln 8.
        assert!((perplexity(3.0 * 8f64.ln(), 3).unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(perplexity(0.0, 0), None);
    }

    #[test]
    fn long_texts_count_more_than_short_ones() {
        let mut all = LossSum::of(&[1.0, 1.0, 1.0], 12);
        all += LossSum::of(&[3.0], 2);
        assert!((all.perplexity().unwrap() - 1.5f64.exp()).abs() < 1e-12);
        assert!((all.bits_per_byte().unwrap() - 6.0 / (14.0 * std::f64::consts::LN_2)).abs() < 1e-12);
        assert_eq!(all.times(2).perplexity(), all.perplexity());
        assert_eq!(LossSum::of(&[], 0).bits_per_byte(), None);
    }
}
