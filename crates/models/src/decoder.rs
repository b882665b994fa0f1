//! The decoder that all architectures are settings of.
//!
//! A block: x += o(attention(rope(q(n x)), rope(k(n x)), v(n x))), then x += down(act(gate(m x)) * up(m x)), n and m being norms.
//! Some have norms behind attention and MLP too, norm q and k over each head before the rotation, or cap scores and logits; attention may
//! see a window only; linear layers may have biases, and some hold several projections in one; some have many experts in place of an MLP.

use crate::attention::Attention;
use crate::experts::Experts;
use crate::mlp::Mlp;
use crate::rotary::RotaryEmbedding;
use crate::switches::{EmbeddingScale, NormNames};
use crate::weights::Weights;
use crate::{CausalLm, ModelConfig};
use candle_core::{DType, Device, Tensor, bail};
use taper_nn::ops::{add, scale, soft_cap};
use taper_nn::{Embedding, ForwardContext, Linear, ModuleMut, Result, RmsNorm, VisitModules, Weight};

/// What is shown a model's modules.
pub(crate) type Visit<'v> = dyn FnMut(ModuleMut<'_>) -> Result<()> + 'v;

/// A decoder-only transformer with rotary attention over grouped heads and a gated MLP.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
    embed_tokens: Embedding,
    embedding_scale: f64,
    /// That of blocks without a window, and that of those with one where it is another.
    rotary: Vec<RotaryEmbedding>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
    activations: DType,
}

impl Decoder {
    /// The decoder of a configuration, weight by weight. All names are those of the checkpoint.
    pub(crate) fn build(config: ModelConfig, mut weights: Weights<'_>) -> crate::Result<Self> {
        let (v, h, dtype) = (config.vocab_size, config.hidden_size, weights.dtype());
        let embed_tokens = weights.embedding("model.embed_tokens", v, h)?;
        let embedding_scale = match config.embedding_scale {
            EmbeddingScale::One => 1.0,
            EmbeddingScale::By(factor) => factor,
            EmbeddingScale::SqrtHidden => match embed_tokens.weight() {
                Weight::Frozen(table) => rounded((h as f64).sqrt(), table.dtype())?,
                Weight::Trainable(_) => (h as f64).sqrt(),
            },
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::build(&config, index, &mut weights))
            .collect::<crate::Result<_>>()?;
        let norm = weights.norm("model.norm", h, config.rms_norm_eps, config.norm_offset)?;
        let lm_head = if config.tie_word_embeddings {
            weights.check_tied("lm_head.weight", "model.embed_tokens.weight")?;
            Linear::tied("lm_head", embed_tokens.weight().clone())
        } else {
            weights.linear("lm_head", h, v, false)?.as_head()
        };
        weights.finish()?;
        let ropes = [Some(&config.rope), config.local_rope.as_ref()];
        let rotary = ropes.into_iter().flatten().cloned();
        let rotary = rotary.map(|rope| RotaryEmbedding::new(rope, config.rotary_dim)).collect();
        let activations = DType::F32;
        let mut built =
            Self { config, embed_tokens, embedding_scale, rotary, blocks, norm, lm_head, activations };
        let activations = dtype.unwrap_or_else(|| built.embedding_dtype());
        built.set_activation_dtype(activations)?;
        Ok(built)
    }

    fn embedding_dtype(&self) -> DType {
        match self.embed_tokens.weight() {
            Weight::Frozen(table) => table.dtype(),
            Weight::Trainable(_) => DType::F32,
        }
    }

    /// What the norms give: bf16 for bf16, else f32.
    fn set_activation_dtype(&mut self, dtype: DType) -> Result<()> {
        let dtype = if dtype == DType::BF16 { DType::BF16 } else { DType::F32 };
        self.activations = dtype;
        self.visit_modules(&mut |module| {
            if let ModuleMut::RmsNorm(norm) = module {
                norm.set_output_dtype(dtype);
            }
            Ok(())
        })
    }
}

/// The number nearest to `x` in `dtype`.
fn rounded(x: f64, dtype: DType) -> Result<f64> {
    Tensor::new(x as f32, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F64)?.to_scalar()
}

impl CausalLm for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn clone_boxed(&self) -> Box<dyn CausalLm> {
        Box::new(self.clone())
    }

    fn activation_dtype(&self) -> DType {
        self.activations
    }

    fn embed(&self, input_ids: &[u32]) -> Result<Tensor> {
        let embedded = self.embed_tokens.forward(input_ids)?;
        if self.embedding_scale == 1.0 { Ok(embedded) } else { scale(&embedded, self.embedding_scale) }
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
        // Scaling H numbers a row is less work than scaling V logits.
        let divisor = self.config.logits_divisor;
        let x = if divisor == 1.0 { x.clone() } else { scale(x, 1.0 / divisor)? };
        let logits = self.lm_head.forward(&x, ctx)?;
        match self.config.logits_soft_cap {
            Some(cap) => soft_cap(&logits, cap as f32),
            None => Ok(logits),
        }
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
    self_attn: Attention,
    attention_norms: Norms,
    mlp: BlockMlp,
    mlp_norms: Norms,
    residual_multiplier: f64,
}

#[derive(Debug, Clone)]
enum BlockMlp {
    One(Box<Mlp>),
    Experts(Box<Experts>),
}

/// The norms around attention or an MLP.
#[derive(Debug, Clone)]
struct Norms {
    before: Option<RmsNorm>,
    behind: Option<RmsNorm>,
}

impl Block {
    fn build(config: &ModelConfig, index: usize, weights: &mut Weights<'_>) -> crate::Result<Self> {
        let path = |part: &str| format!("model.layers.{index}.{part}");
        let [attention_norms, mlp_norms] = config.norm_placement.names();
        let mut norms = |(before, behind): NormNames| -> crate::Result<Norms> {
            let mut norm = |name: Option<&str>| {
                let (h, eps, offset) = (config.hidden_size, config.rms_norm_eps, config.norm_offset);
                name.map(|name| weights.norm(&path(name), h, eps, offset)).transpose()
            };
            Ok(Norms { before: norm(before)?, behind: norm(behind)? })
        };
        Ok(Self {
            attention_norms: norms(attention_norms)?,
            mlp_norms: norms(mlp_norms)?,
            self_attn: Attention::build(config, index, &path("self_attn"), weights)?,
            mlp: BlockMlp::build(config, index, &path("mlp"), weights)?,
            residual_multiplier: config.residual_multiplier,
        })
    }

    /// `[T, H] -> [T, H]`.
    fn forward(
        &self,
        x: &Tensor,
        rotary: &[RotaryEmbedding],
        ctx: &mut ForwardContext<'_>,
    ) -> Result<Tensor> {
        let x = self.add(x, &self.attention_norms.around(x, |x| self.self_attn.forward(x, rotary, ctx))?)?;
        self.add(&x, &self.mlp_norms.around(&x, |x| self.mlp.forward(x, ctx))?)
    }

    fn add(&self, x: &Tensor, added: &Tensor) -> Result<Tensor> {
        match self.residual_multiplier {
            1.0 => add(x, added),
            factor => add(x, &scale(added, factor)?),
        }
    }

    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit_norm(&mut self.attention_norms.before, visit)?;
        self.self_attn.visit_modules(visit)?;
        visit_norm(&mut self.attention_norms.behind, visit)?;
        visit_norm(&mut self.mlp_norms.before, visit)?;
        self.mlp.visit_modules(visit)?;
        visit_norm(&mut self.mlp_norms.behind, visit)
    }
}

impl BlockMlp {
    fn build(
        config: &ModelConfig,
        index: usize,
        path: &str,
        weights: &mut Weights<'_>,
    ) -> crate::Result<Self> {
        let experts = config.experts.as_ref().filter(|experts| experts.blocks.get(index) == Some(&true));
        Ok(match experts {
            Some(experts) => Self::Experts(Box::new(Experts::build(config, experts, path, weights)?)),
            None => Self::One(Box::new(Mlp::build(config, config.intermediate_size, path, weights)?)),
        })
    }

    fn forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        match self {
            Self::One(mlp) => mlp.forward(x, ctx),
            Self::Experts(experts) => experts.forward(x, ctx),
        }
    }

    fn visit_modules(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        match self {
            Self::One(mlp) => mlp.visit_modules(visit),
            Self::Experts(experts) => experts.visit_modules(visit),
        }
    }
}

impl Norms {
    /// `behind(inner(before(x)))`.
    fn around(&self, x: &Tensor, inner: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let y = match &self.before {
            Some(norm) => inner(&norm.forward(x)?)?,
            None => inner(x)?,
        };
        match &self.behind {
            Some(norm) => norm.forward(&y),
            None => Ok(y),
        }
    }
}

fn visit_norm(norm: &mut Option<RmsNorm>, visit: &mut Visit<'_>) -> Result<()> {
    norm.as_mut().map_or(Ok(()), |norm| visit(ModuleMut::RmsNorm(norm)))
}
