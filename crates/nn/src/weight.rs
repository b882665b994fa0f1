//! The weight of a linear layer or an embedding: frozen as it lies, or trained.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::device::to_device;
use candle_core::{DType, Device, Storage, Tensor, Var, bail};
use std::fmt;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::{decode::GpuQuantized, linear::GpuWeight};
use taper_kernels::gemm::WeightView;
use taper_kernels::threads;
use taper_quant::QuantizedTensor;

/// A weight that is never differentiated: `[rows, columns]`, for a linear layer `[out, in]`. Cheap to clone.
///
/// Products and look-ups give and take gradients of the values that [`Self::to_f32`] tells, whatever they are coded in: forward and
/// backward decode the same numbers, a tile at a time.
#[derive(Debug, Clone)]
pub struct FrozenWeight(Repr);

#[derive(Debug, Clone)]
enum Repr {
    Dense(Tensor),
    Quantized(QuantizedTensor),
    OnDisk(OnDisk),
    #[cfg(feature = "cuda")]
    OnGpu(Box<OnGpu>),
}

/// Blocks on a device, with those on the host that they are a copy of (mostly a mapped file), for who needs the values there.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
struct OnGpu {
    host: QuantizedTensor,
    there: Arc<GpuQuantized>,
    device: Device,
}

/// A weight that is read each time it is used, and let go of afterwards.
#[derive(Clone)]
struct OnDisk {
    dims: (usize, usize),
    dtype: DType,
    read: Arc<ReadWeight>,
}

/// Reads a weight from where it lies.
pub type ReadWeight = dyn Fn() -> Result<FrozenWeight> + Send + Sync;

impl fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnDisk({:?}, {:?})", self.dims, self.dtype)
    }
}

impl OnDisk {
    fn read(&self) -> Result<FrozenWeight> {
        let weight = (self.read)()?;
        if weight.dims() != self.dims {
            bail!("a weight of {:?} was read where one of {:?} was", weight.dims(), self.dims)
        }
        Ok(weight)
    }
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
        Ok(Self(Repr::Dense(weight.detach().contiguous()?)))
    }

    /// A weight coded in blocks.
    pub fn quantized(weight: QuantizedTensor) -> Self {
        Self(Repr::Quantized(weight))
    }

    /// A weight of `dims` that `read` reads whenever it is used, so that a model takes no more memory than its largest matrix. A
    /// forward pass over such weights is right and slow; what they are for is to go through a model once, as merging does.
    ///
    /// `dtype` is what [`Self::dtype`] tells of what is read.
    pub fn on_disk(dims: (usize, usize), dtype: DType, read: Arc<ReadWeight>) -> Self {
        Self(Repr::OnDisk(OnDisk { dims, dtype, read }))
    }

    /// The blocks, of a weight in memory that is coded in them.
    pub fn as_quantized(&self) -> Option<&QuantizedTensor> {
        match &self.0 {
            Repr::Dense(_) | Repr::OnDisk(_) => None,
            Repr::Quantized(weight) => Some(weight),
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => Some(&weight.host),
        }
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        match &self.0 {
            Repr::Dense(weight) => (weight.dims()[0], weight.dims()[1]),
            Repr::Quantized(weight) => weight.dims(),
            Repr::OnDisk(weight) => weight.dims,
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => weight.host.dims(),
        }
    }

    /// Whether both are the same elements in memory, not just equal ones.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Repr::Dense(a), Repr::Dense(b)) => a.id() == b.id(),
            (Repr::Quantized(a), Repr::Quantized(b)) => a.is_same(b),
            (Repr::OnDisk(a), Repr::OnDisk(b)) => Arc::ptr_eq(&a.read, &b.read),
            #[cfg(feature = "cuda")]
            (Repr::OnGpu(a), Repr::OnGpu(b)) => Arc::ptr_eq(&a.there, &b.there),
            _ => false,
        }
    }

    /// The type that [`Self::to_dense`] gives: the one it is held in, or f32 for blocks.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Repr::Dense(weight) => weight.dtype(),
            Repr::Quantized(_) => DType::F32,
            Repr::OnDisk(weight) => weight.dtype,
            #[cfg(feature = "cuda")]
            Repr::OnGpu(_) => DType::F32,
        }
    }

    /// Bytes held: codes, and scales where there are any; none of what stays on the disk.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Repr::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Repr::Quantized(weight) => weight.bytes(),
            Repr::OnDisk(_) => 0,
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => weight.there.bytes(),
        }
    }

    /// The device that it lies on.
    pub fn device(&self) -> Device {
        match &self.0 {
            Repr::Dense(weight) => weight.device().clone(),
            Repr::Quantized(_) | Repr::OnDisk(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => weight.device.clone(),
        }
    }

    /// The same weight on a device. What is read from the disk at each use stays there.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match &self.0 {
            Repr::Dense(weight) => Self(Repr::Dense(to_device(weight, device)?)),
            #[cfg(feature = "cuda")]
            Repr::Quantized(host) if device.is_cuda() => {
                Self(Repr::OnGpu(Box::new(OnGpu::new(host, device)?)))
            }
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) if !device.is_cuda() => Self(Repr::Quantized(weight.host.clone())),
            _ => self.clone(),
        })
    }

    /// The values on the host in f32, `[rows, columns]`: all of them at once, for merging and for tests.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn to_f32(&self) -> Result<Tensor> {
        match &self.0 {
            Repr::Dense(weight) => to_device(weight, &Device::Cpu)?.to_dtype(DType::F32),
            Repr::Quantized(weight) => decoded(weight),
            Repr::OnDisk(weight) => weight.read()?.to_f32(),
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => decoded(&weight.host),
        }
    }

    /// A dense tensor of the values on the host: in the type it is held in, or decoded to f32.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn to_dense(&self) -> Result<Tensor> {
        match &self.0 {
            Repr::Dense(weight) => to_device(weight, &Device::Cpu),
            Repr::Quantized(weight) => decoded(weight),
            Repr::OnDisk(weight) => weight.read()?.to_dense(),
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => decoded(&weight.host),
        }
    }

    /// Lend the elements to a kernel.
    pub(crate) fn with_view<R>(&self, read: impl FnOnce(WeightView<'_>) -> R) -> Result<R> {
        let dense = match &self.0 {
            Repr::Dense(weight) => &to_device(weight, &Device::Cpu)?,
            Repr::Quantized(weight) => return Ok(read(WeightView::Quantized(weight))),
            Repr::OnDisk(weight) => return weight.read()?.with_view(read),
            #[cfg(feature = "cuda")]
            Repr::OnGpu(weight) => return Ok(read(WeightView::Quantized(&weight.host))),
        };
        let (storage, layout) = dense.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("expected a weight on the CPU") };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous weight") };
        let view = match dense.dtype() {
            DType::BF16 => WeightView::BF16(&storage.as_slice()?[start..end]),
            DType::F16 => WeightView::F16(&storage.as_slice()?[start..end]),
            _ => WeightView::F32(&storage.as_slice()?[start..end]),
        };
        Ok(read(view))
    }
}

#[cfg(feature = "cuda")]
impl OnGpu {
    fn new(host: &QuantizedTensor, device: &Device) -> Result<Self> {
        let Some(place) = Place::on(device) else { bail!("expected a GPU") };
        let there = Arc::new(GpuQuantized::upload(&place, host).map_err(failed)?);
        Ok(Self { host: host.clone(), there, device: device.clone() })
    }
}

#[cfg(feature = "cuda")]
impl FrozenWeight {
    /// Lend the elements to a kernel. What lies on the host is copied for as long as `read` runs: a base that does not fit in the device's memory
    /// is streamed so, layer by layer.
    pub(crate) fn with_gpu<R>(
        &self,
        place: &Place,
        read: impl FnOnce(GpuWeight<'_>) -> Result<R>,
    ) -> Result<R> {
        match &self.0 {
            Repr::Dense(weight) => {
                let there = place.upload(weight)?;
                let lent = GpuLent::new(place, &there);
                read(GpuWeight::Dense(lent.slice()?))
            }
            Repr::Quantized(weight) => {
                let there = GpuQuantized::upload(place, weight).map_err(failed)?;
                read(GpuWeight::Quantized(&there))
            }
            Repr::OnGpu(weight) => read(GpuWeight::Quantized(&weight.there)),
            Repr::OnDisk(weight) => weight.read()?.with_gpu(place, read),
        }
    }
}

fn decoded(weight: &QuantizedTensor) -> Result<Tensor> {
    let (rows, columns) = weight.dims();
    let mut values = vec![0f32; rows * columns];
    threads::for_each_rows(&mut values, columns.max(1), threads::rows_per_block(columns), |first, block| {
        WeightView::Quantized(weight).widen(first * columns, block);
    });
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
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

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Frozen(weight) => weight.bytes(),
            Self::Trainable(var) => 4 * var.elem_count(),
        }
    }

    /// The same on a device: a frozen weight. A trained one is made where its frozen one lies, and stays there.
    ///
    /// # Errors
    /// When there is no memory, and for a trained weight that is elsewhere.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        match self {
            Self::Frozen(weight) => weight.to_device(device).map(Self::Frozen),
            Self::Trainable(var) if var.device().same_device(device) => Ok(self.clone()),
            Self::Trainable(_) => bail!("a trained weight cannot be moved"),
        }
    }

    /// The device that it lies on.
    pub fn device(&self) -> Device {
        match self {
            Self::Frozen(weight) => weight.device(),
            Self::Trainable(var) => var.device().clone(),
        }
    }

    /// Whether both are one frozen weight.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Frozen(a), Self::Frozen(b)) if a.is_same(b))
    }

    /// The values on the host in f32, outside any graph.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn to_f32(&self) -> Result<Tensor> {
        match self {
            Self::Frozen(weight) => weight.to_f32(),
            Self::Trainable(var) => to_device(&var.as_detached_tensor(), &Device::Cpu),
        }
    }

    /// Turn a frozen weight into a variable holding the same values in f32; a trainable one stays as it is.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Var> {
        let var = match self {
            Self::Trainable(var) => return Ok(var.clone()),
            Self::Frozen(weight) => Var::from_tensor(&to_device(&weight.to_f32()?, &weight.device())?)?,
        };
        *self = Self::Trainable(var.clone());
        Ok(var)
    }
}
