//! [`crate::rope`] on a device.

use super::elementwise::{THREADS, blocks_of_columns};
use super::{Gpu, GpuError, Slice, SliceMut, launch};

/// [`crate::rope::rope`] of heads of `head_dim`: x and y `[T, heads * head_dim]`, cos and sin `[T, half]`.
///
/// # Errors
/// What the driver says.
pub fn rope(
    gpu: &Gpu,
    x: Slice<'_>,
    y: &mut SliceMut<'_>,
    (cos, sin): (Slice<'_>, Slice<'_>),
    (t, head_dim): (usize, usize),
    inverse: bool,
) -> Result<(), GpuError> {
    let (n, half) = (x.len(), cos.len() / t.max(1));
    assert_eq!((y.len(), y.dtype(), sin.len()), (n, x.dtype(), t * half), "y and sin");
    assert!(2 * half <= head_dim && n.is_multiple_of(t.max(1) * head_dim), "{half} of heads of {head_dim}");
    let (name, width) = (format!("rope_{}", x.dtype().name()), n / t.max(1));
    let (sign, sizes) = (if inverse { -1f32 } else { 1.0 }, (head_dim as i32, half as i32));
    launch!(
        gpu,
        Rope,
        &name,
        blocks_of_columns(t, width),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &y.ptr(), &cos.ptr(), &sin.ptr(), &(t as i64), &(width as i32), &sizes.0, &sizes.1, &sign]
    );
    Ok(())
}
