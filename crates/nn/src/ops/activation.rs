//! The gated activations of decoder MLPs.

use crate::Result;
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
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
