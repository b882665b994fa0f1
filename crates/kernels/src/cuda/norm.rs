//! [`crate::norm`] on a device.

use super::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, launch};

/// Threads of a block, which has a row.
const THREADS: u32 = 256;

/// [`crate::norm::rms_norm_forward`].
///
/// # Errors
/// What the driver says.
pub fn rms_norm_forward(
    gpu: &Gpu,
    x: Slice<'_>,
    w: Slice<'_>,
    (offset, eps): (f32, f32),
    y: &mut SliceMut<'_>,
    inv_rms: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let (rows, h) = (inv_rms.len(), w.len());
    assert_eq!((x.len(), y.len()), (rows * h, rows * h), "an input and an output of {rows} rows of {h}");
    assert_eq!(w.dtype(), FloatType::F32, "a gain in f32");
    if rows == 0 {
        return Ok(());
    }
    let name = format!("rms_norm_forward_{}_{}", x.dtype().name(), y.dtype().name());
    let args = (x.ptr(), w.ptr(), y.ptr(), inv_rms.ptr(), h as i64);
    launch!(gpu, Norm, &name, (rows as u32, 1, 1), (THREADS, 1, 1), 0, [
        &args.0, &args.1, &offset, &eps, &args.2, &args.3, &args.4
    ]);
    Ok(())
}
