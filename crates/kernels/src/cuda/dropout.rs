//! [`crate::dropout`] on a device, with the same bits.

use super::elementwise::{THREADS, blocks};
use super::{Gpu, GpuError, Slice, SliceMut, launch};
use crate::rng::CounterRng;

/// [`crate::dropout::dropout`] from word 0 on, in one type.
///
/// # Errors
/// What the driver says.
pub fn dropout(
    gpu: &Gpu,
    x: Slice<'_>,
    y: &mut SliceMut<'_>,
    p: f32,
    rng: &CounterRng,
) -> Result<(), GpuError> {
    let n = y.len();
    assert_eq!((x.len(), x.dtype()), (n, y.dtype()), "x and y");
    let (threshold, scale) = crate::dropout::constants(p);
    let (name, (seed, stream)) = (format!("dropout_{}", x.dtype().name()), rng.key());
    launch!(
        gpu,
        Dropout,
        &name,
        blocks(n.div_ceil(4)),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &y.ptr(), &threshold, &scale, &seed, &stream, &(n as i64)]
    );
    Ok(())
}
