//! The gated MLP of a block: `down(act(gate(x)) * up(x))`.

use crate::ModelConfig;
use crate::decoder::Visit;
use crate::weights::Weights;
use candle_core::Tensor;
use taper_nn::ops::{Gate, columns, gated};
use taper_nn::{ForwardContext, Linear, ModuleMut, Result};

#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    input: Input,
    down_proj: Linear,
    activation: Gate,
}

#[derive(Debug, Clone)]
enum Input {
    Separate {
        gate_proj: Linear,
        up_proj: Linear,
    },
    /// Gate, then up.
    Fused {
        gate_up_proj: Linear,
    },
}

impl Mlp {
    /// With I = `width`.
    pub(crate) fn build(
        config: &ModelConfig,
        width: usize,
        path: &str,
        weights: &mut Weights<'_>,
    ) -> crate::Result<Self> {
        let (h, bias) = (config.hidden_size, config.mlp_bias);
        let mut linear = |name: &str, inputs: usize, outputs: usize| {
            weights.linear(&format!("{path}.{name}"), inputs, outputs, bias)
        };
        let input = match config.fused_projections {
            true => Input::Fused { gate_up_proj: linear("gate_up_proj", h, 2 * width)? },
            false => Input::Separate {
                gate_proj: linear("gate_proj", h, width)?,
                up_proj: linear("up_proj", h, width)?,
            },
        };
        Ok(Self { input, down_proj: linear("down_proj", width, h)?, activation: config.activation })
    }

    /// `[T, H] -> [T, H]`, through `[T, I]`.
    pub(crate) fn forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        let (gate, up) = match &self.input {
            Input::Separate { gate_proj, up_proj } => (gate_proj.forward(x, ctx)?, up_proj.forward(x, ctx)?),
            Input::Fused { gate_up_proj } => {
                let (both, width) = (gate_up_proj.forward(x, ctx)?, gate_up_proj.out_features() / 2);
                (columns(&both, 0..width)?, columns(&both, width..2 * width)?)
            }
        };
        self.down_proj.forward(&gated(&gate, &up, self.activation)?, ctx)
    }

    pub(crate) fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        match &mut self.input {
            Input::Separate { gate_proj, up_proj } => {
                visit(ModuleMut::Linear(gate_proj))?;
                visit(ModuleMut::Linear(up_proj))?;
            }
            Input::Fused { gate_up_proj } => visit(ModuleMut::Linear(gate_up_proj))?,
        }
        visit(ModuleMut::Linear(&mut self.down_proj))
    }
}
