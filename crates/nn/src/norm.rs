//! Root-mean-square layer norm.

use crate::{Parameter, ParameterKind, Result, ops};
use candle_core::{DType, Tensor, Var};
use std::cell::Cell;

/// `y = x / sqrt(mean(x^2) + eps) * (offset + w)` (Zhang and Sennrich 2019); Gemma's files store `w - 1`, offset 1.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    path: String,
    weight: Tensor,
    trainable: Option<Var>,
    eps: f64,
    offset: f32,
    output: DType,
}

thread_local! {
    static IN_F32: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with all activations in f32, whatever the norms of a model say: for comparisons that rounding would hide.
pub fn with_f32_activations<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_F32.set(self.0);
        }
    }
    let _restore = Restore(IN_F32.replace(true));
    body()
}

impl RmsNorm {
    /// A norm named as in the checkpoint (without `.weight`), gain `[H]` in f32.
    pub fn new(path: impl Into<String>, weight: Tensor, eps: f64, offset: f32) -> Self {
        Self { path: path.into(), weight, trainable: None, eps, offset, output: DType::F32 }
    }

    /// Give bf16 for inputs in f32, so that what follows computes in bf16; or f32, as at first. Inputs in bf16 give bf16.
    pub fn set_output_dtype(&mut self, dtype: DType) {
        self.output = dtype;
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

    /// `[T, H] -> [T, H]`; also `[T, n * H]` as n norms of width H a row (per-head norms).
    ///
    /// # Errors
    /// What the arithmetic says.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let output = if IN_F32.get() || x.dtype() == DType::BF16 { x.dtype() } else { self.output };
        match &self.trainable {
            Some(var) => ops::rms_norm_trainable(x, var, self.eps, self.offset, output),
            None => ops::rms_norm(x, &self.weight, self.eps, self.offset, output),
        }
        .map_err(|e| e.context(format!("in `{}`", self.path)))
    }
}
