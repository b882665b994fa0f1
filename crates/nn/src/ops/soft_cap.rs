//! Soft-capping of logits.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::Tensor;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::elementwise as device;
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

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let x = GpuLent::new(place, inputs[0]);
        let x = x.f32()?;
        let fill = |y: &mut SliceMut<'_>| device::soft_cap_forward(place, x, self.cap, y).map_err(failed);
        place.filled(DType::F32, inputs[0].shape(), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let (y, g) = (GpuLent::new(place, saved.output()?), GpuLent::new(place, g));
        let (y, g) = (y.f32()?, g.f32()?);
        to.write_on(place, 0, |dx| device::soft_cap_backward(place, g, y, self.cap, dx).map_err(failed))?;
        Ok(true)
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
