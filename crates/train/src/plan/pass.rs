//! The passes of `driver` over tensors without numbers, line by line.

use super::BatchShape;
use super::graph::{Graph, Trained};
use super::heap::{Cause, Heap};
use super::tape::{Id, Tape};
use crate::driver::PassOptions;
use taper_models::ModelConfig;

/// What a pass runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) trained: &'a Trained,
    pub(super) batch: BatchShape,
}

impl Run<'_> {
    fn hidden_bytes(&self, rows: u64) -> u64 {
        4 * rows * self.config.hidden_size as u64
    }

    /// Rows of the largest chunk of logits.
    fn rows(&self, logits_bytes: usize) -> u64 {
        let most = (logits_bytes / (4 * self.config.vocab_size)).max(1) as u64;
        most.min(self.batch.target_tokens)
    }
}

struct KeptBlock {
    index: usize,
    input: Id,
    output: Option<Id>,
    wants_input_gradient: bool,
}

/// `driver::forward_backward`.
pub(super) fn forward_backward(heap: &mut Heap, run: Run<'_>, options: &PassOptions) {
    if run.batch.target_tokens == 0 {
        return;
    }
    let mut tape = Tape::new(heap);
    let tape = &mut tape;
    let mut graph = Graph::new(run.config, run.trained, run.batch.tokens, false);
    let rotary = 4 * graph.rotary_elements();
    let embedded = graph.embed(tape);
    let mut hidden = tape.detach(embedded);
    if options.neftune_noise_alpha.is_some() {
        let elements = run.batch.tokens * graph.hidden();
        let noise = tape.plain(elements, Cause::Temporaries);
        let noisy = tape.plain(elements, Cause::Activations);
        tape.release(noise);
        tape.release(std::mem::replace(&mut hidden, noisy));
    }
    tape.heap.alloc(Cause::Activations, rotary);
    let trains_table = tape.is_tracked(embedded);
    let (hidden, kept) = blocks_forward(tape, &mut graph, run, hidden, trains_table, options);
    let wanted = trains_table || !kept.is_empty();
    let mut gradient = head(tape, &mut graph, run, options, wanted);
    gradient = blocks_backward(tape, &mut graph, kept, gradient);
    if trains_table {
        let store = tape.backward(embedded);
        tape.drop_gradients(store, None);
    }
    tape.heap.free(Cause::Temporaries, gradient);
    tape.heap.free(Cause::Activations, rotary);
    [hidden, embedded].into_iter().for_each(|id| tape.release(id));
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
        let as_leaf = trained_below && !options.gradient_checkpointing;
        let input = if as_leaf { tape.leaf(hidden) } else { tape.share(hidden) };
        let output = graph.block(tape, index, input);
        let below = std::mem::replace(&mut hidden, tape.detach(output));
        tape.release(below);
        if !(trained_below || tape.is_tracked(output)) {
            [output, input].into_iter().for_each(|id| tape.release(id));
            continue;
        }
        let output = if options.gradient_checkpointing {
            tape.release(output);
            None
        } else {
            Some(output)
        };
        kept.push(KeptBlock { index, input, output, wants_input_gradient: trained_below });
        trained_below = true;
    }
    (hidden, kept)
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
    let gathered = tape.plain(rows * graph.hidden(), Cause::Temporaries);
    let input = if wanted { tape.leaf(gathered) } else { tape.share(gathered) };
    let normed = graph.final_norm(tape, input, rows);
    let logits = graph.lm_head(tape, normed, rows);
    tape.release(normed);
    let seed = tape.plain(rows * run.config.vocab_size as u64, Cause::Logits);
    if tape.is_tracked(logits) {
        let store = tape.backward(logits);
        let below = tape.drop_gradients(store, wanted.then_some(input));
        tape.heap.free(Cause::Temporaries, below);
    }
    [seed, logits, input, gathered].into_iter().for_each(|id| tape.release(id));
    gradient
}

/// Bytes of the gradient that is alive at the end.
fn blocks_backward(
    tape: &mut Tape<'_>,
    graph: &mut Graph<'_>,
    kept: Vec<KeptBlock>,
    mut gradient: u64,
) -> u64 {
    for block in kept.into_iter().rev() {
        let (input, output) = match block.output {
            Some(output) => (block.input, output),
            None => {
                let input = if block.wants_input_gradient {
                    let leaf = tape.leaf(block.input);
                    tape.release(block.input);
                    leaf
                } else {
                    block.input
                };
                (input, graph.block(tape, block.index, input))
            }
        };
        let store = tape.backward(output);
        let below = tape.drop_gradients(store, block.wants_input_gradient.then_some(input));
        if block.wants_input_gradient {
            tape.heap.free(Cause::Temporaries, gradient);
            gradient = below;
        }
        [input, output].into_iter().for_each(|id| tape.release(id));
    }
    gradient
}

/// `driver::evaluate_loss`.
pub(super) fn evaluate_loss(heap: &mut Heap, run: Run<'_>, logits_bytes: usize) {
    let mut tape = Tape::new(heap);
    let tape = &mut tape;
    let mut graph = Graph::new(run.config, run.trained, run.batch.tokens, false);
    let rotary = 4 * graph.rotary_elements();
    let embedded = graph.embed(tape);
    let mut hidden = tape.detach(embedded);
    tape.release(embedded);
    tape.heap.alloc(Cause::Activations, rotary);
    hidden = blocks(tape, &mut graph, run.config, hidden);
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
    let mut graph = Graph::new(run.config, run.trained, run.batch.tokens, is_cached);
    let rotary = 4 * graph.rotary_elements();
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

/// All blocks, the graph of each gone before the next one.
fn blocks(tape: &mut Tape<'_>, graph: &mut Graph<'_>, config: &ModelConfig, mut hidden: Id) -> Id {
    for index in 0..config.num_hidden_layers {
        let output = graph.block(tape, index, hidden);
        let below = std::mem::replace(&mut hidden, tape.detach(output));
        [output, below].into_iter().for_each(|id| tape.release(id));
    }
    hidden
}
