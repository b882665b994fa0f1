//! [`crate::activation`] on a device.

use super::elementwise::{THREADS, blocks};
use super::{Gpu, GpuError, Slice, SliceMut, launch};
use crate::activation::Gate;

fn name_of(act: Gate) -> &'static str {
    match act {
        Gate::Silu => "silu",
        Gate::GeluTanh => "gelu_tanh",
    }
}

/// [`crate::activation::gated_forward`], in one type.
///
/// # Errors
/// What the driver says.
pub fn gated_forward(
    gpu: &Gpu,
    act: Gate,
    gate: Slice<'_>,
    up: Slice<'_>,
    y: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let n = y.len();
    assert_eq!((gate.len(), up.len()), (n, n), "lengths of gate and up against y");
    assert_eq!((gate.dtype(), up.dtype()), (y.dtype(), y.dtype()), "types of gate and up against y");
    let name = format!("{}_forward_{}", name_of(act), y.dtype().name());
    launch!(
        gpu,
        Activation,
        &name,
        blocks(n),
        (THREADS, 1, 1),
        0,
        [&gate.ptr(), &up.ptr(), &y.ptr(), &(n as i64)]
    );
    Ok(())
}

/// [`crate::activation::gated_backward`].
///
/// # Errors
/// What the driver says.
pub fn gated_backward(
    gpu: &Gpu,
    act: Gate,
    g: Slice<'_>,
    (gate, up): (Slice<'_>, Slice<'_>),
    dgate: &mut SliceMut<'_>,
    dup: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let n = g.len();
    assert_eq!((gate.len(), up.len(), dgate.len(), dup.len()), (n, n, n, n), "lengths against g");
    assert_eq!(gate.dtype(), up.dtype(), "types of gate and up");
    let name = format!("{}_backward_{}", name_of(act), gate.dtype().name());
    launch!(
        gpu,
        Activation,
        &name,
        blocks(n),
        (THREADS, 1, 1),
        0,
        [&g.ptr(), &gate.ptr(), &up.ptr(), &dgate.ptr(), &dup.ptr(), &(n as i64)]
    );
    Ok(())
}
