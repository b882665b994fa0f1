//! Forward and backward block by block: each block sees its input as a leaf and is recorded on a tape of its own
//! ([`taper_nn::tape`]), and its backward starts from the gradient that came down to its output. With `gradient_checkpointing` a
//! block's tape is dropped in the forward and recorded again from the block's input in the backward; dropout is keyed by place,
//! so the second forward has the same bits as the first (Chen et al. 2016, "Training deep nets with sublinear memory cost").
//!
//! Behind the last block, rows with a target are gathered in chunks of about [`LOGITS_BYTES`] of logits; each chunk goes
//! through the final norm, the head and the loss, and straight back. The logits of a batch are never together in memory,
//! and rows without a target cost nothing.

use crate::error::{Doing, Error, Result};
use crate::gradients::Gradients;
use candle_core::{Device, Tensor};
use taper_data::{Batch, IGNORE};
use taper_models::CausalLm;
use taper_nn::ops::{
    self, CrossEntropy, cross_entropy, cross_entropy_with_gradient, put_rows, take_rows, zeros_like,
};
use taper_nn::tape::{Gradient, Tape, record};
use taper_nn::{ForwardContext, RandomKey, SequenceLayout, to_device};

/// Memory that the logits of a chunk may take: 64 MiB, or more for the rows below.
pub const LOGITS_BYTES: usize = 64 << 20;
/// Rows that a chunk has at least where the vocabulary is large: each chunk reads and packs the whole head twice, which is nothing for many
/// rows and a tenth of the work for a hundred.
const LOGITS_ROWS: usize = 256;

/// How a pass is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassOptions {
    /// Compute each block again in the backward instead of keeping its graph.
    pub gradient_checkpointing: bool,
    /// With checkpointing, keep the inputs of the blocks on the host.
    pub activation_offloading: bool,
    /// NEFTune's alpha.
    pub neftune_noise_alpha: Option<f64>,
    /// Bytes of logits in a chunk ([`LOGITS_BYTES`]); at least one row is in each.
    pub logits_bytes: usize,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self {
            gradient_checkpointing: false,
            activation_offloading: false,
            neftune_noise_alpha: None,
            logits_bytes: LOGITS_BYTES,
        }
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

    let (embedded, tape) =
        record(&[], || model.embed(&batch.input_ids)).doing(|| "embed the tokens".into())?;
    let trains_embedding = tape.tracks(&embedded);
    let hidden =
        with_noise(embedded.clone(), &layout, key, options).doing(|| "add noise to the embeddings".into())?;
    let (hidden, kept) = blocks_forward(model, hidden, trains_embedding, &mut ctx, options)?;
    let wanted = trains_embedding || !kept.is_empty();
    let (losses, gradient) = head(model, &hidden, batch, key, options, wanted, &mut backward)?;
    drop(hidden);
    if let Some(gradient) = gradient {
        let gradient = blocks_backward(model, kept, gradient, &mut ctx, &mut backward)?;
        if let (true, Some(gradient)) = (trains_embedding, gradient) {
            backward.run("the embedding", tape, &embedded, gradient, None)?;
        }
    }
    // Read when all is queued: a device would wait for the host in between.
    let sums =
        losses.iter().map(CrossEntropy::sum).collect::<candle_core::Result<Vec<f64>>>().doing(heading)?;
    Ok(Pass { loss_sum: sums.iter().sum(), target_tokens: batch.target_tokens, stray: backward.stray })
}

/// Sum of the cross-entropies of `batch`, and the number of its targets, without dropout, noise or gradients.
///
/// # Errors
/// What the arithmetic says, with the part of the model in which it failed.
pub fn evaluate_loss(model: &dyn CausalLm, batch: &Batch, logits_bytes: usize) -> Result<(f64, usize)> {
    let layout = layout_of(batch);
    let mut ctx = ForwardContext::new(&layout);
    let mut hidden = model.embed(&batch.input_ids).doing(|| "embed the tokens".into())?;
    for index in 0..model.num_blocks() {
        hidden = model.block(index, &hidden, &mut ctx).doing(|| format!("compute block {index}"))?;
    }
    let mut sum = 0.0;
    for (chunk, (rows, targets)) in chunks_of(model, batch, logits_bytes).into_iter().enumerate() {
        let input = take_rows(&hidden, &rows).doing(gathering)?;
        let logits = logits(model, &input, chunk, None).doing(heading)?;
        sum += cross_entropy(&logits, &targets).and_then(|losses| losses.sum()).doing(heading)?;
    }
    Ok((sum, batch.target_tokens))
}

/// What the backward of a block needs.
struct KeptBlock {
    index: usize,
    input: Tensor,
    /// The block's output and how it came about, unless that is to be computed again.
    computed: Option<(Tensor, Tape)>,
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
        let (output, tape) = record_block(model, index, &hidden, trained_below, ctx)
            .doing(|| format!("compute block {index}"))?;
        let mut input = std::mem::replace(&mut hidden, output.clone());
        if tape.tracks(&output) {
            let computed = (!options.gradient_checkpointing).then_some((output, tape));
            if computed.is_none() && options.activation_offloading {
                input =
                    to_device(&input, &Device::Cpu).doing(|| format!("move the input of block {index}"))?;
            }
            kept.push(KeptBlock { index, input, computed, wants_input_gradient: trained_below });
            trained_below = true;
        }
    }
    Ok((hidden, kept))
}

fn record_block(
    model: &dyn CausalLm,
    index: usize,
    input: &Tensor,
    wants_input_gradient: bool,
    ctx: &mut ForwardContext<'_>,
) -> candle_core::Result<(Tensor, Tape)> {
    let leaves: &[&Tensor] = if wants_input_gradient { &[input] } else { &[] };
    record(leaves, || model.block(index, input, ctx))
}

/// The kept blocks from the top down; the result is the gradient of the lowest one's input when it is wanted.
fn blocks_backward(
    model: &dyn CausalLm,
    kept: Vec<KeptBlock>,
    mut gradient: Gradient,
    ctx: &mut ForwardContext<'_>,
    backward: &mut Backward<'_>,
) -> Result<Option<Gradient>> {
    for mut block in kept.into_iter().rev() {
        // Where it waited on the host.
        block.input =
            to_device(&block.input, gradient.device()).doing(|| "move a block's input back".into())?;
        let (output, tape) = match block.computed {
            Some(computed) => computed,
            None => record_block(model, block.index, &block.input, block.wants_input_gradient, ctx)
                .doing(|| format!("compute block {} again", block.index))?,
        };
        let place = format!("block {}", block.index);
        let wanted = block.wants_input_gradient.then_some(&block.input);
        match backward.run(&place, tape, &output, gradient, wanted)? {
            Some(below) => gradient = below,
            None => return Ok(None),
        }
    }
    Ok(Some(gradient))
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
) -> Result<(Vec<CrossEntropy>, Option<Gradient>)> {
    let mut all_losses = Vec::new();
    let mut gradient = if wanted { Some(zeros_like(hidden).doing(gathering)?) } else { None };
    for (chunk, (rows, targets)) in chunks_of(model, batch, options.logits_bytes).into_iter().enumerate() {
        let input = take_rows(hidden, &rows).doing(gathering)?;
        let leaves: &[&Tensor] = if wanted { &[&input] } else { &[] };
        let (logits, tape) = record(leaves, || logits(model, &input, chunk, key)).doing(heading)?;
        // The gradient is written over the logits.
        let free = if tape.keeps(&logits) { logits.copy().doing(heading)? } else { logits.clone() };
        let (losses, seed) = cross_entropy_with_gradient(free, &targets).doing(heading)?;
        all_losses.push(losses);
        if !tape.tracks(&logits) {
            continue;
        }
        let below = backward.run("the head", tape, &logits, Gradient::new(seed), wanted.then_some(&input))?;
        if let (Some(below), Some(gradient)) = (below, &mut gradient) {
            put_rows(&below, &rows, gradient).doing(gathering)?;
        }
    }
    Ok((all_losses, gradient.map(Gradient::new)))
}

/// Where the gradients of a pass go.
struct Backward<'a> {
    gradients: &'a mut Gradients,
    stray: Vec<String>,
}

impl Backward<'_> {
    /// Differentiate `output` from its gradient, add what belongs to our parameters, and give the gradient of `input`.
    fn run(
        &mut self,
        place: &str,
        tape: Tape,
        output: &Tensor,
        gradient: Gradient,
        input: Option<&Tensor>,
    ) -> Result<Option<Gradient>> {
        let doing = || format!("differentiate {place}");
        let below = match input {
            None => {
                tape.backward(output, gradient, [], self.gradients).doing(doing)?;
                None
            }
            Some(input) => {
                let [below] = tape.backward(output, gradient, [input], self.gradients).doing(doing)?;
                if below.is_none() {
                    return Err(Error::GradientCut { place: place.to_owned() });
                }
                below
            }
        };
        let strays = self.gradients.take_strays();
        self.stray.extend(strays.iter().map(|dims| format!("a tensor of {dims:?} in {place}")));
        Ok(below)
    }
}

fn layout_of(batch: &Batch) -> SequenceLayout {
    let lengths: Vec<usize> = batch.segments.iter().map(std::ops::Range::len).collect();
    SequenceLayout::from_lengths(&lengths)
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
    // Outside any tape: the gradient of the embeddings is that of what noise made of them.
    let noise = Tensor::from_vec(noise, embedded.shape(), &Device::Cpu)?;
    ops::add(&embedded, &to_device(&noise, embedded.device())?)
}

/// Rows of logits in a chunk of `bytes`.
pub(crate) fn rows_per_chunk(vocab_size: usize, bytes: usize) -> usize {
    // Who asks for smaller chunks gets fewer rows in proportion.
    let least = LOGITS_ROWS * bytes.min(LOGITS_BYTES) / LOGITS_BYTES;
    (bytes / (4 * vocab_size)).max(least).max(1)
}

/// The rows with a target and their targets, cut so that the logits of a chunk fit in `bytes`.
fn chunks_of(model: &dyn CausalLm, batch: &Batch, bytes: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let rows_per_chunk = rows_per_chunk(model.config().vocab_size, bytes);
    let learned = batch.targets.iter().copied().enumerate().filter(|(_, target)| *target != IGNORE);
    let learned: Vec<(u32, u32)> = learned.map(|(row, target)| (row as u32, target)).collect();
    learned.chunks(rows_per_chunk).map(|chunk| chunk.iter().copied().unzip()).collect()
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
    model.lm_head(&model.final_norm(input)?, &ctx)
}

fn gathering() -> String {
    "gather the supervised rows".into()
}

fn heading() -> String {
    "compute the loss".into()
}
