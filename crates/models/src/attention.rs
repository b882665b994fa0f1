//! The attention of a block: `o(attention(rope(q(x)), rope(k(x)), v(x)))`.

use crate::ModelConfig;
use crate::decoder::Visit;
use crate::rotary::RotaryEmbedding;
use crate::switches::QkNorm;
use crate::weights::Weights;
use candle_core::{Tensor, bail};
use taper_nn::ops::{AttentionShape, attention, columns, rope};
use taper_nn::{ForwardContext, Linear, ModuleMut, Result, RmsNorm};

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    input: Input,
    o_proj: Linear,
    shape: AttentionShape,
    /// The block's number, which is its cache's.
    index: usize,
    /// Which of the model's rotary embeddings is this block's.
    rotary: usize,
}

#[derive(Debug, Clone)]
enum Input {
    Separate(Box<Separate>),
    /// Queries, then keys, then values.
    Fused {
        qkv_proj: Linear,
    },
}

#[derive(Debug, Clone)]
struct Separate {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
}

impl Attention {
    pub(crate) fn build(
        config: &ModelConfig,
        index: usize,
        path: &str,
        weights: &mut Weights<'_>,
    ) -> crate::Result<Self> {
        let (h, d) = (config.hidden_size, config.head_dim);
        let (queries, keys) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let input = match config.fused_projections {
            true => Input::Fused {
                qkv_proj: weights.linear(
                    &format!("{path}.qkv_proj"),
                    h,
                    queries + 2 * keys,
                    config.qkv_bias,
                )?,
            },
            false => Input::Separate(Box::new(Separate::build(config, path, weights)?)),
        };
        let window = config.windows.get(index).copied().flatten();
        Ok(Self {
            input,
            o_proj: weights.linear(&format!("{path}.o_proj"), queries, h, config.o_bias)?,
            shape: AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: d,
                scale: config.attention_scale as f32,
                window,
                soft_cap: config.attention_soft_cap.map(|cap| cap as f32),
            },
            index,
            rotary: usize::from(window.is_some() && config.local_rope.is_some()),
        })
    }

    /// `[T, H] -> [T, H]`, through q `[T, N D]` and k, v `[T, K D]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotary: &[RotaryEmbedding],
        ctx: &mut ForwardContext<'_>,
    ) -> Result<Tensor> {
        let Some(embedding) = rotary.get(self.rotary) else { bail!("no rotary embedding {}", self.rotary) };
        let tables = ctx.rotary(self.rotary, |layout| embedding.tables(layout)?.on_device_of(x))?;
        let d = self.shape.head_dim;
        let (q, k, v) = self.project(x, ctx)?;
        let (q, k) = (rope(&q, &tables, d)?, rope(&k, &tables, d)?);
        let mixed = attention(&q, &k, &v, self.index, &self.shape, ctx)?;
        self.o_proj.forward(&mixed, ctx)
    }

    /// q `[T, N D]`, k and v `[T, K D]`, before rotation.
    fn project(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<(Tensor, Tensor, Tensor)> {
        match &self.input {
            Input::Separate(input) => Ok((
                normed(input.q_norm.as_ref(), input.q_proj.forward(x, ctx)?)?,
                normed(input.k_norm.as_ref(), input.k_proj.forward(x, ctx)?)?,
                input.v_proj.forward(x, ctx)?,
            )),
            Input::Fused { qkv_proj } => {
                let all = qkv_proj.forward(x, ctx)?;
                let (queries, keys) =
                    (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
                Ok((
                    columns(&all, 0..queries)?,
                    columns(&all, queries..queries + keys)?,
                    columns(&all, queries + keys..queries + 2 * keys)?,
                ))
            }
        }
    }

    pub(crate) fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        match &mut self.input {
            Input::Separate(input) => input.visit_modules(visit)?,
            Input::Fused { qkv_proj } => visit(ModuleMut::Linear(qkv_proj))?,
        }
        visit(ModuleMut::Linear(&mut self.o_proj))
    }
}

impl Separate {
    fn build(config: &ModelConfig, path: &str, weights: &mut Weights<'_>) -> crate::Result<Self> {
        let (h, d, bias) = (config.hidden_size, config.head_dim, config.qkv_bias);
        let (queries, keys) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let mut norm = |name: &str, all_heads: usize| -> crate::Result<Option<RmsNorm>> {
            let width = match config.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::Head => d,
                QkNorm::Layer => all_heads,
            };
            let path = format!("{path}.{name}");
            weights.norm(&path, width, config.rms_norm_eps, config.norm_offset).map(Some)
        };
        Ok(Self {
            q_norm: norm("q_norm", queries)?,
            k_norm: norm("k_norm", keys)?,
            q_proj: weights.linear(&format!("{path}.q_proj"), h, queries, bias)?,
            k_proj: weights.linear(&format!("{path}.k_proj"), h, keys, bias)?,
            v_proj: weights.linear(&format!("{path}.v_proj"), h, keys, bias)?,
        })
    }

    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        for (linear, norm) in [(&mut self.q_proj, &mut self.q_norm), (&mut self.k_proj, &mut self.k_norm)] {
            visit(ModuleMut::Linear(linear))?;
            if let Some(norm) = norm {
                visit(ModuleMut::RmsNorm(norm))?;
            }
        }
        visit(ModuleMut::Linear(&mut self.v_proj))
    }
}

/// `[T, n W]`, normed over each of its n parts of the norm's width where there is a norm.
fn normed(norm: Option<&RmsNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}
