//! The decoder that all architectures are settings of.
//!
//! A block: x += o(attention(rope(q(n x)), rope(k(n x)), v(n x))), then x += down(act(gate(m x)) * up(m x)), n and m being norms.
//! Some norm q and k over each head before the rotation; attention may see a window only; linear layers may have biases.

use crate::rotary::RotaryEmbedding;
use crate::weights::Weights;
use crate::{CausalLm, ModelConfig};
use candle_core::{Tensor, bail};
use taper_nn::ops::{AttentionShape, Gate, attention, gated, rope};
use taper_nn::{Embedding, ForwardContext, Linear, ModuleMut, Result, RmsNorm, VisitModules};

type Visit<'v> = dyn FnMut(ModuleMut<'_>) -> Result<()> + 'v;

/// A decoder-only transformer with pre-norms, rotary attention over grouped heads and a gated MLP.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
    embed_tokens: Embedding,
    rotary: RotaryEmbedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Decoder {
    /// The decoder of a configuration, weight by weight. All names are those of the checkpoint.
    pub(crate) fn build(config: ModelConfig, mut weights: Weights<'_>) -> crate::Result<Self> {
        let (v, h) = (config.vocab_size, config.hidden_size);
        let embed_tokens = weights.embedding("model.embed_tokens", v, h)?;
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::build(&config, index, &mut weights))
            .collect::<crate::Result<_>>()?;
        let norm = weights.norm("model.norm", h, config.rms_norm_eps)?;
        let lm_head = if config.tie_word_embeddings {
            weights.check_tied("lm_head.weight", "model.embed_tokens.weight")?;
            Linear::tied("lm_head", embed_tokens.weight().clone())
        } else {
            weights.head("lm_head", v, h)?
        };
        weights.finish()?;
        let rotary = RotaryEmbedding::new(config.rope.clone(), config.head_dim);
        Ok(Self { config, embed_tokens, rotary, blocks, norm, lm_head })
    }
}

impl CausalLm for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, input_ids: &[u32]) -> Result<Tensor> {
        self.embed_tokens.forward(input_ids)
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize, x: &Tensor, ctx: &mut ForwardContext<'_>) -> Result<Tensor> {
        let Some(block) = self.blocks.get(index) else {
            bail!("block {index} of a model of {}", self.blocks.len())
        };
        block.forward(x, &self.rotary, ctx)
    }

    fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    fn lm_head(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        self.lm_head.forward(x, ctx)
    }
}

impl VisitModules for Decoder {
    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        let visited = self.visit_all(visit);
        // Also after an error: the table may have become a variable by then.
        if self.lm_head.is_tied() {
            self.lm_head.set_weight(self.embed_tokens.weight().clone())?;
        }
        visited
    }
}

impl Decoder {
    fn visit_all(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(ModuleMut::Embedding(&mut self.embed_tokens))?;
        for block in &mut self.blocks {
            block.visit_modules(visit)?;
        }
        visit(ModuleMut::RmsNorm(&mut self.norm))?;
        visit(ModuleMut::Linear(&mut self.lm_head))
    }
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn build(config: &ModelConfig, index: usize, weights: &mut Weights<'_>) -> crate::Result<Self> {
        let path = |part: &str| format!("model.layers.{index}.{part}");
        let (h, eps) = (config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_layernorm: weights.norm(&path("input_layernorm"), h, eps)?,
            self_attn: Attention::build(config, index, &path("self_attn"), weights)?,
            post_attention_layernorm: weights.norm(&path("post_attention_layernorm"), h, eps)?,
            mlp: Mlp::build(config, &path("mlp"), weights)?,
        })
    }

    /// `[T, H] -> [T, H]`.
    fn forward(&self, x: &Tensor, rotary: &RotaryEmbedding, ctx: &mut ForwardContext<'_>) -> Result<Tensor> {
        let x = (x + self.self_attn.forward(&self.input_layernorm.forward(x)?, rotary, ctx)?)?;
        &x + self.mlp.forward(&self.post_attention_layernorm.forward(&x)?, ctx)?
    }

    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(ModuleMut::RmsNorm(&mut self.input_layernorm))?;
        self.self_attn.visit_modules(visit)?;
        visit(ModuleMut::RmsNorm(&mut self.post_attention_layernorm))?;
        for linear in self.mlp.linears() {
            visit(ModuleMut::Linear(linear))?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    shape: AttentionShape,
    /// The block's number, which is its cache's.
    index: usize,
}

impl Attention {
    fn build(
        config: &ModelConfig,
        index: usize,
        path: &str,
        weights: &mut Weights<'_>,
    ) -> crate::Result<Self> {
        let (h, d) = (config.hidden_size, config.head_dim);
        let (queries, keys) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let bias = config.qkv_bias;
        let head_norm = |name: &str, weights: &mut Weights<'_>| {
            let norm = || weights.norm(&format!("{path}.{name}"), d, config.rms_norm_eps);
            config.qk_norm.then(norm).transpose()
        };
        Ok(Self {
            q_proj: weights.linear(&format!("{path}.q_proj"), h, queries, bias)?,
            k_proj: weights.linear(&format!("{path}.k_proj"), h, keys, bias)?,
            v_proj: weights.linear(&format!("{path}.v_proj"), h, keys, bias)?,
            o_proj: weights.linear(&format!("{path}.o_proj"), queries, h, config.o_bias)?,
            q_norm: head_norm("q_norm", weights)?,
            k_norm: head_norm("k_norm", weights)?,
            shape: AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: d,
                scale: 1.0 / (d as f32).sqrt(),
                window: config.windows.get(index).copied().flatten(),
                soft_cap: None,
            },
            index,
        })
    }

    /// `[T, H] -> [T, H]`, through q `[T, N D]` and k, v `[T, K D]`.
    fn forward(&self, x: &Tensor, rotary: &RotaryEmbedding, ctx: &mut ForwardContext<'_>) -> Result<Tensor> {
        let tables = ctx.rotary(0, |layout| rotary.tables(layout))?;
        let d = self.shape.head_dim;
        let q = rope(&normed(self.q_norm.as_ref(), self.q_proj.forward(x, ctx)?)?, &tables, d)?;
        let k = rope(&normed(self.k_norm.as_ref(), self.k_proj.forward(x, ctx)?)?, &tables, d)?;
        let v = self.v_proj.forward(x, ctx)?;
        let mixed = attention(&q, &k, &v, self.index, &self.shape, ctx)?;
        self.o_proj.forward(&mixed, ctx)
    }

    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        for (linear, norm) in [(&mut self.q_proj, &mut self.q_norm), (&mut self.k_proj, &mut self.k_norm)] {
            visit(ModuleMut::Linear(linear))?;
            if let Some(norm) = norm {
                visit(ModuleMut::RmsNorm(norm))?;
            }
        }
        visit(ModuleMut::Linear(&mut self.v_proj))?;
        visit(ModuleMut::Linear(&mut self.o_proj))
    }
}

/// `[T, n D]`, normed over each of its n heads where there is a norm.
fn normed(norm: Option<&RmsNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn build(config: &ModelConfig, path: &str, weights: &mut Weights<'_>) -> crate::Result<Self> {
        let (h, i, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        Ok(Self {
            gate_proj: weights.linear(&format!("{path}.gate_proj"), h, i, bias)?,
            up_proj: weights.linear(&format!("{path}.up_proj"), h, i, bias)?,
            down_proj: weights.linear(&format!("{path}.down_proj"), i, h, bias)?,
        })
    }

    /// `[T, H] -> [T, H]`, through `[T, I]`.
    fn forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        let gate = self.gate_proj.forward(x, ctx)?;
        let up = self.up_proj.forward(x, ctx)?;
        self.down_proj.forward(&gated(&gate, &up, Gate::Silu)?, ctx)
    }

    fn linears(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj]
    }
}
