//! Tensors on NVIDIA GPUs: opening a device, lending storages to kernels, and the way through the host for operations that have no kernel.
//!
//! An operation on tensors of a device runs there where [`Op::forward_cuda`] and [`Op::backward_cuda`] know how; else its inputs are copied to the
//! host, computed there and copied back ([`forward`], [`backward`]), so that everything works on a device and what matters is fast. Operations of
//! candle's own are not used on a device: its kernels have no backward, and some builds lack them.

use crate::storage::Lent;
use crate::tape::{Gradient, Op, Receiver, Saved};
use crate::{DeviceError, DeviceMemory, Result};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, Layout, Shape, Storage, StorageRef, Tensor,
    bail,
};
use half::{bf16, f16};
use std::cell::Cell;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
pub(crate) use taper_kernels::cuda::SliceMut;
use taper_kernels::cuda::cudarc::driver::CudaSlice;
use taper_kernels::cuda::{Buffer, FloatType, Gpu, GpuError, Slice};

thread_local! {
    /// Operations of this thread that went through the host: none in training with LoRA.
    static STAGED: Cell<u64> = const { Cell::new(0) };
}

/// How many operations on tensors of a device this thread has computed on the host so far.
pub(crate) fn staged_operations() -> u64 {
    STAGED.get()
}

/// A device and its kernels.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    gpu: Gpu,
    device: CudaDevice,
}

impl Deref for Place {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.gpu
    }
}

/// What the driver said, for candle's errors.
pub(crate) fn failed(error: GpuError) -> Error {
    Error::wrap(error)
}

impl Place {
    /// The device of the first of `tensors` that lies on one.
    pub(crate) fn of(tensors: &[&Tensor]) -> Option<Self> {
        tensors.iter().find_map(|tensor| Self::on(tensor.device()))
    }

    /// The same of a device.
    pub(crate) fn on(device: &Device) -> Option<Self> {
        let Device::Cuda(device) = device else { return None };
        static KNOWN: Mutex<Vec<(DeviceId, Gpu)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(id, _)| *id == device.id()).map(|(_, gpu)| gpu.clone());
        let gpu = found.unwrap_or_else(|| {
            let gpu = Gpu::new(device.cuda_stream(), device.cublas_handle());
            known.push((device.id(), gpu.clone()));
            gpu
        });
        Some(Self { gpu, device: device.clone() })
    }

    /// A tensor in `dtype` (f32 or bf16) whose elements a kernel writes.
    pub(crate) fn filled(
        &self,
        dtype: DType,
        shape: impl Into<Shape>,
        fill: impl FnOnce(&mut SliceMut<'_>) -> Result<()>,
    ) -> Result<Tensor> {
        let (shape, stream) = (shape.into(), self.gpu.stream());
        let len = shape.elem_count();
        let storage = match dtype {
            DType::BF16 => {
                let mut buffer = Buffer::<bf16>::new(stream, len).map_err(failed)?;
                fill(&mut buffer.slice_mut(stream).part(0..len))?;
                CudaStorage::wrap_cuda_slice(buffer.0, self.device.clone())
            }
            DType::F32 => {
                let mut buffer = Buffer::<f32>::new(stream, len).map_err(failed)?;
                fill(&mut buffer.slice_mut(stream).part(0..len))?;
                CudaStorage::wrap_cuda_slice(buffer.0, self.device.clone())
            }
            other => bail!("a kernel writes f32 or bf16, not {other:?}"),
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// Ids for a kernel.
    pub(crate) fn upload_ids(&self, ids: &[u32]) -> Result<CudaSlice<u32>> {
        self.gpu.upload(ids).map_err(failed)
    }

    /// Zeros in f32.
    pub(crate) fn zeros(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let zeros = self.gpu.stream().alloc_zeros::<f32>(shape.elem_count().max(1));
        let zeros = zeros.map_err(|e| failed(GpuError::memory(4 * shape.elem_count(), e)))?;
        let storage = CudaStorage::wrap_cuda_slice(zeros, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// The tensor on this device: a copy where it is not there.
    pub(crate) fn upload(&self, tensor: &Tensor) -> Result<Tensor> {
        if tensor.device().is_cuda() {
            return Ok(tensor.clone());
        }
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("expected a contiguous tensor on the CPU")
        };
        let device = self.device.clone();
        let storage = match storage {
            CpuStorage::F32(values) => {
                CudaStorage::wrap_cuda_slice(self.gpu.upload(&values[start..end]).map_err(failed)?, device)
            }
            CpuStorage::BF16(values) => {
                CudaStorage::wrap_cuda_slice(self.gpu.upload(&values[start..end]).map_err(failed)?, device)
            }
            CpuStorage::F16(values) => {
                CudaStorage::wrap_cuda_slice(self.gpu.upload(&values[start..end]).map_err(failed)?, device)
            }
            other => bail!("a tensor in {:?} for a device", other.dtype()),
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), tensor.shape(), BackpropOp::none(), false))
    }
}

/// A contiguous tensor of a device whose elements are lent for as long as this lives.
pub(crate) struct GpuLent<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    place: &'a Place,
}

impl<'a> GpuLent<'a> {
    pub(crate) fn new(place: &'a Place, tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout, place }
    }

    /// The elements: f32, bf16 or f16.
    pub(crate) fn slice(&self) -> Result<Slice<'_>> {
        let Storage::Cuda(storage) = &*self.storage else { bail!("expected a tensor on the GPU") };
        let Some((start, end)) = self.layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {:?}", self.layout.stride())
        };
        let stream = self.place.gpu.stream();
        Ok(match storage.dtype() {
            DType::F32 => Slice::of(storage.as_cuda_slice::<f32>()?, start..end, stream),
            DType::BF16 => Slice::of(storage.as_cuda_slice::<bf16>()?, start..end, stream),
            DType::F16 => Slice::of(storage.as_cuda_slice::<f16>()?, start..end, stream),
            other => bail!("expected a tensor in f32, bf16 or f16, got {other:?}"),
        })
    }

    /// The elements of a tensor in f32.
    pub(crate) fn f32(&self) -> Result<Slice<'_>> {
        let slice = self.slice()?;
        if slice.dtype() != FloatType::F32 {
            bail!("expected a tensor in f32, got {}", slice.dtype().name())
        }
        Ok(slice)
    }
}

/// Changes an f32 or bf16 tensor of a device where it lies, which nobody else reads.
pub(crate) fn update(
    place: &Place,
    tensor: &Tensor,
    change: impl FnOnce(&mut SliceMut<'_>) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&Update { place, change: Cell::new(Some(change)) })
}

struct Update<'a, F> {
    place: &'a Place,
    change: Cell<Option<F>>,
}

impl<F: FnOnce(&mut SliceMut<'_>) -> Result<()>> InplaceOp1 for Update<'_, F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, _storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        bail!("expected a tensor on the GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {:?}", layout.stride())
        };
        let (stream, range) = (self.place.gpu.stream(), start..end);
        let mut slice = match storage.dtype() {
            DType::F32 => SliceMut::of(storage.as_cuda_slice_mut::<f32>()?, range, stream),
            DType::BF16 => SliceMut::of(storage.as_cuda_slice_mut::<bf16>()?, range, stream),
            other => bail!("a tensor in {other:?} is changed on a device"),
        };
        self.change.take().map_or(Ok(()), |change| change(&mut slice))
    }
}

/// A copy on the host of a tensor of a device; the tensor itself where it is on the host.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Tensor> {
    if !tensor.device().is_cuda() {
        return Ok(tensor.clone());
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on the GPU, got {:?}", layout.stride())
    };
    let Some(place) = Place::on(tensor.device()) else { bail!("expected a tensor on the GPU") };
    macro_rules! downloaded {
        ($type:ty) => {
            place.gpu.download(&storage.as_cuda_slice::<$type>()?.slice(start..end)).map_err(failed)?
        };
    }
    match storage.dtype() {
        DType::F32 => Tensor::from_vec(downloaded!(f32), tensor.shape(), &Device::Cpu),
        DType::BF16 => Tensor::from_vec(downloaded!(bf16), tensor.shape(), &Device::Cpu),
        DType::F16 => Tensor::from_vec(downloaded!(f16), tensor.shape(), &Device::Cpu),
        DType::U32 => Tensor::from_vec(downloaded!(u32), tensor.shape(), &Device::Cpu),
        other => bail!("a tensor in {other:?} on the GPU"),
    }
}

/// The output of `op` where one of its inputs lies on a device: computed there, or on the host and copied.
pub(crate) fn forward(op: &dyn Op, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
    let Some(place) = Place::of(inputs) else { return Ok(None) };
    let there: Vec<Tensor> = inputs.iter().map(|input| place.upload(input)).collect::<Result<_>>()?;
    if let Some(output) = op.forward_cuda(&place, &there.iter().collect::<Vec<_>>())? {
        return Ok(Some(output));
    }
    STAGED.set(STAGED.get() + 1);
    let hosts: Vec<Tensor> = inputs.iter().map(|input| to_host(input)).collect::<Result<_>>()?;
    let output = op.forward(&hosts.iter().collect::<Vec<_>>())?;
    place.upload(&output).map(Some)
}

/// The backward of `op` where its gradient lies on a device, there or through the host; `false` where it lies on the host.
pub(crate) fn backward(op: &dyn Op, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<bool> {
    let Some(place) = Place::on(g.device()) else { return Ok(false) };
    if op.backward_cuda(&place, &saved.each(|tensor| place.upload(tensor))?, g, to)? {
        return Ok(true);
    }
    STAGED.set(STAGED.get() + 1);
    op.backward(&saved.each(to_host)?, &Gradient::new(to_host(g)?), &mut to.through_host(place))?;
    Ok(true)
}

/// `y += x` on the device of y.
pub(crate) fn add_to(place: &Place, x: &Tensor, y: &Tensor) -> Result<()> {
    let x = place.upload(x)?;
    let x = GpuLent::new(place, &x);
    let x = x.f32()?;
    update(place, y, |y| taper_kernels::cuda::elementwise::axpy(place, 1.0, x, y).map_err(failed))
}

/// Elements of a host or device tensor on the host, for whoever reads them once.
pub(crate) fn read_f32<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    Ok(read(Lent::new(&to_host(tensor)?).f32()?))
}

/// Elements changed on the host and copied back.
pub(crate) fn change_f32(tensor: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    let Some(place) = Place::on(tensor.device()) else { bail!("expected a tensor on the GPU") };
    let mut values = crate::storage::to_vec_f32(tensor)?;
    change(&mut values);
    let changed = place.gpu.upload(&values).map_err(failed)?;
    let stream = place.gpu.stream();
    let changed = Slice::of(&changed, 0..values.len(), stream);
    update(&place, tensor, |to| {
        taper_kernels::cuda::elementwise::scale(&place, changed, 1.0, to).map_err(failed)
    })
}

pub(crate) fn open(ordinal: usize) -> std::result::Result<Device, DeviceError> {
    let unavailable = |e: Error| DeviceError::Unavailable(first_line(&e));
    let device = CudaDevice::new_with_stream(ordinal).map_err(unavailable)?;
    let context = device.cuda_stream().context().clone();
    let capability = context.compute_capability().unwrap_or((0, 0));
    if capability.0 < 8 {
        return Err(DeviceError::TooOld { name: context.name().unwrap_or_default(), capability });
    }
    taper_kernels::cuda::prepare(&context);
    Ok(Device::Cuda(device))
}

/// What the driver says, in the words of who has none.
fn first_line(error: &Error) -> String {
    let text = error.to_string();
    if text.contains("STUB_LIBRARY") {
        return "no NVIDIA driver is installed: libcuda.so.1 is not to be found".into();
    }
    if text.contains("CUDA_ERROR_NO_DEVICE") || text.contains("CUDA_ERROR_INVALID_DEVICE") {
        return "the driver knows no such GPU".into();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

pub(crate) fn name(device: &Device) -> Option<String> {
    Place::on(device)?.gpu.stream().context().name().ok()
}

pub(crate) fn memory(device: &Device) -> Option<DeviceMemory> {
    let place = Place::on(device)?;
    let context = place.gpu.stream().context();
    let (free, total) = context.mem_get_info().ok()?;
    let pool = taper_kernels::cuda::pool_memory(context)?;
    Some(DeviceMemory { total, free, used: pool.used, peak: pool.peak, reserved: pool.reserved })
}

pub(crate) fn reset_peak(device: &Device) -> bool {
    Place::on(device).is_some_and(|place| taper_kernels::cuda::reset_peak(place.gpu.stream().context()))
}
