//! Cross-entropy of logits against target ids.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::storage::{update, with_f32};
use candle_core::{Tensor, bail};
use taper_kernels::cross_entropy as kernel;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::cross_entropy as device;

/// Losses of some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossEntropy {
    /// `-log softmax(logits)[target]` of each row, in nats.
    pub losses: Vec<f32>,
}

impl CrossEntropy {
    /// The sum over the rows, in f64 so that its order does not matter at f32 precision.
    pub fn sum(&self) -> f64 {
        self.losses.iter().map(|&l| f64::from(l)).sum()
    }
}

/// Losses of logits `[n, V]` against n targets.
///
/// # Errors
/// When the shapes do not fit or a target is not below V.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<CrossEntropy> {
    let v = check(logits, targets)?;
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::on(logits.device()) {
        let lent = GpuLent::new(&place, logits);
        let losses = device::cross_entropy_forward(&place, lent.f32()?, targets, v).map_err(failed)?;
        return Ok(CrossEntropy { losses });
    }
    let mut losses = vec![0f32; targets.len()];
    with_f32(logits, |logits| kernel::cross_entropy_forward(logits, targets, &mut losses, None, v))?;
    Ok(CrossEntropy { losses })
}

/// Losses, and the gradient of their **sum** with respect to the logits, `[n, V]`: `softmax(logits) - onehot(target)`.
///
/// The gradient is written over the logits: nothing else may read them any more (no op keeps its logits, but for a soft cap, for which they are
/// copied).
///
/// # Errors
/// When the shapes do not fit or a target is not below V.
pub fn cross_entropy_with_gradient(logits: Tensor, targets: &[u32]) -> Result<(CrossEntropy, Tensor)> {
    let v = check(&logits, targets)?;
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::on(logits.device()) {
        let mut losses = Vec::new();
        crate::cuda::update(&place, &logits, |logits| {
            losses = device::cross_entropy_forward_backward(&place, logits, targets, v).map_err(failed)?;
            Ok(())
        })?;
        return Ok((CrossEntropy { losses }, logits));
    }
    let mut losses = vec![0f32; targets.len()];
    update(&logits, |logits| {
        kernel::cross_entropy_forward_backward(logits, targets, &mut losses, v);
    })?;
    Ok((CrossEntropy { losses }, logits))
}

fn check(logits: &Tensor, targets: &[u32]) -> Result<usize> {
    let (n, v) = logits.dims2()?;
    if n != targets.len() {
        bail!("{n} rows of logits for {} targets", targets.len())
    }
    if let Some(id) = targets.iter().find(|id| **id as usize >= v) {
        bail!("target id {id} in a vocabulary of {v}")
    }
    Ok(v)
}
