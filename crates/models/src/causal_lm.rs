//! What every architecture offers to those who train, generate and evaluate.

use crate::ModelConfig;
use candle_core::{DType, Tensor, bail};
use taper_nn::{ForwardContext, ModuleMut, Result, VisitModules, Weight};

/// A decoder that can be run block by block.
///
/// The driver of training keeps each block's input alone and runs a block again for its gradient, so a block is a unit of its own here.
pub trait CausalLm: VisitModules + Send + Sync {
    /// What `config.json` says.
    fn config(&self) -> &ModelConfig;

    /// A copy that shares all weights: what is put on one is not on the other.
    fn clone_boxed(&self) -> Box<dyn CausalLm>;

    /// The type of the activations between the norms: bf16 or f32.
    fn activation_dtype(&self) -> DType;

    /// The embeddings of ids: `[T, H]`, f32.
    ///
    /// # Errors
    /// When an id is not below V.
    fn embed(&self, input_ids: &[u32]) -> Result<Tensor>;

    /// How many blocks there are.
    fn num_blocks(&self) -> usize;

    /// Block `index`: `[T, H] -> [T, H]`, f32.
    ///
    /// # Errors
    /// What the arithmetic says, with the module's path.
    fn block(&self, index: usize, x: &Tensor, ctx: &mut ForwardContext<'_>) -> Result<Tensor>;

    /// The norm behind the last block: `[T, H] -> [T, H]`.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn final_norm(&self, x: &Tensor) -> Result<Tensor>;

    /// Normed hidden states to logits, `[n, H] -> [n, V]`, for the n rows that someone wants logits of.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn lm_head(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor>;
}

/// The hidden states that the head sees: T ids to `[T, H]`.
///
/// # Errors
/// When the ids are not as many as the layout has tokens, and what the arithmetic says.
pub fn forward_hidden(
    model: &dyn CausalLm,
    input_ids: &[u32],
    ctx: &mut ForwardContext<'_>,
) -> Result<Tensor> {
    let tokens = ctx.layout().tokens();
    if input_ids.len() != tokens {
        bail!("{} ids for a layout of {tokens} tokens", input_ids.len())
    }
    let mut x = model.embed(input_ids)?;
    for index in 0..model.num_blocks() {
        x = model.block(index, &x, ctx)?;
    }
    model.final_norm(&x)
}

/// The logits of every token: T ids to `[T, V]`. For tests and short texts; V is large, and who needs some rows only takes
/// [`forward_hidden`] and gives those rows to the head.
///
/// # Errors
/// As [`forward_hidden`].
pub fn forward_logits(
    model: &dyn CausalLm,
    input_ids: &[u32],
    ctx: &mut ForwardContext<'_>,
) -> Result<Tensor> {
    let hidden = forward_hidden(model, input_ids, ctx)?;
    model.lm_head(&hidden, ctx)
}

/// The base weights under their names in a checkpoint, in the order of the forward pass, outside any graph: matrices in the type they are
/// held in (trained and quantised ones f32), norms and biases f32. The table that a tied head shares is listed once. Adapters are not merged.
///
/// # Errors
/// What candle says.
pub fn state_tensors(model: &mut dyn VisitModules) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    model.visit_modules(&mut |module| {
        let path = module.path().to_owned();
        match module {
            ModuleMut::Linear(linear) => {
                if !linear.is_tied() {
                    tensors.push((format!("{path}.weight"), held(linear.weight())?));
                }
                tensors.extend(linear.bias().map(|bias| (format!("{path}.bias"), bias)));
            }
            ModuleMut::Embedding(embedding) => {
                tensors.push((format!("{path}.weight"), held(embedding.weight())?));
            }
            ModuleMut::RmsNorm(norm) => tensors.push((format!("{path}.weight"), norm.weight())),
        }
        Ok(())
    })?;
    Ok(tensors)
}

fn held(weight: &Weight) -> Result<Tensor> {
    match weight {
        Weight::Frozen(frozen) => frozen.to_dense(),
        Weight::Trainable(var) => Ok(var.as_detached_tensor()),
    }
}
