//! The decoder's forward pass as tensors without numbers, module by module as `taper_models` runs it.
//!
//! It mirrors `models::decoder` and `nn::ops`: what a module there names, applies and lets go, its twin here names, applies and lets go.
//! `crates/train/tests/memory/passes.rs` holds the two together: the modules by name, and the bytes by a heap that counts.

use super::gpu::{GpuWeights, adapted_scratch, decoded_bytes, is_flash, segments_bytes};
use super::heap::Cause;
use super::heap::Heap;
use super::methods::Extra;
use super::tape::{Gives, Id, Made, Op, Tape};
use std::collections::BTreeMap;
use taper_models::{EmbeddingScale, ExpertsConfig, ModelConfig, QkNorm};
use taper_nn::ParameterKind;
use taper_peft::TrainedModule;

pub use taper_peft::{ModuleKind, ModuleShape};

/// The modules of a model in the order of its forward pass, without their weights.
pub fn modules(config: &ModelConfig) -> Vec<ModuleShape> {
    let (mut heap, trained) = (Heap::default(), Trained::default());
    let mut tape = Tape::new(&mut heap);
    let mut graph = Graph::new(config, &trained, 4, 1, false);
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
    pub(super) is_training: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    /// r of an adapter with A and B, or of one with factors.
    pub(super) rank: Option<u64>,
    pub(super) weight: bool,
    pub(super) bias: bool,
    /// What the adapter is beside or instead of a pair of factors.
    pub(super) extra: Extra,
}

impl Trained {
    pub(super) fn new(modules: &[TrainedModule], dropout: bool) -> Self {
        let parts = |module: &TrainedModule| {
            let mut parts = Parts { extra: Extra::of(&module.parameters), ..Parts::default() };
            for parameter in &module.parameters {
                match parameter.kind {
                    ParameterKind::LoraA => parts.rank = parameter.shape.first().map(|r| *r as u64),
                    ParameterKind::Bias => parts.bias = true,
                    ParameterKind::Embedding if parts.extra != Extra::None => {}
                    ParameterKind::Weight | ParameterKind::Embedding | ParameterKind::Norm => {
                        parts.weight = true;
                    }
                    _ => {}
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
    pub(super) trained: &'a Trained,
    /// Bytes of an activation between the norms.
    width: u64,
    pub(super) tokens: u64,
    /// Whether keys and values go to a cache; nothing is then differentiated.
    is_cached: bool,
    /// The weights on a device, where they lie on one.
    gpu: Option<&'a GpuWeights>,
    met: Vec<ModuleShape>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(
        config: &'a ModelConfig,
        trained: &'a Trained,
        width: u64,
        tokens: u64,
        is_cached: bool,
    ) -> Self {
        Self { config, trained, width, tokens, is_cached, gpu: None, met: Vec::new() }
    }

    /// The same on a device.
    pub(super) fn on_gpu(self, gpu: Option<&'a GpuWeights>) -> Self {
        Self { gpu, ..self }
    }

    pub(super) fn hidden(&self) -> u64 {
        self.config.hidden_size as u64
    }

    /// Bytes that all blocks share: the rotary tables, and on a device the table of the batch's texts.
    pub(super) fn shared_bytes(&self) -> u64 {
        4 * self.rotary_elements() + self.gpu.map_or(0, |_| segments_bytes(self.tokens))
    }

    /// Cosines and sines of the batch, half as many each as elements of a head are rotated, for each rotary embedding; the vectors that they
    /// are made in are the same memory.
    fn rotary_elements(&self) -> u64 {
        let embeddings = 1 + u64::from(self.config.local_rope.is_some());
        embeddings * self.tokens * self.config.rotary_dim as u64
    }

    /// `[T, H]`.
    pub(super) fn embed(&mut self, tape: &mut Tape<'_>) -> Id {
        let path = "model.embed_tokens";
        let (rows, width) = (self.config.vocab_size, self.config.hidden_size);
        self.meet(path, ModuleKind::Embedding { rows, width });
        let elements = self.tokens * width as u64;
        let parts = self.trained.of(path);
        let looked_up = if !self.trained.is_training || (!parts.weight && parts.extra == Extra::None) {
            tape.plain(elements, Cause::Activations)
        } else if !parts.weight {
            self.adapted_embedding(tape, parts.extra, elements)
        } else {
            let table = tape.parameter(rows as u64 * width as u64);
            let looked_up =
                tape.apply(reads_nothing(&[Gives::Add]), &made(&[table], elements, 4, Cause::Activations));
            tape.release(table);
            looked_up
        };
        if self.config.embedding_scale == EmbeddingScale::One {
            return looked_up;
        }
        let scaled =
            tape.apply(reads_nothing(&[Gives::Write]), &made(&[looked_up], elements, 4, Cause::Activations));
        tape.release(looked_up);
        scaled
    }

    /// `[T, H] -> [T, H]`.
    pub(super) fn block(&mut self, tape: &mut Tape<'_>, index: usize, x: Id) -> Id {
        let path = |part: &str| format!("model.layers.{index}.{part}");
        let [(before, behind), (mlp_before, mlp_behind)] = self.config.norm_placement.names();
        let normed = self.block_norm(tape, &path, before, x);
        let attended = self.attention(tape, &path("self_attn"), normed);
        tape.release(normed);
        let x = self.residual(tape, &path, behind, x, attended);
        let normed = self.block_norm(tape, &path, mlp_before, x);
        let experts = self.config.experts.as_ref().filter(|experts| experts.blocks.get(index) == Some(&true));
        let mlp = match experts {
            Some(experts) => self.experts(tape, &path("mlp"), normed, experts),
            None => self.mlp(tape, &path("mlp"), normed, self.tokens, self.config.intermediate_size),
        };
        tape.release(normed);
        let y = self.residual(tape, &path, mlp_behind, x, mlp);
        tape.release(x);
        y
    }

    /// The norm in front of attention or MLP; without one, the input under another name.
    fn block_norm(
        &mut self,
        tape: &mut Tape<'_>,
        path: &dyn Fn(&str) -> String,
        norm: Option<&str>,
        x: Id,
    ) -> Id {
        let hidden = self.config.hidden_size;
        match norm {
            Some(norm) => self.norm(tape, &path(norm), x, self.tokens, hidden, hidden),
            None => tape.share(x),
        }
    }

    /// `x + y`, with the norm behind y where there is one, and the factor on it; y is let go, x is not.
    fn residual(
        &mut self,
        tape: &mut Tape<'_>,
        path: &dyn Fn(&str) -> String,
        norm: Option<&str>,
        x: Id,
        y: Id,
    ) -> Id {
        let mut added = self.block_norm(tape, path, norm, y);
        tape.release(y);
        if self.config.residual_multiplier != 1.0 {
            added = self.scaled(tape, added, self.tokens);
        }
        let sum = self.add(tape, x, added);
        tape.release(added);
        sum
    }

    /// `[n, H]` times a number; the input is let go.
    fn scaled(&self, tape: &mut Tape<'_>, x: Id, rows: u64) -> Id {
        let scaled = tape.apply(
            reads_nothing(&[Gives::Write]),
            &made(&[x], rows * self.hidden(), tape.width(x), Cause::Activations),
        );
        tape.release(x);
        scaled
    }

    fn attention(&mut self, tape: &mut Tape<'_>, path: &str, x: Id) -> Id {
        let c = self.config;
        let (hidden, d) = (c.hidden_size, c.head_dim);
        let (queries, keys) = (c.num_attention_heads * d, c.num_key_value_heads * d);
        let [q, k, v] = match c.fused_projections {
            true => {
                let widths = [queries, keys, keys];
                self.fused(tape, &format!("{path}.qkv_proj"), x, self.tokens, widths, c.qkv_bias)
            }
            false => [
                self.projected(tape, path, 'q', x, queries),
                self.projected(tape, path, 'k', x, keys),
                self.linear(tape, &format!("{path}.v_proj"), x, self.tokens, (hidden, keys), c.qkv_bias),
            ],
        };
        let rotated = [(q, queries), (k, keys)].map(|(id, width)| {
            tape.apply(
                reads_nothing(&[Gives::Write]),
                &made(&[id], self.tokens * width as u64, tape.width(id), Cause::Activations),
            )
        });
        let lse = 4 * self.tokens * c.num_attention_heads as u64;
        let extra = self.attention_extra(tape.width(q), queries as u64);
        let op = Op { keeps_output: true, extra, ..reads_all(&[Gives::Take; 3]) };
        // On the CPU a cache takes keys and values in f32.
        let is_widened = self.gpu.is_none() && tape.width(q) == 2;
        let widened = if is_widened { 2 * 4 * self.tokens * keys as u64 } else { 0 };
        let args = [rotated[0], rotated[1], v];
        let made = made(&args, self.tokens * queries as u64, tape.width(q), Cause::Activations);
        let mixed = tape.apply(
            op,
            &match self.is_cached {
                true => Made { scratch: widened, ..made },
                false => Made { statistics: lse, ..made },
            },
        );
        let out =
            self.linear(tape, &format!("{path}.o_proj"), mixed, self.tokens, (queries, hidden), c.o_bias);
        [q, k, v, rotated[0], rotated[1], mixed].into_iter().for_each(|id| tape.release(id));
        out
    }

    /// What the backward of attention needs beside the gradients on a device: a number for each row and head, and in bf16 the rounded gradient.
    fn attention_extra(&self, width: u64, queries: u64) -> u64 {
        let rounded = if is_flash(self.config.head_dim, width) { 2 * self.tokens * queries } else { 0 };
        self.gpu.map_or(0, |_| 4 * self.tokens * self.config.num_attention_heads as u64 + rounded)
    }

    /// Queries or keys, perhaps normed.
    fn projected(&mut self, tape: &mut Tape<'_>, path: &str, which: char, x: Id, width: usize) -> Id {
        let c = self.config;
        let name = format!("{path}.{which}_proj");
        let projected = self.linear(tape, &name, x, self.tokens, (c.hidden_size, width), c.qkv_bias);
        let over = match c.qk_norm {
            QkNorm::None => return projected,
            QkNorm::Head => c.head_dim,
            QkNorm::Layer => width,
        };
        let name = format!("{path}.{which}_norm");
        let normed = self.norm(tape, &name, projected, self.tokens, width, over);
        tape.release(projected);
        normed
    }

    /// One layer whose output is cut in parts of these widths.
    fn fused<const N: usize>(
        &mut self,
        tape: &mut Tape<'_>,
        path: &str,
        x: Id,
        rows: u64,
        widths: [usize; N],
        bias: bool,
    ) -> [Id; N] {
        let shape = (self.config.hidden_size, widths.iter().sum());
        let all = self.linear(tape, path, x, rows, shape, bias);
        let parts = widths.map(|width| {
            tape.apply(
                reads_nothing(&[Gives::Add]),
                &made(&[all], rows * width as u64, tape.width(all), Cause::Activations),
            )
        });
        tape.release(all);
        parts
    }

    /// `[n, H] -> [n, H]` through `[n, inner]`.
    fn mlp(&mut self, tape: &mut Tape<'_>, path: &str, x: Id, rows: u64, inner: usize) -> Id {
        let c = self.config;
        let (hidden, bias) = (c.hidden_size, c.mlp_bias);
        let [gate, up] = match c.fused_projections {
            true => self.fused(tape, &format!("{path}.gate_up_proj"), x, rows, [inner, inner], bias),
            false => ["gate_proj", "up_proj"]
                .map(|name| self.linear(tape, &format!("{path}.{name}"), x, rows, (hidden, inner), bias)),
        };
        let elements = rows * inner as u64;
        let op = Op { is_cheap: true, extra: 4 * elements, ..reads_all(&[Gives::Write, Gives::Pass]) };
        let gated = tape.apply(op, &made(&[gate, up], elements, tape.width(gate), Cause::Activations));
        let down = self.linear(tape, &format!("{path}.down_proj"), gated, rows, (inner, hidden), bias);
        [gate, up, gated].into_iter().for_each(|id| tape.release(id));
        down
    }

    /// The router, its experts, and their sum. Tokens are taken to be spread evenly: what is kept depends on their number alone, and experts
    /// without one keep nothing.
    fn experts(&mut self, tape: &mut Tape<'_>, path: &str, x: Id, experts: &ExpertsConfig) -> Id {
        let (hidden, count) = (self.config.hidden_size, experts.num_experts as u64);
        let places = self.tokens * experts.num_experts_per_tok as u64;
        let router = (hidden, experts.num_experts);
        let elements = self.tokens * hidden as u64;
        let x = match tape.width(x) {
            4 => tape.share(x),
            _ => tape.apply(reads_nothing(&[Gives::Pass]), &made(&[x], elements, 4, Cause::Activations)),
        };
        let logits = self.linear(tape, &format!("{path}.gate"), x, self.tokens, router, false);
        let weights = tape.apply(reads_all(&[Gives::Write]), &made(&[logits], places, 4, Cause::Activations));
        let mut inputs = vec![weights];
        for expert in 0..count {
            let rows = (places + count - 1 - expert) / count;
            let own_rows = tape.apply(
                reads_nothing(&[Gives::Add]),
                &made(&[x], rows * hidden as u64, tape.width(x), Cause::Activations),
            );
            let path = format!("{path}.experts.{expert}");
            let part = self.mlp(tape, &path, own_rows, rows, experts.intermediate_size);
            tape.release(own_rows);
            inputs.push(part);
        }
        // The parts are joined for the sum, and again for the gradient of the weights.
        let joined = 4 * places * hidden as u64;
        let op = Op {
            extra: if tape.is_tracked(weights) { joined } else { 0 },
            ..reads_all(&vec![Gives::Write; inputs.len()])
        };
        let made = Made { scratch: joined, ..made(&inputs, elements, 4, Cause::Activations) };
        let mixed = tape.apply(op, &made);
        inputs.into_iter().chain([logits, x]).for_each(|id| tape.release(id));
        mixed
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
        let divided = match self.config.logits_divisor == 1.0 {
            true => tape.share(x),
            false => tape.apply(
                reads_nothing(&[Gives::Write]),
                &made(&[x], rows * self.hidden(), tape.width(x), Cause::Activations),
            ),
        };
        let logits = self.any_linear(tape, "lm_head", divided, rows, shape, (false, tied), Cause::Logits);
        tape.release(divided);
        if self.config.logits_soft_cap.is_none() {
            return logits;
        }
        let op = Op { keeps_output: true, ..reads_nothing(&[Gives::Write]) };
        let capped = tape.apply(op, &made(&[logits], rows * shape.1 as u64, 4, Cause::Logits));
        tape.release(logits);
        capped
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
        // Logits are f32 whatever the input is.
        let width = if path == "lm_head" { 4 } else { tape.width(x) };
        let args = [x];
        let made = made(&args, elements, width, cause);
        // What decoding the weight takes, and the rounded gradient.
        let holder = if tied { "model.embed_tokens" } else { path };
        let weight = self.gpu.map_or(0, |gpu| gpu.scratch(holder, tape.width(x)));
        let rounded = if self.gpu.is_some() && tape.width(x) == 2 { 2 * elements } else { 0 };
        let frozen = Op { extra: rounded + weight, ..reads_nothing(&[Gives::Add]) };
        let product = Made { scratch: weight, ..made };
        let y = match parts.rank {
            _ if parts.extra.is_a_method_of_its_own() => {
                self.otherwise_adapted(tape, &product, rows, (n_in, n_out), parts.extra, frozen)
            }
            Some(rank) if parts.extra == Extra::Magnitudes => {
                let sum = self.adapted(tape, &product, rows, (n_in, n_out), rank);
                self.column_scaled(tape, sum, elements, n_out, width, cause)
            }
            Some(rank) => self.adapted(tape, &product, rows, (n_in, n_out), rank),
            None if parts.weight && self.trained.is_training => {
                let weight = tape.parameter(n_in * n_out);
                // A trained weight is f32.
                let is_rounded = self.gpu.is_some() && tape.width(x) == 2;
                let scratch = if is_rounded { decoded_bytes(n_out, n_in, 2) } else { 0 };
                let op = Op { extra: rounded + scratch, ..reads_all(&[Gives::Add; 2]) };
                let y = tape.apply(op, &Made { args: &[x, weight], scratch, ..made });
                tape.release(weight);
                y
            }
            None => tape.apply(frozen, &product),
        };
        let y = match self.trained.of("model.embed_tokens").extra {
            Extra::Tokens { parameters } if tied => self.with_token_logits(tape, y, elements, parameters),
            _ => y,
        };
        if !(parts.bias && self.trained.is_training) {
            return y;
        }
        let bias = tape.parameter(n_out);
        let op = reads_nothing(&[Gives::Pass, Gives::Add]);
        let sum =
            tape.apply(op, &Made { args: &[y, bias], elements, width, cause, statistics: 0, scratch: 0 });
        [bias, y].into_iter().for_each(|id| tape.release(id));
        sum
    }

    /// `nn::ops::lora_linear`: keeps `drop(x) A^T`, `[T, r]`; makes the dropped x again in the backward. The scratch of `made` is that of the
    /// frozen product.
    fn adapted(
        &mut self,
        tape: &mut Tape<'_>,
        made: &Made<'_>,
        rows: u64,
        (n_in, n_out): (u64, u64),
        rank: u64,
    ) -> Id {
        let (x, low) = (made.args[0], 4 * rows * rank);
        let sizes = (n_in, n_out, rank);
        let on_gpu =
            self.gpu.map(|_| adapted_scratch(rows, sizes, tape.width(x), made.scratch, self.trained.dropout));
        if !self.trained.is_training {
            let scratch = low + on_gpu.map_or(0, |(forward, _)| forward);
            return tape.apply(reads_nothing(&[Gives::Add]), &Made { scratch, ..*made });
        }
        // Dropped values are in the type of x, and gone before the gradient is made, of which the low-rank part has a buffer of its own.
        let dropped = if self.trained.dropout { tape.width(x) * rows * n_in } else { 0 };
        let low_part = if self.trained.dropout { 4 * rows * n_in } else { 0 };
        let gives = if self.trained.dropout { Gives::Write } else { Gives::Add };
        let (a, b) = (tape.parameter(rank * n_in), tape.parameter(n_out * rank));
        let (scratch, extra) = on_gpu.unwrap_or((dropped, low + low_part));
        let op = Op { extra, ..reads_all(&[gives, Gives::Add, Gives::Add]) };
        let y = tape.apply(op, &Made { args: &[x, a, b], statistics: low, scratch, ..*made });
        [a, b].into_iter().for_each(|id| tape.release(id));
        y
    }

    /// Norms of `over` elements each on rows of `width`.
    fn norm(&mut self, tape: &mut Tape<'_>, path: &str, x: Id, rows: u64, width: usize, over: usize) -> Id {
        self.meet(path, ModuleKind::RmsNorm { width: over });
        let statistics = 4 * rows * (width / over.max(1)) as u64;
        let elements = rows * width as u64;
        let output = if tape.width(x) == 2 { 2 } else { self.width };
        let gain = match self.trained.of(path).weight && self.trained.is_training {
            true => tape.parameter(over as u64),
            false => tape.constant(over as u64),
        };
        let op = Op { is_cheap: true, ..reads_all(&[Gives::Add, Gives::Write]) };
        let args = [x, gain];
        let made = Made { statistics, ..made(&args, elements, output, Cause::Activations) };
        let y = tape.apply(op, &made);
        tape.release(gain);
        y
    }

    fn add(&self, tape: &mut Tape<'_>, a: Id, b: Id) -> Id {
        let width = tape.width(a).max(tape.width(b));
        let args = [a, b];
        let made = made(&args, self.tokens * self.hidden(), width, Cause::Activations);
        tape.apply(reads_nothing(&[Gives::Pass; 2]), &made)
    }

    fn meet(&mut self, path: &str, kind: ModuleKind) {
        self.met.push(ModuleShape { path: path.to_owned(), kind });
    }
}

pub(super) fn reads_nothing(gives: &[Gives]) -> Op {
    Op::reading_nothing(gives)
}

pub(super) fn reads_all(gives: &[Gives]) -> Op {
    Op::reading_all(gives)
}

pub(super) fn made(args: &[Id], elements: u64, width: u64, cause: Cause) -> Made<'_> {
    Made { args, elements, width, cause, statistics: 0, scratch: 0 }
}
