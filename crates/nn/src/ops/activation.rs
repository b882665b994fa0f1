//! The gated activations of decoder MLPs.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Tensor, bail};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::activation as device;
use taper_kernels::{activation as kernel, floats};

pub use kernel::Gate;

/// `f(gate) * up`, elementwise, in the type of the inputs; the backward computes f again instead of keeping it.
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, f: Gate) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gate {:?} and up {:?} differ in shape", gate.dims(), up.dims())
    }
    apply(Gated { f }, &[gate, up])
}

struct Gated {
    f: Gate,
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [gate, up] = inputs else { bail!("takes a gate and what it gates") };
        let (gate_lent, up_lent) = (Lent::new(gate), Lent::new(up));
        let (gate_s, up_s) = (gate_lent.floats()?, up_lent.floats()?);
        filled(gate.dtype(), gate.shape(), |y| {
            kernel::gated_forward(self.f, gate_s, up_s, y);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [gate, up] = inputs else { bail!("takes a gate and what it gates") };
        let (gate_lent, up) = (GpuLent::new(place, gate), GpuLent::new(place, up));
        let (gate_s, up) = (gate_lent.slice()?, up.slice()?);
        let fill = |y: &mut SliceMut<'_>| device::gated_forward(place, self.f, gate_s, up, y).map_err(failed);
        place.filled(gate.dtype(), gate.shape(), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let (gate, up) = (GpuLent::new(place, saved.input(0)?), GpuLent::new(place, saved.input(1)?));
        let (inputs, lent) = ((gate.slice()?, up.slice()?), GpuLent::new(place, g));
        let g_s = lent.f32()?;
        let mut dup = None;
        let dgate = place.filled(DType::F32, g.shape(), |dgate| {
            let fill = |dup: &mut SliceMut<'_>| {
                device::gated_backward(place, self.f, g_s, inputs, dgate, dup).map_err(failed)
            };
            dup = Some(place.filled(DType::F32, g.shape(), fill)?);
            Ok(())
        })?;
        to.pass(0, &Gradient::new(dgate))?;
        dup.map_or(Ok(()), |dup| to.pass(1, &Gradient::new(dup)))?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (gate, up, g) = (Lent::new(saved.input(0)?), Lent::new(saved.input(1)?), Lent::new(g));
        let (gate, up, g) = (gate.floats()?, up.floats()?, g.f32()?);
        let mut dup = floats::buffer(g.len());
        to.write(0, |dgate| {
            kernel::gated_backward(self.f, g, gate, up, dgate, &mut dup);
            Ok(())
        })?;
        if !to.wants(0) {
            let mut unwanted = floats::buffer(g.len());
            kernel::gated_backward(self.f, g, gate, up, &mut unwanted, &mut dup);
        }
        to.take(1, dup)
    }
}
