//! The passes of `driver` over tensors without numbers, line by line.

use super::BatchShape;
use super::gpu::GpuWeights;
use super::graph::{Graph, Trained};
use super::heap::{Cause, Heap};
use super::tape::{Id, Recorded, Tape};
use crate::driver::{PassOptions, rows_per_chunk};
use taper_models::ModelConfig;

/// What a pass runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) trained: &'a Trained,
    pub(super) batch: BatchShape,
    /// Bytes of an activation between the norms.
    pub(super) activation_bytes: u64,
    /// The weights on a device, where the pass runs on one.
    pub(super) gpu: Option<&'a GpuWeights>,
}

impl<'a> Run<'a> {
    fn graph(&self, is_cached: bool) -> Graph<'a> {
        let tokens = self.batch.tokens;
        Graph::new(self.config, self.trained, self.activation_bytes, tokens, is_cached).on_gpu(self.gpu)
    }

    fn hidden_bytes(&self, rows: u64) -> u64 {
        4 * rows * self.config.hidden_size as u64
    }

    /// Rows of the largest chunk of logits.
    fn rows(&self, logits_bytes: usize) -> u64 {
        let most = rows_per_chunk(self.config.vocab_size, logits_bytes) as u64;
        most.min(self.batch.target_tokens)
    }
}

struct KeptBlock {
    index: usize,
    input: Id,
    computed: Option<(Id, Recorded)>,
    wants_input_gradient: bool,
}

/// `driver::forward_backward`.
pub(super) fn forward_backward(heap: &mut Heap, run: Run<'_>, options: &PassOptions) {
    if run.batch.target_tokens == 0 {
        return;
    }
    let mut tape = Tape::new(heap);
    let tape = &mut tape;
    let mut graph = run.graph(false);
    let rotary = graph.shared_bytes();
    tape.record(&[]);
    let embedded = graph.embed(tape);
    let recorded = tape.recorded();
    let trains_table = recorded.tracks(tape, embedded);
    let mut hidden = tape.share(embedded);
    if options.neftune_noise_alpha.is_some() {
        let elements = run.batch.tokens * graph.hidden();
        let noise = tape.plain(elements, Cause::Temporaries);
        let noisy = tape.plain(elements, Cause::Activations);
        tape.release(noise);
        tape.release(std::mem::replace(&mut hidden, noisy));
    }
    tape.heap.alloc(Cause::Activations, rotary);
    let (hidden, kept) = blocks_forward(tape, &mut graph, run, hidden, trains_table, options);
    let wanted = trains_table || !kept.is_empty();
    let gradient = head(tape, &mut graph, run, options, wanted);
    tape.release(hidden);
    let gradient = blocks_backward(tape, &mut graph, run, kept, gradient, options);
    let (cause, bytes) = (Cause::Temporaries, gradient);
    if trains_table {
        tape.backward(recorded, embedded, (cause, bytes), None);
    } else {
        tape.heap.free(cause, bytes);
        tape.forget(recorded);
    }
    tape.heap.free(Cause::Activations, rotary);
    tape.release(embedded);
    debug_assert!(tape.is_empty(), "a pass leaves nothing behind");
}

fn blocks_forward(
    tape: &mut Tape<'_>,
    graph: &mut Graph<'_>,
    run: Run<'_>,
    mut hidden: Id,
    mut trained_below: bool,
    options: &PassOptions,
) -> (Id, Vec<KeptBlock>) {
    let mut kept = Vec::new();
    for index in 0..run.config.num_hidden_layers {
        let (output, recorded) = record_block(tape, graph, index, hidden, trained_below);
        let input = std::mem::replace(&mut hidden, tape.share(output));
        if !recorded.tracks(tape, output) {
            tape.forget(recorded);
            [output, input].into_iter().for_each(|id| tape.release(id));
            continue;
        }
        let computed = if options.gradient_checkpointing {
            tape.forget(recorded);
            tape.release(output);
            if run.gpu.is_some() && options.activation_offloading {
                // It waits on the host.
                tape.release(input);
            }
            None
        } else {
            Some((output, recorded))
        };
        kept.push(KeptBlock { index, input, computed, wants_input_gradient: trained_below });
        trained_below = true;
    }
    (hidden, kept)
}

fn record_block(
    tape: &mut Tape<'_>,
    graph: &mut Graph<'_>,
    index: usize,
    input: Id,
    wants_input_gradient: bool,
) -> (Id, Recorded) {
    tape.record(if wants_input_gradient { std::slice::from_ref(&input) } else { &[] });
    let output = graph.block(tape, index, input);
    (output, tape.recorded())
}

/// Bytes of the gradient that comes down to the last block.
fn head(
    tape: &mut Tape<'_>,
    graph: &mut Graph<'_>,
    run: Run<'_>,
    options: &PassOptions,
    wanted: bool,
) -> u64 {
    let rows = run.rows(options.logits_bytes);
    let gradient = if wanted { run.hidden_bytes(run.batch.tokens) } else { 0 };
    tape.heap.alloc(Cause::Temporaries, gradient);
    // All chunks but the last are alike, and one is gone before the next one comes.
    let input = tape.plain(rows * graph.hidden(), Cause::Temporaries);
    tape.record(if wanted { std::slice::from_ref(&input) } else { &[] });
    let normed = graph.final_norm(tape, input, rows);
    let logits = graph.lm_head(tape, normed, rows);
    tape.release(normed);
    let recorded = tape.recorded();
    // The gradient is written over the logits, but for those that a soft cap keeps.
    let is_capped = run.config.logits_soft_cap.is_some();
    let copy = if is_capped { 4 * rows * run.config.vocab_size as u64 } else { 0 };
    tape.heap.alloc(Cause::Logits, copy);
    if recorded.tracks(tape, logits) {
        let below = tape.backward(recorded, logits, (Cause::Logits, copy), wanted.then_some(input));
        tape.heap.free(Cause::Temporaries, below);
    } else {
        tape.forget(recorded);
        tape.heap.free(Cause::Logits, copy);
    }
    [logits, input].into_iter().for_each(|id| tape.release(id));
    gradient
}

/// Bytes of the gradient that is alive at the end.
fn blocks_backward(
    tape: &mut Tape<'_>,
    graph: &mut Graph<'_>,
    run: Run<'_>,
    kept: Vec<KeptBlock>,
    mut gradient: u64,
    options: &PassOptions,
) -> u64 {
    for mut block in kept.into_iter().rev() {
        if run.gpu.is_some() && options.activation_offloading && block.computed.is_none() {
            block.input = tape.plain(run.batch.tokens * graph.hidden(), Cause::Activations);
        }
        let (output, recorded) = match block.computed {
            Some(computed) => computed,
            None => record_block(tape, graph, block.index, block.input, block.wants_input_gradient),
        };
        let wanted = block.wants_input_gradient.then_some(block.input);
        gradient = tape.backward(recorded, output, (Cause::Temporaries, gradient), wanted);
        [block.input, output].into_iter().for_each(|id| tape.release(id));
    }
    gradient
}

/// `driver::evaluate_loss`.
pub(super) fn evaluate_loss(heap: &mut Heap, run: Run<'_>, logits_bytes: usize) {
    let mut tape = Tape::new(heap);
    let tape = &mut tape;
    let mut graph = run.graph(false);
    let rotary = graph.shared_bytes();
    let embedded = graph.embed(tape);
    tape.heap.alloc(Cause::Activations, rotary);
    let hidden = blocks(tape, &mut graph, run.config, embedded);
    let rows = run.rows(logits_bytes);
    let input = tape.plain(rows * graph.hidden(), Cause::Temporaries);
    let normed = graph.final_norm(tape, input, rows);
    let logits = graph.lm_head(tape, normed, rows);
    [normed, logits, input, hidden].into_iter().for_each(|id| tape.release(id));
    tape.heap.free(Cause::Activations, rotary);
    debug_assert!(tape.is_empty(), "a pass leaves nothing behind");
}

/// A pass of `infer`: `rows` of the hidden states become logits, of which there are `copies`. With `is_cached` keys and values of the
/// tokens are kept elsewhere.
pub(super) fn infer(heap: &mut Heap, run: Run<'_>, rows: u64, copies: u64, is_cached: bool) {
    let mut tape = Tape::new(heap);
    let tape = &mut tape;
    let mut graph = run.graph(is_cached);
    let rotary = graph.shared_bytes();
    let embedded = graph.embed(tape);
    tape.heap.alloc(Cause::Activations, rotary);
    let hidden = blocks(tape, &mut graph, run.config, embedded);
    let normed = graph.final_norm(tape, hidden, rows);
    let logits = graph.lm_head(tape, normed, rows);
    tape.heap.pass_by(Cause::Logits, copies.saturating_sub(1) * 4 * rows * run.config.vocab_size as u64);
    [normed, logits, hidden].into_iter().for_each(|id| tape.release(id));
    tape.heap.free(Cause::Activations, rotary);
    debug_assert!(tape.is_empty(), "a pass leaves nothing behind");
}

/// All blocks, each block's input gone behind it.
fn blocks(tape: &mut Tape<'_>, graph: &mut Graph<'_>, config: &ModelConfig, mut hidden: Id) -> Id {
    for index in 0..config.num_hidden_layers {
        let output = graph.block(tape, index, hidden);
        tape.release(std::mem::replace(&mut hidden, output));
    }
    hidden
}
