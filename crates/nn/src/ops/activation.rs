//! The gated activations of decoder MLPs.

use crate::Result;
use crate::storage::{Lent, f32_slice, filled};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};
use taper_kernels::activation as kernel;

/// Which function gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x sigmoid(x)`: SwiGLU (Shazeer 2020), `hidden_act` "silu".
    Silu,
    /// The tanh form of GELU: GeGLU, `hidden_act` "gelu_pytorch_tanh".
    GeluTanh,
}

/// `f(gate) * up`, elementwise; the backward computes f again instead of keeping it, and gives no gradient to what nothing trained
/// came before.
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, f: Gate) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gate {:?} and up {:?} differ in shape", gate.dims(), up.dims())
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Gated { f })
}

struct Gated {
    f: Gate,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (f32_slice(gate, gate_layout)?, f32_slice(up, up_layout)?);
        let y = filled(gate.len(), |y| {
            match self.f {
                Gate::Silu => kernel::silu_mul_forward(gate, up, y),
                Gate::GeluTanh => kernel::gelu_tanh_mul_forward(gate, up, y),
            }
            Ok(())
        })?;
        Ok((y, gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (gate_lent, up_lent, g_lent) = (Lent::new(gate), Lent::new(up), Lent::new(&g));
        let (gate_s, up_s, g_s) = (gate_lent.f32()?, up_lent.f32()?, g_lent.f32()?);
        let (mut dgate, mut dup) = (vec![0f32; g_s.len()], vec![0f32; g_s.len()]);
        match self.f {
            Gate::Silu => kernel::silu_mul_backward(g_s, gate_s, up_s, &mut dgate, &mut dup),
            Gate::GeluTanh => kernel::gelu_tanh_mul_backward(g_s, gate_s, up_s, &mut dgate, &mut dup),
        }
        let of = |input: &Tensor, values| {
            let tensor = || Tensor::from_vec(values, input.shape(), input.device());
            input.track_op().then(tensor).transpose()
        };
        Ok((of(gate, dgate)?, of(up, dup)?))
    }
}
