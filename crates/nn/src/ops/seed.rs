//! Backward from a gradient that is already known.

use crate::Result;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

/// Gradients of everything that `y` depends on, given the gradient of `y` itself, `gradient` of the same shape.
///
/// candle's `backward` starts from ones; this puts an op behind `y` whose backward gives `gradient`. It is what lets a
/// block be differentiated by itself, with what came down from the blocks above it.
///
/// # Errors
/// What the backward says.
pub fn backward_from(y: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    if y.dims() != gradient.dims() {
        candle_core::bail!("a gradient of {:?} for a tensor of {:?}", gradient.dims(), y.dims())
    }
    y.apply_op1(Seed { gradient: gradient.detach() })?.backward()
}

struct Seed {
    gradient: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed-gradient"
    }

    fn cpu_fwd(&self, _y: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _y: &Tensor, _res: &Tensor, _g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}
