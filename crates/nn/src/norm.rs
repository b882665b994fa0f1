//! Root-mean-square layer norm.

use crate::{Parameter, ParameterKind, Result, ops};
use candle_core::{Tensor, Var};

/// `y = x / sqrt(mean(x^2) + eps) * (offset + w)` (Zhang and Sennrich 2019); Gemma's files store `w - 1`, offset 1.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    path: String,
    weight: Tensor,
    trainable: Option<Var>,
    eps: f64,
    offset: f32,
}

impl RmsNorm {
    /// A norm named as in the checkpoint (without `.weight`), gain `[H]` in f32.
    pub fn new(path: impl Into<String>, weight: Tensor, eps: f64, offset: f32) -> Self {
        Self { path: path.into(), weight, trainable: None, eps, offset }
    }

    /// The path in the checkpoint, without `.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The gain, f32 `[H]`, outside any graph.
    pub fn weight(&self) -> Tensor {
        self.trainable.as_ref().map_or_else(|| self.weight.clone(), Var::as_detached_tensor)
    }

    /// Put another gain of the same width in place, frozen.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn set_weight(&mut self, weight: Tensor) -> Result<()> {
        if weight.dims() != self.weight.dims() {
            candle_core::bail!(
                "`{}` has a gain of {:?}, not {:?}",
                self.path,
                self.weight.dims(),
                weight.dims()
            )
        }
        self.weight = weight;
        self.trainable = None;
        Ok(())
    }

    /// Train the gain.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Parameter> {
        let var = match &self.trainable {
            Some(var) => var.clone(),
            None => self.trainable.insert(Var::from_tensor(&self.weight)?).clone(),
        };
        Ok(Parameter { name: format!("{}.weight", self.path), kind: ParameterKind::Norm, var })
    }

    /// `[T, H] -> [T, H]`, f32; also `[T, n * H]` as n norms of width H a row (per-head norms).
    ///
    /// # Errors
    /// What the arithmetic says.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.trainable {
            Some(var) => ops::rms_norm_trainable(x, var, self.eps, self.offset),
            None => ops::rms_norm(x, &self.weight, self.eps, self.offset),
        }
        .map_err(|e| e.context(format!("in `{}`", self.path)))
    }
}
