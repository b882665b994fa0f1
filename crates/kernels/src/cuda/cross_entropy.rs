//! [`crate::cross_entropy`] on a device.

use super::{FloatType, Gpu, GpuError, Slice, SliceMut, launch};
use cudarc::driver::{CudaSlice, DevicePtr};

const THREADS: u32 = 512;

/// The loss of each row of logits `[n, V]` f32. Targets are the caller's to check.
///
/// # Errors
/// What the driver says.
pub fn cross_entropy_forward(
    gpu: &Gpu,
    logits: Slice<'_>,
    targets: &CudaSlice<u32>,
    losses: &mut SliceMut<'_>,
    v: usize,
) -> Result<(), GpuError> {
    run(gpu, "cross_entropy_forward", (logits.ptr(), logits.len(), logits.dtype()), targets, losses, v)
}

/// The same, and the logits replaced by the gradient of the sum of the losses.
///
/// # Errors
/// What the driver says.
pub fn cross_entropy_forward_backward(
    gpu: &Gpu,
    logits: &mut SliceMut<'_>,
    targets: &CudaSlice<u32>,
    losses: &mut SliceMut<'_>,
    v: usize,
) -> Result<(), GpuError> {
    let of = (logits.ptr(), logits.len(), logits.dtype());
    run(gpu, "cross_entropy_forward_backward", of, targets, losses, v)
}

fn run(
    gpu: &Gpu,
    name: &str,
    (logits, len, dtype): (u64, usize, FloatType),
    targets: &CudaSlice<u32>,
    losses: &mut SliceMut<'_>,
    v: usize,
) -> Result<(), GpuError> {
    let n = losses.len();
    assert_eq!((len, dtype), (n * v, FloatType::F32), "logits for {n} targets and V={v}");
    assert!(targets.len() == n, "{} targets for {n} losses", targets.len());
    if n == 0 {
        return Ok(());
    }
    let (targets, _guard) = targets.device_ptr(gpu.stream());
    launch!(
        gpu,
        CrossEntropy,
        name,
        (n as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [&logits, &targets, &losses.ptr(), &(v as i64)]
    );
    Ok(())
}
