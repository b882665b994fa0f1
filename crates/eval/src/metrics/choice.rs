//! Multiple choice by log-likelihood: the answer is the choice that the model finds most likely.

use serde::{Deserialize, Serialize};

/// What the log-likelihood of a choice is divided by, so that long choices are not put at a disadvantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthNorm {
    /// Nothing: lm-evaluation-harness's `acc`.
    None,
    /// The choice's bytes in UTF-8: lm-evaluation-harness's `acc_bytes`.
    #[default]
    Bytes,
    /// The choice's characters: lm-evaluation-harness's `acc_norm`. For ASCII it is the same as bytes.
    Characters,
}

impl LengthNorm {
    /// How accuracy over [`chosen`] is computed.
    pub fn signature(self) -> String {
        let (name, norm) = match self {
            Self::None => ("acc", "none"),
            Self::Bytes => ("acc_norm", "bytes"),
            Self::Characters => ("acc_norm", "characters"),
        };
        format!("{name}|norm:{norm}|ties:first|version:1")
    }
}

/// The index of the most likely choice: the first one where several are equally likely. `None` without choices, when the numbers of
/// texts and log-likelihoods differ, when one is not a number, or when a text that is divided by has no length.
///
/// `log_likelihoods` are sums over the tokens of each choice's text, in any base.
pub fn chosen(texts: &[&str], log_likelihoods: &[f64], norm: LengthNorm) -> Option<usize> {
    if texts.len() != log_likelihoods.len() {
        return None;
    }
    let mut best: Option<(usize, f64)> = None;
    for (index, (text, likelihood)) in texts.iter().zip(log_likelihoods).enumerate() {
        let length = match norm {
            LengthNorm::None => 1.0,
            LengthNorm::Bytes => text.len() as f64,
            LengthNorm::Characters => text.chars().count() as f64,
        };
        let score = likelihood / length;
        if length == 0.0 || score.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, most)| score > most) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// The share of its probability among the choices that the model gives to one of them: softmax over the log-likelihoods (in nats).
/// `None` where there is no such choice or no finite log-likelihood.
pub fn probability_of(choice: usize, log_likelihoods: &[f64]) -> Option<f64> {
    let most = log_likelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() || log_likelihoods.iter().any(|l| l.is_nan()) {
        return None;
    }
    let total: f64 = log_likelihoods.iter().map(|l| (l - most).exp()).sum();
    log_likelihoods.get(choice).map(|l| (l - most).exp() / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_choice_wins_only_by_its_length() {
        let (texts, likelihoods) = (["no", "certainly not", "né"], [-4.0, -13.0, -4.8]);
        assert_eq!(chosen(&texts, &likelihoods, LengthNorm::None), Some(0));
        assert_eq!(chosen(&texts, &likelihoods, LengthNorm::Bytes), Some(1));
        assert_eq!(chosen(&["né", "abc"], &[-2.4, -3.0], LengthNorm::Bytes), Some(0));
        assert_eq!(chosen(&["né", "abc"], &[-2.4, -3.0], LengthNorm::Characters), Some(1));
        assert_eq!(chosen(&["a", "b"], &[-1.0, -1.0], LengthNorm::Bytes), Some(0));
    }

    #[test]
    fn what_cannot_be_scored_is_not_a_choice() {
        assert_eq!(chosen(&[], &[], LengthNorm::None), None);
        assert_eq!(chosen(&["a"], &[f64::NAN], LengthNorm::None), None);
        assert_eq!(chosen(&["", "a"], &[-1.0, -2.0], LengthNorm::Bytes), None);
        assert_eq!(chosen(&["a", "b"], &[f64::NEG_INFINITY, -9.0], LengthNorm::Bytes), Some(1));
        assert!((probability_of(1, &[-1000.0, -1000.0]).unwrap() - 0.5).abs() < 1e-15);
        assert_eq!(probability_of(0, &[f64::NEG_INFINITY]), None);
        assert_eq!(probability_of(2, &[0.0]), None);
    }
}
