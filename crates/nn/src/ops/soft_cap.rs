//! Soft-capping of logits.

use crate::Result;
use crate::storage::{Lent, f32_slice, filled, filled_like};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use taper_kernels::soft_cap as kernel;

/// `y = c tanh(x / c)`, elementwise, so that no value is beyond the cap c (Gemma Team, "Gemma 2", 2024; Bello et al. 2016).
///
/// The backward is `g (1 - (y / c)^2)`, from the output alone.
///
/// # Errors
/// What candle says.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op1(SoftCap { cap })
}

struct SoftCap {
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, layout)?;
        let y = filled(x.len(), |y| {
            kernel::soft_cap_forward(x, self.cap, y);
            Ok(())
        })?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (y_lent, g_lent) = (Lent::new(y), Lent::new(&g));
        let (y_s, g_s) = (y_lent.f32()?, g_lent.f32()?);
        let dx = filled_like(x, |dx| {
            kernel::soft_cap_backward(g_s, y_s, self.cap, dx);
            Ok(())
        })?;
        Ok(Some(dx))
    }
}
