//! Forward passes without a graph.

use crate::error::doing;
use crate::{Error, Result};
use candle_core::Tensor;
use taper_models::{CausalLm, ModelConfig, RopeScaling};
use taper_nn::{ForwardContext, KvCache, SequenceLayout};

/// The hidden states `[n, H]` of the wanted rows behind the last block and before the final norm.
///
/// The result of each block is detached: where an adapter's variables take part candle would otherwise keep the graph of the
/// whole model.
fn hidden(model: &dyn CausalLm, ids: &[u32], ctx: &mut ForwardContext<'_>, rows: &[u32]) -> Result<Tensor> {
    let mut x = model.embed(ids).map_err(doing("look up token embeddings"))?.detach();
    for index in 0..model.num_blocks() {
        x = model.block(index, &x, ctx).map_err(doing("run a block of the model"))?.detach();
    }
    if rows.len() == ids.len() {
        return Ok(x);
    }
    let rows = Tensor::new(rows, x.device()).map_err(doing("select rows"))?;
    x.index_select(&rows, 0).map_err(doing("select rows"))
}

/// Logits `[n, V]` of the last token of each segment, with the segments' caches read and extended.
pub(crate) fn last_logits(
    model: &dyn CausalLm,
    ids: &[u32],
    layout: &SequenceLayout,
    caches: Vec<&mut KvCache>,
    wanted: &[bool],
) -> Result<Option<Tensor>> {
    let rows: Vec<u32> = layout
        .segments()
        .iter()
        .zip(wanted)
        .filter(|(_, wanted)| **wanted)
        .map(|(segment, _)| segment.end as u32 - 1)
        .collect();
    let mut ctx = ForwardContext::cached(layout, caches);
    let x = hidden(model, ids, &mut ctx, if rows.is_empty() { &[0] } else { &rows })?;
    if rows.is_empty() {
        return Ok(None);
    }
    head(model, &x, &ctx).map(Some)
}

/// Hidden states `[n, H]` of the wanted rows, all segments from their beginning, nothing cached; for [`head`].
pub(crate) fn uncached_hidden(
    model: &dyn CausalLm,
    ids: &[u32],
    layout: &SequenceLayout,
    rows: &[u32],
) -> Result<Tensor> {
    hidden(model, ids, &mut ForwardContext::new(layout), rows)
}

/// Final norm and head: `[n, H] -> [n, V]`, contiguous f32.
pub(crate) fn head(model: &dyn CausalLm, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
    let run = || -> candle_core::Result<Tensor> {
        let x = model.final_norm(x)?.detach();
        model.lm_head(&x, ctx)?.detach().contiguous()
    };
    run().map_err(doing("compute logits"))
}

/// Logits `[n, V]` as values, row by row, and V.
pub(crate) fn values_and_width(logits: &Tensor) -> Result<(Vec<f32>, usize)> {
    let (_, v) = logits.dims2().map_err(doing("read logits"))?;
    let values = taper_nn::to_vec_f32(logits).map_err(doing("read logits"))?;
    Ok((values, v))
}

/// The longest sequence of a model, in tokens: `max_position_embeddings`, stretched where its rotary embedding stretches
/// beyond it. Prompt and answer have to fit in it.
pub fn longest_sequence(config: &ModelConfig) -> usize {
    let stretched = |tokens: usize, factor: f64| (tokens as f64 * factor) as usize;
    let most = config.max_position_embeddings;
    match config.rope.scaling {
        RopeScaling::Linear { factor } => most.max(stretched(most, factor)),
        RopeScaling::Dynamic { factor, original } => most.max(stretched(original, factor)),
        RopeScaling::Yarn { factor, original, .. } => most.max(stretched(original, factor)),
        RopeScaling::Default | RopeScaling::LongRope { .. } | RopeScaling::Llama3 { .. } => most,
    }
}

/// Whether the rotary embedding looks at the longest text of the batch, so that a text must be run alone and whole for its numbers
/// not to depend on its company.
pub(crate) fn must_run_alone(model: &dyn CausalLm) -> bool {
    matches!(model.config().rope.scaling, RopeScaling::Dynamic { .. })
}

/// `Err` of `make` when `tokens` are more than fit.
pub(crate) fn check_length(
    model: &dyn CausalLm,
    tokens: usize,
    make: impl FnOnce(usize) -> Error,
) -> Result<()> {
    let limit = longest_sequence(model.config());
    if tokens > limit { Err(make(limit)) } else { Ok(()) }
}
