//! [`crate::cross_entropy`] on a device.

use super::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, launch};
use cudarc::driver::DevicePtr;

const THREADS: u32 = 512;

/// The loss of each row of logits `[n, V]` f32. Waits for the device.
///
/// # Errors
/// What the driver says.
pub fn cross_entropy_forward(
    gpu: &Gpu,
    logits: Slice<'_>,
    targets: &[u32],
    v: usize,
) -> Result<Vec<f32>, GpuError> {
    run(gpu, "cross_entropy_forward", (logits.ptr(), logits.len(), logits.dtype()), targets, v)
}

/// The same, and the logits replaced by the gradient of the sum of the losses. Waits for the device.
///
/// # Errors
/// What the driver says.
pub fn cross_entropy_forward_backward(
    gpu: &Gpu,
    logits: &mut SliceMut<'_>,
    targets: &[u32],
    v: usize,
) -> Result<Vec<f32>, GpuError> {
    run(gpu, "cross_entropy_forward_backward", (logits.ptr(), logits.len(), logits.dtype()), targets, v)
}

fn run(
    gpu: &Gpu,
    name: &str,
    (logits, len, dtype): (u64, usize, FloatType),
    targets: &[u32],
    v: usize,
) -> Result<Vec<f32>, GpuError> {
    assert_eq!(
        (len, dtype),
        (targets.len() * v, FloatType::F32),
        "logits for {} targets and V={v}",
        targets.len()
    );
    assert!(targets.iter().all(|target| (*target as usize) < v), "a target outside V={v}");
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let on_device = gpu.upload(targets)?;
    let (target_ptr, _guard) = on_device.device_ptr(gpu.stream());
    let losses = Buffer::<f32>::new(gpu.stream(), targets.len())?;
    let losses_ptr = losses.slice(gpu.stream()).ptr();
    launch!(
        gpu,
        CrossEntropy,
        name,
        (targets.len() as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [&logits, &target_ptr, &losses_ptr, &(v as i64)]
    );
    gpu.download(&losses.0)
}
