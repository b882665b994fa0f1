//! The weight of a linear layer or an embedding: frozen as it lies, or trained.

use crate::Result;
use candle_core::{DType, Storage, Tensor, Var, bail};
use taper_kernels::gemm::WeightView;

/// A weight that is never differentiated: `[rows, columns]`, for a linear layer `[out, in]`.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    dense: Tensor,
}

impl FrozenWeight {
    /// A dense weight in f32, bf16 or f16.
    ///
    /// # Errors
    /// When it is not a matrix of one of these types.
    pub fn dense(weight: &Tensor) -> Result<Self> {
        weight.dims2()?;
        if !matches!(weight.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            bail!("a frozen weight is f32, bf16 or f16, not {:?}", weight.dtype())
        }
        // A variable's tensor would be differentiated; what is frozen is detached from every graph.
        Ok(Self { dense: weight.detach().contiguous()? })
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.dense.dims()[0], self.dense.dims()[1])
    }

    /// The type the weight is stored in.
    pub fn dtype(&self) -> DType {
        self.dense.dtype()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.dense.elem_count() * self.dense.dtype().size_in_bytes()
    }

    /// The values in f32, `[rows, columns]`.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn to_f32(&self) -> Result<Tensor> {
        self.dense.to_dtype(DType::F32)
    }

    /// The dense tensor in the type it is stored in.
    pub fn tensor(&self) -> &Tensor {
        &self.dense
    }

    /// Lend the elements to a kernel.
    pub(crate) fn with_view<R>(&self, read: impl FnOnce(WeightView<'_>) -> R) -> Result<R> {
        let (storage, layout) = self.dense.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("expected a weight on the CPU") };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous weight") };
        let view = match self.dense.dtype() {
            DType::BF16 => WeightView::BF16(&storage.as_slice()?[start..end]),
            DType::F16 => WeightView::F16(&storage.as_slice()?[start..end]),
            _ => WeightView::F32(&storage.as_slice()?[start..end]),
        };
        Ok(read(view))
    }
}

/// Frozen, or a variable in f32.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Never differentiated.
    Frozen(FrozenWeight),
    /// Trained: f32, `[rows, columns]`.
    Trainable(Var),
}

impl Weight {
    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        match self {
            Self::Frozen(weight) => weight.dims(),
            Self::Trainable(var) => (var.dims()[0], var.dims()[1]),
        }
    }

    /// The values in f32, outside any graph.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn to_f32(&self) -> Result<Tensor> {
        match self {
            Self::Frozen(weight) => weight.to_f32(),
            Self::Trainable(var) => Ok(var.as_detached_tensor()),
        }
    }

    /// Turn a frozen weight into a variable holding the same values in f32; a trainable one stays as it is.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Var> {
        let var = match self {
            Self::Trainable(var) => return Ok(var.clone()),
            Self::Frozen(weight) => Var::from_tensor(&weight.to_f32()?)?,
        };
        *self = Self::Trainable(var.clone());
        Ok(var)
    }
}
