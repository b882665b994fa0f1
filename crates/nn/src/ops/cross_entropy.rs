//! Cross-entropy of logits against target ids.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::storage::{to_vec_f32, update, with_f32};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Tensor, bail};
use taper_kernels::cross_entropy as kernel;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::cross_entropy as device;

/// Losses of some rows.
///
/// On a device they stay there until somebody asks, so that what is queued behind them need not wait.
#[derive(Debug, Clone)]
pub struct CrossEntropy(Tensor);

impl CrossEntropy {
    /// `-log softmax(logits)[target]` of each row, in nats.
    ///
    /// # Errors
    /// What the device says.
    pub fn losses(&self) -> Result<Vec<f32>> {
        to_vec_f32(&self.0)
    }

    /// The sum over the rows, in f64 so that its order does not matter at f32 precision.
    ///
    /// # Errors
    /// What the device says.
    pub fn sum(&self) -> Result<f64> {
        Ok(self.losses()?.iter().map(|&l| f64::from(l)).sum())
    }

    fn of(losses: Vec<f32>) -> Result<Self> {
        let n = losses.len();
        Tensor::from_vec(losses, n, &Device::Cpu).map(Self)
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
        let (logits, ids) = (lent.f32()?, place.upload_ids(targets)?);
        let losses = place.filled(DType::F32, targets.len(), |losses| {
            device::cross_entropy_forward(&place, logits, &ids, losses, v).map_err(failed)
        })?;
        return Ok(CrossEntropy(losses));
    }
    let mut losses = vec![0f32; targets.len()];
    with_f32(logits, |logits| kernel::cross_entropy_forward(logits, targets, &mut losses, None, v))?;
    CrossEntropy::of(losses)
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
        let ids = place.upload_ids(targets)?;
        let losses = place.filled(DType::F32, targets.len(), |losses| {
            crate::cuda::update(&place, &logits, |logits| {
                device::cross_entropy_forward_backward(&place, logits, &ids, losses, v).map_err(failed)
            })
        })?;
        return Ok((CrossEntropy(losses), logits));
    }
    let mut losses = vec![0f32; targets.len()];
    update(&logits, |logits| {
        kernel::cross_entropy_forward_backward(logits, targets, &mut losses, v);
    })?;
    Ok((CrossEntropy::of(losses)?, logits))
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
