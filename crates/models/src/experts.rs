//! The MLP of a block as many experts, a few of which see each token.

use crate::ModelConfig;
use crate::decoder::Visit;
use crate::mlp::Mlp;
use crate::switches::ExpertsConfig;
use crate::weights::Weights;
use candle_core::{DType, Tensor};
use taper_nn::ops::{Routing, cast, mix_experts, routing_weights, rows};
use taper_nn::{ForwardContext, Linear, ModuleMut, Result};

/// `y_t = sum over the k experts e of token t of w_te mlp_e(x_t)`, chosen and weighted by a linear router. An expert that no token of a batch
/// goes to is not computed, and what is trained in it gets no gradient.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// The router, `[E, H]`.
    gate: Linear,
    experts: Vec<Mlp>,
    per_token: usize,
    normalised: bool,
}

impl Experts {
    pub(crate) fn build(
        config: &ModelConfig,
        experts: &ExpertsConfig,
        path: &str,
        weights: &mut Weights<'_>,
    ) -> crate::Result<Self> {
        let gate = weights.linear(&format!("{path}.gate"), config.hidden_size, experts.num_experts, false)?;
        let mlp = |e| Mlp::build(config, experts.intermediate_size, &format!("{path}.experts.{e}"), weights);
        Ok(Self {
            gate,
            experts: (0..experts.num_experts).map(mlp).collect::<crate::Result<_>>()?,
            per_token: experts.num_experts_per_tok,
            normalised: experts.norm_topk_prob,
        })
    }

    /// `[T, H] -> [T, H]`. Experts compute in f32: few rows go to each, and the router decides by small differences.
    pub(crate) fn forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        let x = &cast(x, DType::F32)?;
        let logits = self.gate.forward(x, ctx)?;
        let routing = Routing::top_k(&logits, self.per_token)?;
        let weights = routing_weights(&logits, &routing, self.normalised)?;
        let mut parts = Vec::new();
        for (index, expert) in self.experts.iter().enumerate() {
            let tokens = routing.tokens_of(index);
            if !tokens.is_empty() {
                parts.push((index, expert.forward(&rows(x, tokens)?, ctx)?));
            }
        }
        mix_experts(&parts, &weights, &routing)
    }

    pub(crate) fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(ModuleMut::Linear(&mut self.gate))?;
        self.experts.iter_mut().try_for_each(|expert| expert.visit_modules(visit))
    }
}
