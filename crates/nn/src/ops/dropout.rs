//! Dropout of an adapter's input.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::storage::{Lent, filled, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use taper_kernels::dropout as kernel;
use taper_kernels::rng::CounterRng;

/// Input dropout of an adapter; the mask is made again in the backward from the same counters.
#[derive(Debug, Clone)]
pub struct LoraDropout {
    /// Probability of zeroing an element, in `[0, 1)`; the others are divided by `1 - p`.
    pub p: f32,
    /// The generator of this layer in this micro-batch.
    pub rng: CounterRng,
}

/// x with some elements dropped, in its type and shape.
///
/// # Errors
/// When x is neither f32 nor bf16.
pub fn dropout(x: &Tensor, dropout: LoraDropout) -> Result<Tensor> {
    apply(Dropout(dropout), &[x])
}

struct Dropout(LoraDropout);

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x] = inputs else { bail!("takes one input") };
        self.0.applied(x)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        self.0.applied_on(place, inputs[0]).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        _saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        if to.wants(0) {
            to.pass(0, &Gradient::new(self.0.applied_on(place, g)?))?;
        }
        Ok(true)
    }

    fn backward(&self, _saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let lent = Lent::new(g);
        let values = lent.f32()?;
        if !to.wants(0) {
            return Ok(());
        }
        let dx = filled_f32(g.shape(), |dx| {
            kernel::dropout(values, dx, self.0.p, &self.0.rng, 0);
            Ok(())
        })?;
        to.pass(0, &Gradient::new(dx))
    }
}

impl LoraDropout {
    /// [`Self::applied`] on a device.
    #[cfg(feature = "cuda")]
    pub(super) fn applied_on(&self, place: &Place, x: &Tensor) -> Result<Tensor> {
        let lent = GpuLent::new(place, x);
        let values = lent.slice()?;
        place.filled(x.dtype(), x.shape(), |y| {
            taper_kernels::cuda::dropout::dropout(place, values, y, self.p, &self.rng).map_err(failed)
        })
    }

    /// x with some elements dropped, outside any recording.
    pub(super) fn applied(&self, x: &Tensor) -> Result<Tensor> {
        let lent = Lent::new(x);
        let values = lent.floats()?;
        filled(x.dtype(), x.shape(), |y| {
            kernel::dropout(values, y, self.p, &self.rng, 0);
            Ok(())
        })
    }
}
