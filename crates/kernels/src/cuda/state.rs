//! Memory for an optimiser's moments: the device's own, or managed, whose pages the driver moves between the host and the device.
//!
//! Managed memory may be more than the device has: what is used fits, what is not is pushed out to the host when others need the room. It is the
//! "paged" of bitsandbytes' optimisers (Dettmers et al., "QLoRA", 2023, section 3).

use super::{Gpu, GpuError};
use bytemuck::Pod;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, result, sys};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that kernels read and write, zeros at first.
#[derive(Debug)]
pub(super) struct StateMemory {
    ptr: u64,
    len: usize,
    /// Who frees it.
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    Device { _memory: CudaSlice<u8> },
    Managed(Managed),
}

/// Managed memory, freed with this.
#[derive(Debug)]
struct Managed {
    ptr: u64,
    stream: Arc<CudaStream>,
    /// Whether pages can be fetched before they are used. Windows cannot: there the driver moves all of it at each launch.
    can_fetch: bool,
}

impl Drop for Managed {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        context.record_err(self.stream.synchronize());
        // SAFETY: the memory came from `malloc_managed`, is freed this once, and the stream that used it is done.
        context.record_err(unsafe { result::memory_free(self.ptr) });
    }
}

impl StateMemory {
    /// # Errors
    /// When there is no memory, or the device has none that is paged.
    pub(super) fn zeros(gpu: &Gpu, len: usize, paged: bool) -> Result<Self, GpuError> {
        let (stream, bytes) = (gpu.stream(), len.max(1));
        if !paged {
            let memory = stream.alloc_zeros::<u8>(bytes).map_err(|e| GpuError::memory(bytes, e))?;
            let ptr = memory.device_ptr(stream).0;
            return Ok(Self { ptr, len, owner: Owner::Device { _memory: memory } });
        }
        let managed = Managed::new(stream, bytes)?;
        // SAFETY: these are the bytes that were just allocated.
        unsafe { result::memset_d8_async(managed.ptr, 0, bytes, stream.cu_stream()) }
            .map_err(|e| GpuError::launch("set paged memory to zero", e))?;
        Ok(Self { ptr: managed.ptr, len, owner: Owner::Managed(managed) })
    }

    pub(super) fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Elements `range`, on the host.
    pub(super) fn read<T: Pod + DeviceRepr>(
        &self,
        gpu: &Gpu,
        range: Range<usize>,
    ) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::zeroed(); range.len()];
        let from = self.at::<T>(&range);
        let failed = |e| GpuError::launch("copy to the host", e);
        gpu.stream().context().bind_to_thread().map_err(failed)?;
        if !values.is_empty() {
            // SAFETY: `at` has seen that these are bytes of this memory, and `values` lives until the stream is done.
            unsafe { result::memcpy_dtoh_async(&mut values, from, gpu.stream().cu_stream()) }
                .map_err(failed)?;
        }
        gpu.stream().synchronize().map_err(failed)?;
        Ok(values)
    }

    /// Put `values` at element `first`.
    pub(super) fn write<T: Pod + DeviceRepr>(
        &mut self,
        gpu: &Gpu,
        first: usize,
        values: &[T],
    ) -> Result<(), GpuError> {
        let to = self.at::<T>(&(first..first + values.len()));
        let failed = |e| GpuError::launch("copy to the device", e);
        gpu.stream().context().bind_to_thread().map_err(failed)?;
        if !values.is_empty() {
            // SAFETY: as above.
            unsafe { result::memcpy_htod_async(to, values, gpu.stream().cu_stream()) }.map_err(failed)?;
        }
        gpu.stream().synchronize().map_err(failed)
    }

    fn at<T>(&self, range: &Range<usize>) -> u64 {
        let width = size_of::<T>();
        assert!(range.start <= range.end && range.end * width <= self.len, "{range:?} of {} bytes", self.len);
        self.ptr + (range.start * width) as u64
    }
}

impl Managed {
    fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, GpuError> {
        let (context, failed) = (stream.context(), |e| GpuError::launch("allocate paged memory", e));
        context.bind_to_thread().map_err(failed)?;
        let has = |attribute| context.attribute(attribute).is_ok_and(|value| value != 0);
        if !has(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY) {
            let message = "the device has no managed memory, which paged optimisers need".to_owned();
            return Err(GpuError::Failed { what: "allocate paged memory".into(), message });
        }
        // SAFETY: the bytes are set before anyone reads them.
        let ptr = unsafe { result::malloc_managed(bytes, sys::CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL) }
            .map_err(|e| GpuError::memory(bytes, e))?;
        let can_fetch = has(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS);
        Ok(Self { ptr, stream: stream.clone(), can_fetch })
    }
}

/// Bring the bytes `range` of each to the device before what is queued next: one copy at the full speed of the bus, in place of a fault for
/// every page that a kernel touches. Does nothing for the device's own memory.
pub(super) fn fetch_pages(gpu: &Gpu, parts: &[(&StateMemory, &Range<usize>)]) -> Result<(), GpuError> {
    for (memory, range) in parts {
        let Owner::Managed(managed) = &memory.owner else { continue };
        if !managed.can_fetch || range.is_empty() {
            continue;
        }
        assert!(range.end <= memory.len, "{range:?} of {} bytes", memory.len);
        let stream = gpu.stream();
        // SAFETY: the range lies within managed memory, and the location is a device.
        unsafe {
            result::mem_prefetch_async(
                memory.ptr + range.start as u64,
                range.len(),
                device(stream.context().ordinal()),
                stream.cu_stream(),
            )
        }
        .map_err(|e| GpuError::launch("fetch paged memory", e))?;
    }
    Ok(())
}

/// A device as a place of memory.
fn device(ordinal: usize) -> sys::CUmemLocation {
    // SAFETY: a structure of numbers, of which zeros are values.
    let mut location: sys::CUmemLocation = unsafe { std::mem::zeroed() };
    location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    // The bindings for later toolkits put the number into a union, at the same place: behind the type.
    const { assert!(size_of::<sys::CUmemLocation>() == 8) };
    // SAFETY: the second of two words.
    unsafe { (&raw mut location).cast::<i32>().add(1).write(ordinal as i32) };
    location
}
