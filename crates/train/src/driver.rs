//! Forward and backward block by block, so that one block's activations are alive at a time.
//!
//! candle never frees a forward graph while it walks it backward. So the graph is cut between blocks: each block sees its
//! input as a leaf, and its backward is seeded with the gradient that came down to its output. With
//! `gradient_checkpointing` a block's graph is dropped in the forward and made again from the block's input in the backward;
//! dropout is keyed by place, so the second forward has the same bits as the first (Chen et al. 2016, "Training deep nets
//! with sublinear memory cost").
//!
//! Behind the last block, rows with a target are gathered in chunks of at most [`LOGITS_BYTES`] of logits; each chunk goes
//! through the final norm, the head and the loss, and straight back. The logits of a batch are never together in memory,
//! and rows without a target cost nothing.

use crate::error::{Doing, Error, Result};
use crate::gradients::Gradients;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use taper_data::{Batch, IGNORE};
use taper_models::CausalLm;
use taper_nn::ops::{CrossEntropy, backward_from, cross_entropy, cross_entropy_with_gradient};
use taper_nn::{ForwardContext, RandomKey, SequenceLayout, with_f32};

/// Most memory that the logits of a chunk may take: 64 MiB.
pub const LOGITS_BYTES: usize = 64 << 20;

/// How a pass is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassOptions {
    /// Compute each block again in the backward instead of keeping its graph.
    pub gradient_checkpointing: bool,
    /// NEFTune's alpha.
    pub neftune_noise_alpha: Option<f64>,
    /// Bytes of logits in a chunk; at least one row is in each.
    pub logits_bytes: usize,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self { gradient_checkpointing: false, neftune_noise_alpha: None, logits_bytes: LOGITS_BYTES }
    }
}

/// What a pass found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pass {
    /// Sum of the cross-entropies over the targets, in nats.
    pub loss_sum: f64,
    /// How many targets there were.
    pub target_tokens: usize,
    /// Gradients that belong to no trained parameter: where they were found and their shape. There are none when all is
    /// well; a frozen weight among them costs time and memory.
    pub stray: Vec<String>,
}

/// Add the gradient of the **sum** of the losses of `batch` to `gradients`.
///
/// `key` is that of dropout and noise; without one there is neither.
///
/// # Errors
/// What the arithmetic says, with the part of the model in which it failed.
pub fn forward_backward(
    model: &dyn CausalLm,
    batch: &Batch,
    key: Option<RandomKey>,
    options: &PassOptions,
    gradients: &mut Gradients,
) -> Result<Pass> {
    if batch.target_tokens == 0 {
        return Ok(Pass::default());
    }
    let layout = layout_of(batch);
    let mut ctx =
        key.map_or_else(|| ForwardContext::new(&layout), |key| ForwardContext::training(&layout, key));
    let mut backward = Backward { gradients, stray: Vec::new() };

    let embedded = model.embed(&batch.input_ids).doing(|| "embed the tokens".into())?;
    let hidden = with_noise(embedded.detach(), &layout, key, options)
        .doing(|| "add noise to the embeddings".into())?;
    let (hidden, kept) = blocks_forward(model, hidden, embedded.track_op(), &mut ctx, options)?;
    let wanted = embedded.track_op() || !kept.is_empty();
    let (loss_sum, gradient) = head(model, &hidden, batch, key, options, wanted, &mut backward)?;
    if let Some(gradient) = gradient {
        let gradient = blocks_backward(model, kept, gradient, &mut ctx, &mut backward)?;
        if embedded.track_op() {
            backward.run("the embedding", &embedded, &gradient, None)?;
        }
    }
    Ok(Pass { loss_sum, target_tokens: batch.target_tokens, stray: backward.stray })
}

/// Sum of the cross-entropies of `batch`, and the number of its targets, without dropout, noise or gradients.
///
/// # Errors
/// What the arithmetic says, with the part of the model in which it failed.
pub fn evaluate_loss(model: &dyn CausalLm, batch: &Batch, logits_bytes: usize) -> Result<(f64, usize)> {
    let layout = layout_of(batch);
    let mut ctx = ForwardContext::new(&layout);
    let mut hidden = model.embed(&batch.input_ids).doing(|| "embed the tokens".into())?.detach();
    for index in 0..model.num_blocks() {
        hidden = model.block(index, &hidden, &mut ctx).doing(|| format!("compute block {index}"))?.detach();
    }
    let mut sum = 0.0;
    for (chunk, (rows, targets)) in chunks_of(model, batch, logits_bytes).into_iter().enumerate() {
        let input = gather(&hidden, &rows).doing(gathering)?;
        let logits = logits(model, &input, chunk, None).doing(heading)?;
        sum += cross_entropy(&logits, &targets).doing(heading)?.sum();
    }
    Ok((sum, batch.target_tokens))
}

/// What the backward of a block needs.
struct KeptBlock {
    index: usize,
    /// The block's input: a leaf when `wants_input_gradient` and the graph is kept.
    input: Tensor,
    /// The block's output with its graph, unless it is to be computed again.
    output: Option<Tensor>,
    /// Whether something below the block is trained.
    wants_input_gradient: bool,
}

/// All blocks; what is kept starts at the lowest block with something trained in it or below it.
fn blocks_forward(
    model: &dyn CausalLm,
    mut hidden: Tensor,
    mut trained_below: bool,
    ctx: &mut ForwardContext<'_>,
    options: &PassOptions,
) -> Result<(Tensor, Vec<KeptBlock>)> {
    let mut kept = Vec::new();
    for index in 0..model.num_blocks() {
        let doing = || format!("compute block {index}");
        let as_leaf = trained_below && !options.gradient_checkpointing;
        let input = if as_leaf { leaf(&hidden).doing(doing)? } else { hidden.clone() };
        let output = model.block(index, &input, ctx).doing(doing)?;
        hidden = output.detach();
        if trained_below || output.track_op() {
            let output = (!options.gradient_checkpointing).then_some(output);
            kept.push(KeptBlock { index, input, output, wants_input_gradient: trained_below });
            trained_below = true;
        }
    }
    Ok((hidden, kept))
}

/// The kept blocks from the top down; the result is the gradient of the lowest one's input when it is wanted.
fn blocks_backward(
    model: &dyn CausalLm,
    kept: Vec<KeptBlock>,
    mut gradient: Tensor,
    ctx: &mut ForwardContext<'_>,
    backward: &mut Backward<'_>,
) -> Result<Tensor> {
    for block in kept.into_iter().rev() {
        let doing = || format!("compute block {} again", block.index);
        let (input, output) = match block.output {
            Some(output) => (block.input, output),
            None => {
                let leaf = block.wants_input_gradient.then(|| leaf(&block.input).doing(doing)).transpose()?;
                let input = leaf.unwrap_or(block.input);
                let output = model.block(block.index, &input, ctx).doing(doing)?;
                (input, output)
            }
        };
        let place = format!("block {}", block.index);
        let wanted = block.wants_input_gradient.then_some(&input);
        let below = backward.run(&place, &output, &gradient, wanted)?;
        let Some(below) = below else { break };
        gradient = below;
    }
    Ok(gradient)
}

/// Final norm, head and loss over the rows with targets, forward and backward; the gradient is that of `hidden` [T, H],
/// when it is `wanted`.
fn head(
    model: &dyn CausalLm,
    hidden: &Tensor,
    batch: &Batch,
    key: Option<RandomKey>,
    options: &PassOptions,
    wanted: bool,
    backward: &mut Backward<'_>,
) -> Result<(f64, Option<Tensor>)> {
    let (tokens, width) = hidden.dims2().doing(heading)?;
    let mut loss_sum = 0.0;
    let mut gradient = vec![0f32; if wanted { tokens * width } else { 0 }];
    for (chunk, (rows, targets)) in chunks_of(model, batch, options.logits_bytes).into_iter().enumerate() {
        let gathered = gather(hidden, &rows).doing(gathering)?;
        let input = if wanted { leaf(&gathered).doing(gathering)? } else { gathered };
        let logits = logits(model, &input, chunk, key).doing(heading)?;
        let (losses, seed): (CrossEntropy, Tensor) =
            cross_entropy_with_gradient(&logits, &targets).doing(heading)?;
        loss_sum += losses.sum();
        if !logits.track_op() {
            continue;
        }
        let below = backward.run("the head", &logits, &seed, wanted.then_some(&input))?;
        if let Some(below) = below {
            scatter(&below, &rows, &mut gradient).doing(gathering)?;
        }
    }
    if !wanted {
        return Ok((loss_sum, None));
    }
    let gradient = Tensor::from_vec(gradient, (tokens, width), &Device::Cpu).doing(gathering)?;
    Ok((loss_sum, Some(gradient)))
}

/// Where the gradients of a pass go.
struct Backward<'a> {
    gradients: &'a mut Gradients,
    stray: Vec<String>,
}

impl Backward<'_> {
    /// Differentiate `output` from its gradient, take what belongs to our parameters, and give the gradient of `input`.
    fn run(
        &mut self,
        place: &str,
        output: &Tensor,
        gradient: &Tensor,
        input: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        let doing = || format!("differentiate {place}");
        let mut store = backward_from(output, gradient).doing(doing)?;
        let below = match input {
            None => None,
            Some(input) => match store.remove(input) {
                Some(gradient) => Some(gradient.detach()),
                None => return Err(Error::GradientCut { place: place.to_owned() }),
            },
        };
        self.gradients.take_from(&mut store)?;
        self.note_strays(place, output, &store);
        Ok(below)
    }

    /// What is left in the store was made for nothing. Activations that lead to no parameter (as many rows as the output)
    /// are candle's way of adding; anything else is a weight that should be frozen.
    fn note_strays(&mut self, place: &str, output: &Tensor, store: &GradStore) {
        let left = store.get_ids().filter_map(|id| store.get_id(*id));
        let weights = left.filter(|gradient| gradient.dims().first() != output.dims().first());
        self.stray.extend(weights.map(|gradient| format!("a tensor of {:?} in {place}", gradient.dims())));
    }
}

fn layout_of(batch: &Batch) -> SequenceLayout {
    let lengths: Vec<usize> = batch.segments.iter().map(std::ops::Range::len).collect();
    SequenceLayout::from_lengths(&lengths)
}

/// A copy that backward gives a gradient to.
fn leaf(tensor: &Tensor) -> candle_core::Result<Tensor> {
    Ok(Var::from_tensor(&tensor.detach())?.into_inner())
}

/// NEFTune: uniform noise in +-alpha / sqrt(L H) on the tokens of a segment of length L.
fn with_noise(
    embedded: Tensor,
    layout: &SequenceLayout,
    key: Option<RandomKey>,
    options: &PassOptions,
) -> candle_core::Result<Tensor> {
    let (Some(alpha), Some(key)) = (options.neftune_noise_alpha, key) else { return Ok(embedded) };
    let width = embedded.dims2()?.1;
    let rng = key.rng("neftune");
    let mut noise = vec![0f32; embedded.elem_count()];
    for segment in layout.segments() {
        let most = (alpha / ((segment.len() * width) as f64).sqrt()) as f32;
        let elements = segment.start * width..segment.end * width;
        rng.fill_uniform(elements.start as u64, -most, most, &mut noise[elements]);
    }
    let noise = Tensor::from_vec(noise, embedded.shape(), embedded.device())?;
    embedded + noise
}

/// The rows with a target and their targets, cut so that the logits of a chunk fit in `bytes`.
fn chunks_of(model: &dyn CausalLm, batch: &Batch, bytes: usize) -> Vec<(Vec<usize>, Vec<u32>)> {
    let rows_per_chunk = (bytes / (4 * model.config().vocab_size)).max(1);
    let learned = batch.targets.iter().copied().enumerate().filter(|(_, target)| *target != IGNORE);
    let learned: Vec<(usize, u32)> = learned.collect();
    learned.chunks(rows_per_chunk).map(|chunk| chunk.iter().copied().unzip()).collect()
}

/// Rows [n, H] of [T, H].
fn gather(hidden: &Tensor, rows: &[usize]) -> candle_core::Result<Tensor> {
    let width = hidden.dims2()?.1;
    let hidden = hidden.contiguous()?;
    let mut gathered = Vec::with_capacity(rows.len() * width);
    with_f32(&hidden, |values| {
        for row in rows {
            gathered.extend_from_slice(&values[row * width..(row + 1) * width]);
        }
    })?;
    Tensor::from_vec(gathered, (rows.len(), width), hidden.device())
}

/// Rows of [n, H] to their places in [T, H].
fn scatter(rows_gradient: &Tensor, rows: &[usize], gradient: &mut [f32]) -> candle_core::Result<()> {
    let width = rows_gradient.dims2()?.1;
    let rows_gradient = rows_gradient.contiguous()?;
    with_f32(&rows_gradient, |values| {
        for (row, values) in rows.iter().zip(values.chunks(width)) {
            gradient[row * width..(row + 1) * width].copy_from_slice(values);
        }
    })
}

/// [n, H] -> [n, V]. Each chunk is a place of its own for the head's dropout.
fn logits(
    model: &dyn CausalLm,
    input: &Tensor,
    chunk: usize,
    key: Option<RandomKey>,
) -> candle_core::Result<Tensor> {
    let layout = SequenceLayout::single(input.dims2()?.0);
    let ctx = match key {
        None => ForwardContext::new(&layout),
        Some(key) => {
            let micro_batch = key.micro_batch | (chunk as u64) << 32;
            ForwardContext::training(&layout, RandomKey { micro_batch, ..key })
        }
    };
    model.lm_head(&model.final_norm(input)?, &ctx)?.contiguous()
}

fn gathering() -> String {
    "gather the supervised rows".into()
}

fn heading() -> String {
    "compute the loss".into()
}
