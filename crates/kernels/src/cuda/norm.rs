//! [`crate::norm`] on a device.

use super::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, launch};

/// Threads of a block, which has a row.
const THREADS: u32 = 256;
/// Rows that one block sums for the gradient of the gain.
const ROWS_PER_BLOCK: usize = 256;

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
    launch!(
        gpu,
        Norm,
        &name,
        (rows as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [&args.0, &args.1, &offset, &eps, &args.2, &args.3, &args.4]
    );
    Ok(())
}

/// [`crate::norm::rms_norm_backward`]: dx from g, both f32, or what is added to it with `accumulate`.
///
/// # Errors
/// What the driver says.
pub fn rms_norm_backward(
    gpu: &Gpu,
    g: Slice<'_>,
    (x, w, offset): (Slice<'_>, Slice<'_>, f32),
    inv_rms: Slice<'_>,
    dx: &mut SliceMut<'_>,
    accumulate: bool,
) -> Result<(), GpuError> {
    let (rows, h) = (inv_rms.len(), w.len());
    assert_eq!((g.len(), x.len(), dx.len()), (rows * h, rows * h, rows * h), "{rows} rows of {h}");
    if rows == 0 {
        return Ok(());
    }
    let name = format!("rms_norm_backward_{}", x.dtype().name());
    launch!(
        gpu,
        Norm,
        &name,
        (rows as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [
            &g.ptr(),
            &x.ptr(),
            &w.ptr(),
            &offset,
            &inv_rms.ptr(),
            &dx.ptr(),
            &(h as i64),
            &i32::from(accumulate)
        ]
    );
    Ok(())
}

/// [`crate::norm::rms_norm_backward_weight`]: dw `[h]`, or what is added to it with `accumulate`.
///
/// # Errors
/// What the driver says.
pub fn rms_norm_backward_weight(
    gpu: &Gpu,
    g: Slice<'_>,
    x: Slice<'_>,
    inv_rms: Slice<'_>,
    dw: &mut SliceMut<'_>,
    accumulate: bool,
) -> Result<(), GpuError> {
    let (rows, h) = (inv_rms.len(), dw.len());
    assert_eq!((g.len(), x.len()), (rows * h, rows * h), "{rows} rows of {h}");
    let parts = rows.div_ceil(ROWS_PER_BLOCK).max(1);
    let mut partial = Buffer::<f32>::new(gpu.stream(), parts * h)?;
    let name = format!("rms_norm_backward_weight_{}", x.dtype().name());
    let (to, sizes) = (partial.slice_mut(gpu.stream()).ptr(), (rows as i64, h as i64, ROWS_PER_BLOCK as i64));
    launch!(
        gpu,
        Norm,
        &name,
        (h.div_ceil(THREADS as usize) as u32, parts as u32, 1),
        (THREADS, 1, 1),
        0,
        [&g.ptr(), &x.ptr(), &inv_rms.ptr(), &to, &sizes.0, &sizes.1, &sizes.2]
    );
    super::elementwise::sum_rows(gpu, partial.slice(gpu.stream()), dw, accumulate)
}
