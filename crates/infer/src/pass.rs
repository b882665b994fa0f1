//! Forward passes without a graph.

use crate::error::doing;
use crate::{Error, Result};
use candle_core::Tensor;
use std::ops::Range;
use taper_models::{CausalLm, ModelConfig, RopeScaling};
use taper_nn::{ForwardContext, KvCache, Route, RoutePart, Routes, SequenceLayout};

/// Rows of logits made at a time; with a vocabulary of 150 000 that is 77 MB.
pub(crate) const ROWS_PER_HEAD: usize = 128;

/// Takes the number of the first row, the logits of some rows one behind the other, and V.
pub(crate) type GiveLogits<'g> = dyn FnMut(usize, &[f32], usize) -> Result<()> + 'g;

/// Rows of a pass that go through the same adapters.
#[derive(Clone)]
pub(crate) struct RoutedRows<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) parts: &'a [RoutePart],
    /// The model with the adapter on it, where that looks ids up otherwise.
    pub(crate) embeds: Option<&'a dyn CausalLm>,
}

/// The routes of a pass; `None` where all rows go through the modules' own slots.
fn routes<'a>(routed: &[RoutedRows<'a>]) -> Option<Routes<'a>> {
    if routed.iter().all(|rows| rows.parts.is_empty()) {
        return None;
    }
    let route = |rows: &RoutedRows<'a>| Route { rows: rows.rows.clone(), parts: rows.parts };
    Some(Routes::new(routed.iter().map(route).collect()))
}

/// The hidden states `[n, H]` of the wanted rows (at least one) behind the last block and before the final norm; with `caches` those of the
/// segments are read and extended. `routed` holds every row, or nothing.
///
/// The result of each block is detached: where an adapter's variables take part candle would otherwise keep the graph of the
/// whole model.
pub(crate) fn hidden<'a>(
    model: &dyn CausalLm,
    ids: &[u32],
    layout: &'a SequenceLayout,
    caches: Option<Vec<&'a mut KvCache>>,
    routed: &[RoutedRows<'_>],
    rows: &[u32],
) -> Result<Tensor> {
    let routes = routes(routed);
    let ctx = match caches {
        Some(caches) => ForwardContext::cached(layout, caches),
        None => ForwardContext::new(layout),
    };
    let mut ctx = ctx.routed(routes.as_ref());
    let mut x = embed(model, ids, routed)?.detach();
    for index in 0..model.num_blocks() {
        x = model.block(index, &x, &mut ctx).map_err(doing("run a block of the model"))?.detach();
    }
    if rows.len() == ids.len() {
        return Ok(x);
    }
    select_rows(&x, rows)
}

/// Some rows of hidden states, `[T, H] -> [n, H]`.
pub(crate) fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    taper_nn::ops::take_rows(x, rows).map_err(doing("select rows"))
}

fn embed(model: &dyn CausalLm, ids: &[u32], routed: &[RoutedRows<'_>]) -> Result<Tensor> {
    let run = || {
        if routed.iter().all(|rows| rows.embeds.is_none()) {
            return model.embed(ids);
        }
        let parts: Vec<Tensor> = routed
            .iter()
            .filter(|rows| !rows.rows.is_empty())
            .map(|rows| rows.embeds.unwrap_or(model).embed(&ids[rows.rows.clone()]))
            .collect::<taper_nn::Result<_>>()?;
        taper_nn::stack_rows(&parts)
    };
    run().map_err(doing("look up token embeddings"))
}

/// Final norm and head: `[n, H] -> [n, V]`, contiguous f32.
pub(crate) fn head(model: &dyn CausalLm, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
    let run = || -> candle_core::Result<Tensor> {
        let x = model.final_norm(x)?.detach();
        model.lm_head(&x, ctx)?.detach().contiguous()
    };
    run().map_err(doing("compute logits"))
}

/// Logits of hidden states `[n, H]`, some rows at a time, each through the adapters of its route. `routed` holds
/// every row.
pub(crate) fn each_logits(
    model: &dyn CausalLm,
    x: &Tensor,
    routed: &[RoutedRows<'_>],
    rows_at_a_time: usize,
    give: &mut GiveLogits<'_>,
) -> Result<()> {
    let n = x.dims().first().copied().unwrap_or(0);
    for first in (0..n).step_by(rows_at_a_time) {
        let count = rows_at_a_time.min(n - first);
        let part = x.narrow(0, first, count).map_err(doing("select rows"))?;
        let within = |rows: &Range<usize>| {
            rows.start.clamp(first, first + count) - first..rows.end.clamp(first, first + count) - first
        };
        let here: Vec<RoutedRows<'_>> =
            routed.iter().map(|rows| RoutedRows { rows: within(&rows.rows), ..rows.clone() }).collect();
        let (layout, routes) = (SequenceLayout::single(count), routes(&here));
        let ctx = ForwardContext::new(&layout).routed(routes.as_ref());
        let (values, v) = values_and_width(&head(model, &part, &ctx)?)?;
        give(first, &values, v)?;
    }
    Ok(())
}

/// Logits `[n, V]` as values, row by row, and V.
fn values_and_width(logits: &Tensor) -> Result<(Vec<f32>, usize)> {
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
