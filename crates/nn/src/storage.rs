//! From candle tensors to the plain slices that kernels take, and back.

use crate::Result;
use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Storage, StorageRef, Tensor, Var, bail,
};
use std::cell::Cell;
use taper_kernels::floats::{self, Floats, FloatsMut};

/// A tensor whose elements are lent for as long as this lives.
pub(crate) struct Lent<'a> {
    tensor: &'a Tensor,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Lent<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { tensor, storage, layout }
    }

    /// The tensor itself.
    pub(crate) fn tensor(&self) -> &'a Tensor {
        self.tensor
    }

    /// The elements of a contiguous f32 CPU tensor.
    pub(crate) fn f32(&self) -> Result<&[f32]> {
        match self.floats()? {
            Floats::F32(values) => Ok(values),
            Floats::BF16(_) => bail!("expected a tensor in f32, got bf16"),
        }
    }

    /// The elements of a contiguous f32 or bf16 CPU tensor.
    pub(crate) fn floats(&self) -> Result<Floats<'_>> {
        let Storage::Cpu(storage) = &*self.storage else { bail!("expected a tensor on the CPU") };
        let Some((start, end)) = self.layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {:?}", self.layout.stride())
        };
        match storage {
            CpuStorage::F32(values) => Ok(Floats::F32(&values[start..end])),
            CpuStorage::BF16(values) => Ok(Floats::BF16(&values[start..end])),
            other => bail!(
                "expected a tensor in f32 or bf16, got {:?}",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    }
}

/// Lend the elements of a contiguous f32 tensor: a copy of them, where it lies on a device.
///
/// # Errors
/// When the tensor is not f32 or not contiguous.
pub fn with_f32<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return crate::cuda::read_f32(tensor, read);
    }
    Ok(read(Lent::new(tensor).f32()?))
}

/// Change the elements of a variable where they lie. Nothing recorded over it may be alive that still has to be differentiated.
///
/// # Errors
/// When the variable is not f32 or not contiguous.
pub fn update_f32(var: &Var, change: impl FnOnce(&mut [f32])) -> Result<()> {
    update(var.as_tensor(), change)
}

/// The same for a tensor that nobody else reads.
pub(crate) fn update(tensor: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return crate::cuda::change_f32(tensor, change);
    }
    tensor.inplace_op1(&Update(Cell::new(Some(change))))
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
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return to_vec_f32(&crate::cuda::to_host(tensor)?);
    }
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
}

/// A tensor in `dtype` (f32 or bf16) whose elements a kernel writes.
pub(crate) fn filled(
    dtype: DType,
    shape: impl Into<Shape>,
    fill: impl FnOnce(FloatsMut<'_>) -> Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    if dtype == DType::BF16 {
        let mut buffer: Vec<half::bf16> = floats::buffer(shape.elem_count());
        fill(FloatsMut::BF16(&mut buffer))?;
        return Tensor::from_vec(buffer, shape, &Device::Cpu);
    }
    filled_f32(shape, |buffer| fill(FloatsMut::F32(buffer)))
}

/// A tensor in f32 whose elements a kernel writes.
pub(crate) fn filled_f32(
    shape: impl Into<Shape>,
    fill: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    let mut buffer = floats::buffer(shape.elem_count());
    fill(&mut buffer)?;
    Tensor::from_vec(buffer, shape, &Device::Cpu)
}

/// Zeros in f32 on a device.
pub(crate) fn zeros(shape: &Shape, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(place) = crate::cuda::Place::on(device) {
        return place.zeros(shape);
    }
    let _ = device;
    filled_f32(shape.clone(), |values| {
        values.fill(0.0);
        Ok(())
    })
}

/// What a forward leaves for its backward, where it was computed. On the host a plain buffer: a tensor's own bookkeeping adds up over the experts of a
/// model.
#[derive(Debug)]
pub(crate) enum Kept {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Device(Tensor),
}

impl Kept {
    pub(crate) fn host(&self) -> Result<&[f32]> {
        match self {
            Self::Host(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Self::Device(_) => bail!("a statistic on a device for a backward on the host"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> Option<&Tensor> {
        match self {
            Self::Host(_) => None,
            Self::Device(tensor) => Some(tensor),
        }
    }
}
