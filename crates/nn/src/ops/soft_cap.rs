//! Soft-capping of logits.

use crate::Result;
use crate::storage::{Lent, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::Tensor;
use taper_kernels::soft_cap as kernel;

/// `y = c tanh(x / c)`, elementwise, f32, so that no value is beyond the cap c (Gemma Team, "Gemma 2", 2024; Bello et al. 2016).
///
/// The backward is `g (1 - (y / c)^2)`, from the output alone.
///
/// # Errors
/// What candle says.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    apply(SoftCap { cap }, &[x])
}

struct SoftCap {
    cap: f32,
}

impl Op for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = Lent::new(inputs[0]);
        let x = x.f32()?;
        filled_f32(inputs[0].shape(), |y| {
            kernel::soft_cap_forward(x, self.cap, y);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (y, g) = (Lent::new(saved.output()?), Lent::new(g));
        let (y, g) = (y.f32()?, g.f32()?);
        to.write(0, |dx| {
            kernel::soft_cap_backward(g, y, self.cap, dx);
            Ok(())
        })
    }
}
