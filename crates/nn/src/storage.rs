//! From candle tensors to the plain slices that kernels take, and back.

use crate::Result;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, StorageRef, Tensor, Var, bail};
use std::cell::Cell;

/// The elements of a contiguous f32 storage in a custom op.
pub(crate) fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got {:?}", layout.stride())
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A tensor whose elements are lent for as long as this lives.
pub(crate) struct Lent<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Lent<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// The elements of a contiguous f32 CPU tensor.
    pub(crate) fn f32(&self) -> Result<&[f32]> {
        let Storage::Cpu(storage) = &*self.storage else { bail!("expected a tensor on the CPU") };
        f32_slice(storage, self.layout)
    }
}

/// Lend the elements of a contiguous f32 CPU tensor.
///
/// # Errors
/// When the tensor is not f32, not contiguous, or not on the CPU.
pub fn with_f32<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    Ok(read(Lent::new(tensor).f32()?))
}

/// Change the elements of a variable where they lie. No graph over it may be alive that still has to be differentiated.
///
/// # Errors
/// When the variable is not f32, not contiguous, or not on the CPU.
pub fn update_f32(var: &Var, update: impl FnOnce(&mut [f32])) -> Result<()> {
    var.inplace_op1(&Update(Cell::new(Some(update))))
}

struct Update<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("expected an f32 variable") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous variable, got {:?}", layout.stride())
        };
        if let Some(update) = self.0.take() {
            update(&mut values[start..end]);
        }
        Ok(())
    }
}

/// The elements of any tensor as f32, row-major.
///
/// # Errors
/// What the conversion says.
pub fn to_vec_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
}

/// A buffer that a kernel fills, as the storage of a custom op's result.
pub(crate) fn filled(len: usize, fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<CpuStorage> {
    let mut buffer = vec![0f32; len];
    fill(&mut buffer)?;
    Ok(CpuStorage::F32(buffer))
}

/// A buffer that a kernel fills, as a tensor of the shape of `like`.
pub(crate) fn filled_like(like: &Tensor, fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Tensor> {
    let mut buffer = vec![0f32; like.elem_count()];
    fill(&mut buffer)?;
    Tensor::from_vec(buffer, like.shape(), like.device())
}
