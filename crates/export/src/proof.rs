//! That what was written is what was trained.

use crate::error::doing;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Serialize;
use std::fmt;
use taper_models::{CausalLm, forward_logits};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32, with_f32_activations};

/// The logits of the trained model on some token sequences, kept so that it can be dropped before the written one is loaded.
#[derive(Debug, Clone)]
pub struct ReferenceLogits {
    pub(crate) sequences: Vec<Vec<u32>>,
    pub(crate) logits: Vec<Tensor>,
}

impl ReferenceLogits {
    /// Run the trained model, base with adapter, over the sequences. They take `4 V` bytes a token.
    ///
    /// # Errors
    /// When there is no token, or the arithmetic fails.
    pub fn of(model: &dyn CausalLm, sequences: Vec<Vec<u32>>) -> Result<Self> {
        let sequences: Vec<Vec<u32>> = sequences.into_iter().filter(|ids| !ids.is_empty()).collect();
        if sequences.is_empty() {
            return Err(Error::NothingToProve);
        }
        let logits = sequences.iter().map(|ids| logits(model, ids)).collect::<Result<_>>()?;
        Ok(Self { sequences, logits })
    }

    /// Hold the model that was read back against these logits; `dtype` is the type it was written in.
    ///
    /// # Errors
    /// When the arithmetic fails. A difference is no error here: see [`ExportProof::into_result`].
    pub fn compare(&self, written: &dyn CausalLm, dtype: DType) -> Result<ExportProof> {
        let mut proof = ExportProof { kl_limit: kl_limit(dtype), ..ExportProof::default() };
        let (mut kl_sum, mut agreed) = (0.0, 0usize);
        for (ids, reference) in self.sequences.iter().zip(&self.logits) {
            let (_, v) = reference.dims2().map_err(doing("read logits"))?;
            let p = to_vec_f32(reference).map_err(doing("read logits"))?;
            let q = to_vec_f32(&logits(written, ids)?).map_err(doing("read logits"))?;
            for (p, q) in p.chunks_exact(v).zip(q.chunks_exact(v)) {
                proof.positions += 1;
                kl_sum += kl_divergence(p, q);
                agreed += usize::from(argmax(p) == argmax(q));
                for (a, b) in p.iter().zip(q) {
                    // A NaN must not hide behind `max`.
                    let difference = f64::from((a - b).abs());
                    if difference.is_nan() || difference > proof.max_abs_diff {
                        proof.max_abs_diff = difference;
                    }
                }
            }
        }
        proof.mean_kl = kl_sum / proof.positions as f64;
        proof.top1_agreement = agreed as f64 / proof.positions as f64;
        Ok(proof)
    }
}

/// How far a written model is from the trained one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ExportProof {
    /// Token positions that were compared.
    pub positions: usize,
    /// The largest difference of two logits.
    pub max_abs_diff: f64,
    /// Mean over the positions of `KL(trained || written)`, in nats.
    pub mean_kl: f64,
    /// Share of the positions at which both find the same token likeliest.
    pub top1_agreement: f64,
    /// The largest mean divergence that rounding to the written type explains.
    pub kl_limit: f64,
}

impl ExportProof {
    /// Whether the difference is one of rounding. A NaN is not.
    pub fn passed(&self) -> bool {
        self.mean_kl <= self.kl_limit && self.max_abs_diff.is_finite()
    }

    /// The proof, or an error that holds it.
    ///
    /// # Errors
    /// When it did not pass.
    pub fn into_result(self) -> Result<Self> {
        if self.passed() { Ok(self) } else { Err(Error::Proof(self)) }
    }
}

impl fmt::Display for ExportProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mean KL {:.2e} nats (limit {:.0e}), largest logit difference {:.2e}, same likeliest token at {:.1} % of {} positions",
            self.mean_kl,
            self.kl_limit,
            self.max_abs_diff,
            100.0 * self.top1_agreement,
            self.positions
        )
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

pub(crate) fn logits(model: &dyn CausalLm, ids: &[u32]) -> Result<Tensor> {
    let layout = SequenceLayout::single(ids.len());
    let mut ctx = ForwardContext::new(&layout);
    // In f32 whatever the model computes in: rounding would hide what the proof is to find.
    let logits = with_f32_activations(|| forward_logits(model, ids, &mut ctx));
    logits.map_err(doing("run the model for the proof"))
}

/// `sum p ln(p / q)` of the softmaxes of two rows of logits, in f64.
pub(crate) fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (f64::from(a) - log_p, f64::from(b) - log_q);
            a.exp() * (a - b)
        })
        .sum()
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln()
}

pub(crate) fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_formula() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
        let p = [3f32.ln(), 0.0];
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kl_divergence(&p, &[7.0, 7.0]) - expected).abs() < 1e-7);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        assert!(kl_divergence(&[f32::NAN, 0.0], &p).is_nan());
    }

    #[test]
    fn a_nan_never_passes() {
        let good =
            ExportProof { positions: 1, kl_limit: 1e-6, top1_agreement: 1.0, ..ExportProof::default() };
        assert!(good.passed());
        assert!(!ExportProof { mean_kl: f64::NAN, ..good }.passed());
        assert!(!ExportProof { max_abs_diff: f64::NAN, ..good }.passed());
        assert!(
            ExportProof { mean_kl: 1e-3, ..good }.into_result().unwrap_err().to_string().contains("1.00e-3")
        );
    }
}
