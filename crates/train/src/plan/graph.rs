//! The decoder's forward pass as tensors without numbers, module by module as `taper_models` runs it.
//!
//! It mirrors `models::decoder` and `nn::ops`: what a module there names, applies and lets go, its twin here names, applies and lets go.
//! `crates/train/tests/memory/passes.rs` holds the two together: the modules by name, and the bytes by a heap that counts.

use super::heap::Cause;
use super::heap::Heap;
use super::tape::{Id, Made, Op, Tape};
use std::collections::BTreeMap;
use taper_models::ModelConfig;
use taper_nn::ParameterKind;
use taper_peft::TrainedModule;

pub use taper_peft::{ModuleKind, ModuleShape};

/// The modules of a model in the order of its forward pass, without their weights.
pub fn modules(config: &ModelConfig) -> Vec<ModuleShape> {
    let (mut heap, trained) = (Heap::default(), Trained::default());
    let mut tape = Tape::new(&mut heap);
    let mut graph = Graph::new(config, &trained, 1, false);
    let mut x = graph.embed(&mut tape);
    for index in 0..config.num_hidden_layers {
        x = graph.block(&mut tape, index, x);
    }
    let x = graph.final_norm(&mut tape, x, 1);
    graph.lm_head(&mut tape, x, 1);
    graph.met
}

/// What is trained of each module.
#[derive(Debug, Clone, Default)]
pub(super) struct Trained {
    modules: BTreeMap<String, Parts>,
    /// Whether adapters drop inputs in training.
    dropout: bool,
    /// Whether the parameters are variables; in inference they are not.
    is_training: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    /// r of an adapter.
    rank: Option<u64>,
    weight: bool,
    bias: bool,
}

impl Trained {
    pub(super) fn new(modules: &[TrainedModule], dropout: bool) -> Self {
        let parts = |module: &TrainedModule| {
            let mut parts = Parts::default();
            for parameter in &module.parameters {
                match parameter.kind {
                    ParameterKind::LoraA => parts.rank = parameter.shape.first().map(|r| *r as u64),
                    ParameterKind::LoraB => {}
                    ParameterKind::Bias => parts.bias = true,
                    ParameterKind::Weight | ParameterKind::Embedding | ParameterKind::Norm => {
                        parts.weight = true;
                    }
                }
            }
            parts
        };
        let modules = modules.iter().map(|module| (module.path.clone(), parts(module))).collect();
        Self { modules, dropout, is_training: true }
    }

    /// The same outside training: nothing is differentiated or dropped.
    pub(super) fn in_inference(&self) -> Self {
        Self { dropout: false, is_training: false, ..self.clone() }
    }

    fn of(&self, path: &str) -> Parts {
        self.modules.get(path).copied().unwrap_or_default()
    }
}

/// The forward pass over `tokens` tokens.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    config: &'a ModelConfig,
    trained: &'a Trained,
    tokens: u64,
    /// Whether keys and values go to a cache; nothing is then differentiated.
    is_cached: bool,
    met: Vec<ModuleShape>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(config: &'a ModelConfig, trained: &'a Trained, tokens: u64, is_cached: bool) -> Self {
        Self { config, trained, tokens, is_cached, met: Vec::new() }
    }

    pub(super) fn hidden(&self) -> u64 {
        self.config.hidden_size as u64
    }

    /// Cosines and sines of the batch, `[T, D / 2]` each, and the two vectors that they are made in are the same memory.
    pub(super) fn rotary_elements(&self) -> u64 {
        self.tokens * self.config.head_dim as u64
    }

    /// `[T, H]`.
    pub(super) fn embed(&mut self, tape: &mut Tape<'_>) -> Id {
        let path = "model.embed_tokens";
        let (rows, width) = (self.config.vocab_size, self.config.hidden_size);
        self.meet(path, ModuleKind::Embedding { rows, width });
        let elements = self.tokens * width as u64;
        if !self.trained.of(path).weight || !self.trained.is_training {
            return tape.plain(elements, Cause::Activations);
        }
        let table = tape.parameter(rows as u64 * width as u64);
        let looked_up = tape.apply(own(&[true]), &made(&[table], elements, Cause::Activations));
        tape.release(table);
        looked_up
    }

    /// `[T, H] -> [T, H]`.
    pub(super) fn block(&mut self, tape: &mut Tape<'_>, index: usize, x: Id) -> Id {
        let path = |part: &str| format!("model.layers.{index}.{part}");
        let hidden = self.config.hidden_size;
        let normed = self.norm(tape, &path("input_layernorm"), x, self.tokens, hidden, hidden);
        let attended = self.attention(tape, &path("self_attn"), normed);
        tape.release(normed);
        let x = self.add(tape, x, attended);
        tape.release(attended);
        let normed = self.norm(tape, &path("post_attention_layernorm"), x, self.tokens, hidden, hidden);
        let mlp = self.mlp(tape, &path("mlp"), normed);
        tape.release(normed);
        let y = self.add(tape, x, mlp);
        tape.release(mlp);
        tape.release(x);
        y
    }

    fn attention(&mut self, tape: &mut Tape<'_>, path: &str, x: Id) -> Id {
        let c = self.config;
        let (hidden, d) = (c.hidden_size, c.head_dim);
        let (queries, keys) = (c.num_attention_heads * d, c.num_key_value_heads * d);
        let q = self.rotated(tape, path, 'q', x, queries);
        let k = self.rotated(tape, path, 'k', x, keys);
        let v = self.linear(tape, &format!("{path}.v_proj"), x, self.tokens, (hidden, keys), c.qkv_bias);
        let lse = 4 * self.tokens * c.num_attention_heads as u64;
        let mixed = tape.apply(
            own(&[true, true, true]),
            &Made {
                statistics: if self.is_cached { 0 } else { lse },
                ..made(&[q, k, v], self.tokens * queries as u64, Cause::Activations)
            },
        );
        let out =
            self.linear(tape, &format!("{path}.o_proj"), mixed, self.tokens, (queries, hidden), c.o_bias);
        [q, k, v, mixed].into_iter().for_each(|id| tape.release(id));
        out
    }

    /// Queries or keys: projected, perhaps normed over each head, rotated.
    fn rotated(&mut self, tape: &mut Tape<'_>, path: &str, which: char, x: Id, width: usize) -> Id {
        let c = self.config;
        let name = format!("{path}.{which}_proj");
        let mut projected = self.linear(tape, &name, x, self.tokens, (c.hidden_size, width), c.qkv_bias);
        if c.qk_norm {
            let name = format!("{path}.{which}_norm");
            let normed = self.norm(tape, &name, projected, self.tokens, width, c.head_dim);
            tape.release(projected);
            projected = normed;
        }
        let rotated =
            tape.apply(own(&[true]), &made(&[projected], self.tokens * width as u64, Cause::Activations));
        tape.release(projected);
        rotated
    }

    fn mlp(&mut self, tape: &mut Tape<'_>, path: &str, x: Id) -> Id {
        let c = self.config;
        let (hidden, inner, bias) = (c.hidden_size, c.intermediate_size, c.mlp_bias);
        let gate = self.linear(tape, &format!("{path}.gate_proj"), x, self.tokens, (hidden, inner), bias);
        let up = self.linear(tape, &format!("{path}.up_proj"), x, self.tokens, (hidden, inner), bias);
        let gated = tape
            .apply(own(&[true, true]), &made(&[gate, up], self.tokens * inner as u64, Cause::Activations));
        let down = self.linear(tape, &format!("{path}.down_proj"), gated, self.tokens, (inner, hidden), bias);
        [gate, up, gated].into_iter().for_each(|id| tape.release(id));
        down
    }

    /// `[n, H] -> [n, H]`.
    pub(super) fn final_norm(&mut self, tape: &mut Tape<'_>, x: Id, rows: u64) -> Id {
        let hidden = self.config.hidden_size;
        self.norm(tape, "model.norm", x, rows, hidden, hidden)
    }

    /// `[n, H] -> [n, V]`.
    pub(super) fn lm_head(&mut self, tape: &mut Tape<'_>, x: Id, rows: u64) -> Id {
        let shape = (self.config.hidden_size, self.config.vocab_size);
        let tied = self.config.tie_word_embeddings;
        self.any_linear(tape, "lm_head", x, rows, shape, (false, tied), Cause::Logits)
    }

    fn linear(
        &mut self,
        tape: &mut Tape<'_>,
        path: &str,
        x: Id,
        rows: u64,
        shape: (usize, usize),
        bias: bool,
    ) -> Id {
        self.any_linear(tape, path, x, rows, shape, (bias, false), Cause::Activations)
    }

    /// A linear layer `(in, out)`, with or without a bias and tied or not: frozen, with an adapter, or trained.
    #[expect(clippy::too_many_arguments, reason = "what a layer is")]
    fn any_linear(
        &mut self,
        tape: &mut Tape<'_>,
        path: &str,
        x: Id,
        rows: u64,
        (n_in, n_out): (usize, usize),
        (bias, tied): (bool, bool),
        cause: Cause,
    ) -> Id {
        self.meet(path, ModuleKind::Linear { n_in, n_out, bias, tied, occupied: false });
        let mut parts = self.trained.of(path);
        // A tied head is trained through the embedding.
        parts.weight |= tied && self.trained.of("model.embed_tokens").weight;
        let (n_in, n_out) = (n_in as u64, n_out as u64);
        let elements = rows * n_out;
        let y = match parts.rank {
            Some(rank) => self.adapted(tape, x, rows, (n_in, n_out), rank, cause),
            None if parts.weight && self.trained.is_training => {
                let weight = tape.parameter(n_in * n_out);
                let gives = [tape.is_tracked(x), true];
                let y = tape.apply(own(&gives), &made(&[x, weight], elements, cause));
                tape.release(weight);
                y
            }
            None => tape.apply(own(&[true]), &made(&[x], elements, cause)),
        };
        if !(parts.bias && self.trained.is_training) {
            return y;
        }
        let bias = tape.parameter(n_out);
        let rows_of_bias = tape.apply(Op::Broadcast, &made(&[bias], elements, cause));
        let sum = tape.apply(Op::Add, &made(&[y, rows_of_bias], elements, cause));
        [bias, rows_of_bias, y].into_iter().for_each(|id| tape.release(id));
        sum
    }

    /// `nn::ops::lora_linear`: keeps `drop(x) A^T`, `[T, r]`; makes the dropped x again in the backward.
    fn adapted(
        &mut self,
        tape: &mut Tape<'_>,
        x: Id,
        rows: u64,
        (n_in, n_out): (u64, u64),
        rank: u64,
        cause: Cause,
    ) -> Id {
        let (elements, dropped) = (rows * n_out, if self.trained.dropout { 4 * rows * n_in } else { 0 });
        let low = 4 * rows * rank;
        if !self.trained.is_training {
            return tape.apply(own(&[true]), &Made { scratch: low, ..made(&[x], elements, cause) });
        }
        let (a, b) = (tape.parameter(rank * n_in), tape.parameter(n_out * rank));
        let op = Op::Own { gives: vec![tape.is_tracked(x), true, true], extra: low + dropped };
        let y =
            tape.apply(op, &Made { statistics: low, scratch: dropped, ..made(&[x, a, b], elements, cause) });
        [a, b].into_iter().for_each(|id| tape.release(id));
        y
    }

    /// Norms of `over` elements each on rows of `width`.
    fn norm(&mut self, tape: &mut Tape<'_>, path: &str, x: Id, rows: u64, width: usize, over: usize) -> Id {
        self.meet(path, ModuleKind::RmsNorm { width: over });
        let statistics = 4 * rows * (width / over.max(1)) as u64;
        let elements = rows * width as u64;
        if !(self.trained.of(path).weight && self.trained.is_training) {
            return tape
                .apply(own(&[true]), &Made { statistics, ..made(&[x], elements, Cause::Activations) });
        }
        let gain = tape.parameter(over as u64);
        let args = [x, gain];
        let y =
            tape.apply(own(&[true, true]), &Made { statistics, ..made(&args, elements, Cause::Activations) });
        tape.release(gain);
        y
    }

    fn add(&self, tape: &mut Tape<'_>, a: Id, b: Id) -> Id {
        tape.apply(Op::Add, &made(&[a, b], self.tokens * self.hidden(), Cause::Activations))
    }

    fn meet(&mut self, path: &str, kind: ModuleKind) {
        self.met.push(ModuleShape { path: path.to_owned(), kind });
    }
}

fn own(gives: &[bool]) -> Op {
    Op::Own { gives: gives.to_vec(), extra: 0 }
}

fn made(args: &[Id], elements: u64, cause: Cause) -> Made<'_> {
    Made { args, elements, cause, statistics: 0, scratch: 0 }
}
