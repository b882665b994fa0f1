//! That what was written is what was trained, and that it still does what was trained.
//!
//! Two questions, two limits. *Is it the same model?* The divergence of its next-token distributions from those of base + adapter, held
//! against what rounding explains; for formats that round to 32 or 16 bits. *Does it keep what training gave?* The share of the adapter's
//! gain on the supervised tokens that survived, for every format: rounding may be small beside the weights and large beside the adapter.

use crate::{Error, Result};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How near a written model can be to the trained one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// Nothing but rounding to this type lies between them, so their divergence is bounded ([`kl_limit`]).
    Rounded(DType),
    /// Weights are coded in fewer bits: the gain is held to a limit, and where there is none the divergence to a wide one.
    Quantized,
}

impl From<DType> for Exactness {
    fn from(dtype: DType) -> Self {
        Self::Rounded(dtype)
    }
}

impl Exactness {
    /// The largest mean divergence that can be explained, in nats; `None` where the gain tells more.
    pub fn kl_limit(self, gain: &Gain) -> Option<f64> {
        match self {
            Self::Rounded(dtype) => Some(kl_limit(dtype)),
            Self::Quantized => gain.kept.is_none().then_some(QUANTIZED_KL_LIMIT),
        }
    }
}

/// In nats, wide on purpose: Q4_0 costs a tiny model of random weights 0.017, a forgotten adapter costs `lora_all` 2.0.
const QUANTIZED_KL_LIMIT: f64 = 1.0;

/// How far a written model is from the trained one, and how much of what the adapter gained it keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportProof {
    /// Token positions at which the distributions were compared.
    pub positions: usize,
    /// The largest difference of two logits.
    pub max_abs_diff: f64,
    /// Mean over the positions of `KL(trained || written)`, in nats.
    pub mean_kl: f64,
    /// Share of the positions at which both find the same token likeliest.
    pub top1_agreement: f64,
    /// The largest mean divergence that rounding to the written type explains; `None` for formats that quantise,
    /// as long as there is a gain to hold them to.
    pub kl_limit: Option<f64>,
    /// What became of the adapter's gain.
    pub gain: Gain,
    /// The least share of the gain that passes; `None` holds it to nothing.
    pub min_gain_kept: Option<f64>,
}

/// The losses of base, trained and written model on the same supervised tokens, and the share of the gain that was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// Supervised tokens.
    pub tokens: usize,
    /// Mean loss of the base, in nats a token; `None` where there is no base, as after training from the start.
    pub loss_base: Option<f64>,
    /// Mean loss of the base with its adapter.
    pub loss_trained: f64,
    /// Mean loss of the model that was read back.
    pub loss_written: f64,
    /// Standard error of `loss_base - loss_trained`, over sequences.
    pub standard_error: Option<f64>,
    /// `(loss_base - loss_written) / (loss_base - loss_trained)`: 1 keeps all, 0 is the base again. `None` when there is no gain to keep: no
    /// base, or a difference that is not positive or no larger than twice its standard error.
    pub kept: Option<f64>,
}

/// A gain below this is nothing, whatever its error: losses of two ways to compute the same model differ by about as much.
const LEAST_GAIN: f64 = 1e-4;

impl Gain {
    /// The share from losses per supervised token, a list for each sequence; all three run over the same tokens.
    ///
    /// The standard error is that of a ratio estimate over sequences, since tokens of one text go together; of a single sequence,
    /// over its tokens.
    pub fn of(base: Option<&[Vec<f64>]>, trained: &[Vec<f64>], written: &[Vec<f64>]) -> Self {
        let (loss_trained, tokens) = mean(trained);
        let (loss_written, _) = mean(written);
        let mut gain = Self { tokens, loss_trained, loss_written, ..Self::default() };
        let Some(base) = base.filter(|_| tokens > 0) else { return gain };
        let loss_base = mean(base).0;
        let difference = loss_base - loss_trained;
        let error = standard_error(base, trained, difference, tokens);
        gain.loss_base = Some(loss_base);
        gain.standard_error = Some(error);
        if difference > LEAST_GAIN && difference > 2.0 * error {
            gain.kept = Some((loss_base - loss_written) / difference);
        }
        gain
    }
}

/// The mean over all tokens and their number; 0 of none.
fn mean(losses: &[Vec<f64>]) -> (f64, usize) {
    let tokens: usize = losses.iter().map(Vec::len).sum();
    let sum: f64 = losses.iter().flatten().sum();
    (if tokens == 0 { 0.0 } else { sum / tokens as f64 }, tokens)
}

fn standard_error(base: &[Vec<f64>], trained: &[Vec<f64>], mean: f64, tokens: usize) -> f64 {
    let differences = base.iter().zip(trained).map(|(b, t)| -> Vec<f64> {
        // What a token gains beyond the mean.
        b.iter().zip(t).map(|(b, t)| b - t - mean).collect()
    });
    let by_sequence: Vec<Vec<f64>> = differences.filter(|tokens| !tokens.is_empty()).collect();
    let units: Vec<f64> = match by_sequence.as_slice() {
        [one] => one.clone(),
        many => many.iter().map(|tokens| tokens.iter().sum()).collect(),
    };
    let n = units.len() as f64;
    if n < 2.0 {
        return f64::INFINITY;
    }
    (n / (n - 1.0) * units.iter().map(|e| e * e).sum::<f64>()).sqrt() / tokens as f64
}

impl ExportProof {
    /// The same proof, held to keep at least this share of the gain.
    #[must_use]
    pub fn holding(self, min_gain_kept: f64) -> Self {
        Self { min_gain_kept: Some(min_gain_kept), ..self }
    }

    /// Whether the difference is one of rounding, as far as the format is held to that. A NaN never passes.
    pub fn is_the_trained_model(&self) -> bool {
        let finite = self.max_abs_diff.is_finite() && self.mean_kl.is_finite();
        finite
            && self.gain.loss_written.is_finite()
            && self.kl_limit.is_none_or(|limit| self.mean_kl <= limit)
    }

    /// Whether enough of the gain is kept; where there is no gain to keep, or nothing is asked, it is.
    pub fn keeps_the_gain(&self) -> bool {
        match (self.gain.kept, self.min_gain_kept) {
            (Some(kept), Some(least)) => kept >= least,
            _ => true,
        }
    }

    /// Whether both hold.
    pub fn passed(&self) -> bool {
        self.is_the_trained_model() && self.keeps_the_gain()
    }

    /// The proof, or an error that holds it.
    ///
    /// # Errors
    /// When it is not the trained model, which is a fault of ours; then when too little of the gain is kept, which another type or format
    /// can mend.
    pub fn into_result(self) -> Result<Self> {
        if !self.is_the_trained_model() {
            return Err(Error::Proof(Box::new(self)));
        }
        if !self.keeps_the_gain() {
            return Err(Error::GainLost(Box::new(self)));
        }
        Ok(self)
    }
}

impl fmt::Display for ExportProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mean KL {:.2e} nats", self.mean_kl)?;
        if let Some(limit) = self.kl_limit {
            write!(f, " (limit {limit:.0e})")?;
        }
        write!(
            f,
            ", largest logit difference {:.2e}, same likeliest token at {:.1} % of {} positions; {}",
            self.max_abs_diff,
            100.0 * self.top1_agreement,
            self.positions,
            self.gain
        )?;
        match (self.gain.kept, self.min_gain_kept) {
            (Some(_), Some(least)) => write!(f, " (at least {least})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, loss_trained, loss_written, .. } = self;
        match (self.loss_base, self.kept) {
            (Some(base), Some(kept)) => write!(
                f,
                "loss {base:.4} (base) -> {loss_trained:.4} (trained), written {loss_written:.4} on {tokens} tokens: gain kept {kept:.3}"
            ),
            (Some(base), None) => write!(
                f,
                "loss {base:.4} (base) -> {loss_trained:.4} (trained), written {loss_written:.4} on {tokens} tokens: no gain to keep"
            ),
            (None, _) => {
                write!(f, "loss {loss_trained:.4} (trained), written {loss_written:.4} on {tokens} tokens")
            }
        }
    }
}

/// The mean divergence that rounding the weights explains, in nats.
///
/// f32: only the order of sums differs, logits by about 1e-5, and a divergence is about half the variance of that. bf16 rounds each
/// weight by up to 2^-9 of itself, f16 by 2^-12: over the golden adapter `lora_all` that costs 1.5e-4 and 2.2e-6 nats (a forgotten
/// adapter: 2.0). The limits leave room for deeper and sharper models.
pub fn kl_limit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 5e-3,
        DType::F16 => 1e-4,
        _ => 1e-6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_diagnostics::{Diagnose, ExitCode};

    fn proof(kept: Option<f64>) -> ExportProof {
        let gain = Gain { tokens: 1, loss_base: Some(2.0), loss_trained: 1.0, kept, ..Gain::default() };
        let (positions, top1_agreement) = (1, 1.0);
        ExportProof { positions, top1_agreement, kl_limit: Some(1e-6), gain, ..ExportProof::default() }
    }

    #[test]
    fn a_nan_never_passes() {
        let good = proof(Some(1.0));
        assert!(good.passed());
        assert!(!ExportProof { mean_kl: f64::NAN, ..good }.passed());
        assert!(!ExportProof { max_abs_diff: f64::NAN, ..good }.passed());
        assert!(!ExportProof { mean_kl: f64::NAN, kl_limit: None, ..good }.passed());
        let no_loss = Gain { loss_written: f64::NAN, ..good.gain };
        assert!(!ExportProof { gain: no_loss, ..good }.passed());
        let far = ExportProof { mean_kl: 1e-3, ..good }.into_result().unwrap_err();
        assert!(far.to_string().contains("1.00e-3") && far.exit_code() == ExitCode::Fault, "{far}");
        assert!(ExportProof { mean_kl: 1e-3, kl_limit: None, ..good }.passed());
    }

    #[test]
    fn quantised_without_a_gain_is_held_to_a_divergence() {
        let limit = |kept| Exactness::Quantized.kl_limit(&Gain { kept, ..Gain::default() });
        assert_eq!((limit(None), limit(Some(1.0))), (Some(1.0), None));
        assert_eq!(Exactness::from(DType::F16).kl_limit(&Gain::default()), Some(1e-4));
    }

    #[test]
    fn a_lost_gain_fails_a_gate_and_says_what_to_try() {
        assert!(proof(Some(0.9)).holding(0.9).passed());
        assert!(proof(None).holding(0.9).passed() && proof(Some(0.1)).passed());
        let lost = proof(Some(0.5)).holding(0.9).into_result().unwrap_err();
        assert_eq!(lost.exit_code(), ExitCode::GateFailed);
        assert!(lost.to_string().contains("gain kept 0.500 (at least 0.9)"), "{lost}");
        assert!(lost.hint().unwrap().contains("export.min_gain_kept"));
        let nan = proof(Some(f64::NAN)).holding(0.9);
        assert!(!nan.keeps_the_gain());
    }

    #[test]
    fn the_share_is_that_of_the_formula() {
        let base = vec![vec![2.0, 2.2], vec![1.9, 2.1, 2.0]];
        let trained = vec![vec![1.0, 1.1], vec![1.0, 1.0, 0.9]];
        let written = vec![vec![1.25, 1.35], vec![1.25, 1.25, 1.15]];
        let gain = Gain::of(Some(&base), &trained, &written);
        assert_eq!(gain.tokens, 5);
        assert!((gain.loss_base.unwrap() - 2.04).abs() < 1e-12 && (gain.loss_trained - 1.0).abs() < 1e-12);
        assert!((gain.kept.unwrap() - 0.79 / 1.04).abs() < 1e-12, "{gain}");
        assert_eq!(Gain::of(Some(&base), &trained, &trained).kept, Some(1.0));
        assert_eq!(Gain::of(Some(&base), &trained, &base).kept, Some(0.0));
        assert_eq!(Gain::of(None, &trained, &written).kept, None);
    }

    #[test]
    fn a_gain_that_cannot_be_told_from_nothing_is_none() {
        // Residuals of the two sequences against the mean gain 0.5: +1 and -1, so the error is sqrt(2 / 1 * 2) / 2 = 1.
        let noisy = Gain::of(Some(&[vec![2.5], vec![0.5]]), &[vec![1.0], vec![1.0]], &[vec![1.0], vec![1.0]]);
        assert_eq!((noisy.standard_error, noisy.kept), (Some(1.0), None));
        let worse = Gain::of(Some(&[vec![1.0, 1.0]]), &[vec![2.0, 2.1]], &[vec![2.0, 2.1]]);
        assert_eq!(worse.kept, None);
        assert!(worse.to_string().ends_with("no gain to keep"), "{worse}");
        let one_token = Gain::of(Some(&[vec![3.0]]), &[vec![1.0]], &[vec![1.0]]);
        assert_eq!((one_token.standard_error, one_token.kept), (Some(f64::INFINITY), None));
    }
}
