//! The set-up of a device, and its memory.

use cudarc::driver::{CudaContext, sys};

/// Bytes of a device's memory pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolMemory {
    /// In use.
    pub used: usize,
    /// The most that was in use.
    pub peak: usize,
    /// The most that the pool has taken from the device.
    pub reserved: usize,
}

/// Sets a device up for one stream on one thread: memory that is freed stays in the pool (by default the driver takes all of it back at every
/// synchronisation), and no events are recorded for allocations, which only several streams need.
pub fn prepare(context: &CudaContext) {
    // SAFETY: everything is queued on one stream, in whose order memory is taken and freed.
    unsafe { context.disable_event_tracking() };
    let Some(pool) = pool_of(context) else { return };
    let mut keep = u64::MAX;
    // SAFETY: the pool is the device's own, and the attribute is a u64.
    let _ = unsafe {
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut keep).cast(),
        )
    };
}

/// What the pool of a device holds; `None` where the driver has none.
pub fn pool_memory(context: &CudaContext) -> Option<PoolMemory> {
    let pool = pool_of(context)?;
    Some(PoolMemory {
        used: attribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        peak: attribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
        reserved: attribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?,
    })
}

/// Lets [`PoolMemory::peak`] begin again at what is in use now; false where the driver does not.
pub fn reset_peak(context: &CudaContext) -> bool {
    let Some(pool) = pool_of(context) else { return false };
    let mut zero = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is the device's own, and the attribute is a u64 that can be set to 0.
    let result = unsafe { sys::cuMemPoolSetAttribute(pool, high, (&raw mut zero).cast()) };
    result == sys::CUresult::CUDA_SUCCESS
}

fn pool_of(context: &CudaContext) -> Option<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is one that the driver gave.
    let result = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) };
    (result == sys::CUresult::CUDA_SUCCESS).then_some(pool)
}

fn attribute(pool: sys::CUmemoryPool, attribute: sys::CUmemPool_attribute) -> Option<usize> {
    let mut value = 0u64;
    // SAFETY: these attributes are u64.
    let result = unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) };
    (result == sys::CUresult::CUDA_SUCCESS).then_some(value as usize)
}
