//! The phases of a run, and what each holds.

use super::BatchShape;
use super::WeightFormat;
use super::gpu::{DRIVER_BYTES, GpuWeights, flat_elements};
use super::graph::{ModuleKind, ModuleShape, Trained};
use super::heap::{Bytes, Cause, Heap};
use super::pass::{Run, evaluate_loss, forward_backward, infer};
use crate::TrainSection;
use crate::driver::{LOGITS_BYTES, PassOptions};
use taper_models::ModelConfig;
use taper_nn::ParameterKind;
use taper_peft::{TrainedModule, TrainedParameter};

/// Sequences that an evaluation writes at a time, and tokens of its passes: the defaults of `infer` and `eval`.
const SEQUENCES: usize = 16;
const TOKENS_PER_PASS: u64 = 2048;
/// Rows of logits in a scoring pass.
const SCORED_ROWS: u64 = 128;

/// What a run computes with, as far as memory goes.
#[derive(Debug, Clone)]
pub struct Workload<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Bytes of its frozen weights ([`super::weight_bytes`]); with full training those that are loaded.
    pub weight_bytes: u64,
    /// Bytes of an activation between the norms ([`activation_bytes`]).
    pub activation_bytes: u64,
    /// Bytes that reading the largest tensor takes beside those that are held: its pages of the file, and its values while they are
    /// quantised; 0 when weights are made.
    pub reading_bytes: u64,
    /// What is trained, in the order of the forward pass.
    pub trained: &'a [TrainedModule],
    /// Whether every weight is trained: nothing frozen is then left.
    pub trains_all_weights: bool,
    /// Whether the adapters drop inputs.
    pub dropout: bool,
    /// `[train]`.
    pub train: &'a TrainSection,
    /// The largest training batch.
    pub batch: BatchShape,
    /// The largest validation batch.
    pub valid: Option<BatchShape>,
    /// The example of the self-test.
    pub example: Option<BatchShape>,
    /// Evaluations behind the training.
    pub evaluations: &'a [EvaluationShape],
    /// What is there before and beside all this ([`overhead_bytes`]).
    pub overhead_bytes: u64,
}

/// How long the texts of an evaluation are, in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EvaluationShape {
    /// Lengths of the prompts that are answered; none when nothing is generated.
    pub prompts: Vec<u64>,
    /// Most tokens of an answer.
    pub max_new_tokens: u64,
    /// Lengths of the texts that are scored, and how many of their tokens are.
    pub scored: Vec<BatchShape>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseName {
    /// Weights are read.
    Load,
    /// Gradients are held against finite differences.
    SelfTest,
    /// Forward, backward and optimiser over the largest batch.
    Step,
    /// The loss of the validation data.
    Validation,
    /// A checkpoint is written.
    Checkpoint,
    /// Base and adapter answer the test data.
    Evaluation,
}

impl PhaseName {
    /// The name in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::SelfTest => "self_test",
            Self::Step => "step",
            Self::Validation => "validation",
            Self::Checkpoint => "checkpoint",
            Self::Evaluation => "evaluation",
        }
    }
}

/// What a phase holds when it holds the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Which one.
    pub name: PhaseName,
    /// By cause.
    pub bytes: Bytes,
}

/// The memory of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The phases that the run has, in their order.
    pub phases: Vec<Phase>,
}

impl MemoryPlan {
    /// The phase that holds the most; of equals the first.
    pub fn peak(&self) -> Phase {
        let none = Phase { name: PhaseName::Load, bytes: Bytes::default() };
        self.phases.iter().rev().copied().max_by_key(|phase| phase.bytes.total()).unwrap_or(none)
    }

    /// What one phase holds.
    pub fn phase(&self, name: PhaseName) -> Option<Bytes> {
        self.phases.iter().find(|phase| phase.name == name).map(|phase| phase.bytes)
    }
}

impl Workload<'_> {
    /// What each phase of the run will hold.
    pub fn memory(&self) -> MemoryPlan {
        self.phases(None, |bytes| bytes.with(Cause::Overhead, self.overhead_bytes + slack_bytes(&bytes)))
    }

    /// The same of the device's memory on a GPU where the frozen weights lie as `weights` says. What the driver takes is an estimate among it; what
    /// the pool loses between tensors of many sizes is not counted.
    pub fn memory_on_gpu(&self, weights: &GpuWeights) -> MemoryPlan {
        self.phases(Some(weights), |bytes| bytes.with(Cause::Overhead, DRIVER_BYTES))
    }

    /// What stays on the host meanwhile.
    pub fn host_memory(&self, weights: &GpuWeights) -> MemoryPlan {
        let held = if self.trains_all_weights { 0 } else { weights.copied_bytes + weights.streamed_bytes };
        let offloaded = match self.train.gradient_checkpointing && self.train.activation_offloading {
            true => 4 * self.batch.tokens * (self.config.hidden_size * self.config.num_hidden_layers) as u64,
            false => 0,
        };
        let (copy, state) = (4 * self.trained_parameters(), Bytes::default().with(Cause::Weights, held));
        let read =
            Bytes::default().with(Cause::Weights, self.weight_bytes).with(Cause::Reading, self.reading_bytes);
        let self_test = self.example.filter(|_| self.train.self_test);
        let phases = [
            Some((PhaseName::Load, read)),
            self_test.map(|_| (PhaseName::SelfTest, state.with(Cause::Copies, 4 * copy))),
            Some((PhaseName::Step, state.with(Cause::Activations, offloaded))),
            // Both moments, and what is written.
            Some((PhaseName::Checkpoint, state.with(Cause::Copies, 3 * copy))),
            (!self.evaluations.is_empty()).then_some((PhaseName::Evaluation, read)),
        ];
        let with_overhead = |(name, bytes): (PhaseName, Bytes)| {
            let slack = slack_bytes(&bytes);
            Phase { name, bytes: bytes.with(Cause::Overhead, self.overhead_bytes + slack) }
        };
        MemoryPlan { phases: phases.into_iter().flatten().map(with_overhead).collect() }
    }

    fn phases(&self, gpu: Option<&GpuWeights>, complete: impl Fn(Bytes) -> Bytes) -> MemoryPlan {
        let on = On { work: self, gpu };
        let phases = [
            Some((PhaseName::Load, on.load())),
            self.example.filter(|_| self.train.self_test).map(|e| (PhaseName::SelfTest, on.self_test(e))),
            Some((PhaseName::Step, on.step())),
            self.valid.map(|batch| (PhaseName::Validation, on.validation(batch))),
            Some((PhaseName::Checkpoint, on.checkpoint())),
            (!self.evaluations.is_empty()).then(|| (PhaseName::Evaluation, on.evaluation())),
        ];
        let phases = phases.into_iter().flatten();
        MemoryPlan { phases: phases.map(|(name, bytes)| Phase { name, bytes: complete(bytes) }).collect() }
    }

    /// Numbers that are trained.
    pub fn trained_parameters(&self) -> u64 {
        self.trained.iter().flat_map(|module| &module.parameters).map(elements).sum()
    }

    fn options(&self) -> PassOptions {
        PassOptions {
            gradient_checkpointing: self.train.gradient_checkpointing,
            activation_offloading: self.train.activation_offloading,
            neftune_noise_alpha: self.train.neftune_noise_alpha,
            logits_bytes: LOGITS_BYTES,
        }
    }
}

/// A run where its tensors lie: on the CPU, or on a GPU with weights as they are placed there.
#[derive(Clone, Copy)]
struct On<'a> {
    work: &'a Workload<'a>,
    gpu: Option<&'a GpuWeights>,
}

impl On<'_> {
    fn weight_bytes(&self) -> u64 {
        self.gpu.map_or(self.work.weight_bytes, |weights| weights.device_bytes)
    }

    /// Gradients of all that is trained: on a device in one buffer.
    fn gradient_bytes(&self) -> u64 {
        let parameters = self.work.trained.iter().flat_map(|module| &module.parameters);
        match self.gpu {
            Some(_) => 4 * flat_elements(parameters.map(elements)),
            None => 4 * self.work.trained_parameters(),
        }
    }

    /// What the model and its trained parameters take in all steps.
    fn state(&self) -> Bytes {
        let gradients = self.gradient_bytes();
        Bytes::default()
            .with(Cause::Weights, if self.work.trains_all_weights { 0 } else { self.weight_bytes() })
            .with(Cause::Parameters, 4 * self.work.trained_parameters())
            .with(Cause::Gradients, gradients)
            .with(Cause::Optimizer, 2 * gradients)
    }

    /// Bytes that reading a tensor takes: on the host.
    fn reading_bytes(&self) -> u64 {
        if self.gpu.is_some() { 0 } else { self.work.reading_bytes }
    }

    /// A tensor is let go in its file once it has been copied, and as values once it has been quantised.
    fn load(&self) -> Bytes {
        Bytes::default().with(Cause::Weights, self.weight_bytes()).with(Cause::Reading, self.reading_bytes())
    }

    fn run<'r>(&'r self, trained: &'r Trained, batch: BatchShape) -> Run<'r> {
        let work = self.work;
        let (config, activation_bytes) = (work.config, work.activation_bytes);
        Run { config, trained, batch, activation_bytes, gpu: self.gpu }
    }

    /// `self_test` holds the values from before, those with B stirred, a set of gradients of its own, and those that it tries; of these only
    /// gradients lie on a device.
    fn self_test(&self, example: BatchShape) -> Bytes {
        let trained = Trained::new(self.work.trained, false);
        // It computes in f32 whatever the training computes in.
        let run = Run { activation_bytes: 4, ..self.run(&trained, example) };
        let copy = 4 * self.work.trained_parameters();
        let (copies, tried) = match self.gpu {
            Some(_) => (self.gradient_bytes(), 0),
            None => (3 * copy, copy),
        };
        let mut heap = Heap::holding(self.state().with(Cause::Copies, copies));
        forward_backward(&mut heap, run, &PassOptions::default());
        heap.alloc(Cause::Copies, tried);
        evaluate_loss(&mut heap, run, LOGITS_BYTES);
        heap.peak()
    }

    fn step(&self) -> Bytes {
        let trained = Trained::new(self.work.trained, self.work.dropout);
        let mut heap = Heap::holding(self.state());
        forward_backward(&mut heap, self.run(&trained, self.work.batch), &self.work.options());
        heap.peak()
    }

    fn validation(&self, batch: BatchShape) -> Bytes {
        let trained = Trained::new(self.work.trained, false);
        let mut heap = Heap::holding(self.state());
        evaluate_loss(&mut heap, self.run(&trained, batch), LOGITS_BYTES);
        heap.peak()
    }

    /// A tensor at a time is turned into bytes, in a buffer that doubles as it grows; full training copies all values first. All of it on the
    /// host.
    fn checkpoint(&self) -> Bytes {
        if self.gpu.is_some() {
            return self.state();
        }
        let work = self.work;
        let largest = work.trained.iter().flat_map(|module| &module.parameters).map(elements).max();
        let values = if work.trains_all_weights { 4 * work.trained_parameters() } else { 0 };
        self.state().with(Cause::Copies, values + 3 * 4 * largest.unwrap_or(0))
    }

    /// The base is loaded anew, without optimiser.
    fn evaluation(&self) -> Bytes {
        let work = self.work;
        let adapter = if work.trains_all_weights { 0 } else { 4 * work.trained_parameters() };
        let state =
            Bytes::default().with(Cause::Weights, self.weight_bytes()).with(Cause::Parameters, adapter);
        let trained =
            Trained::new(if work.trains_all_weights { &[] } else { work.trained }, false).in_inference();
        let mut most = state.with(Cause::Reading, self.reading_bytes());
        for evaluation in work.evaluations {
            for peak in
                [self.answering(&trained, evaluation, state), self.scoring(&trained, evaluation, state)]
            {
                if peak.total() > most.total() {
                    most = peak;
                }
            }
        }
        most
    }

    /// The longest prompts at once: read together while their caches are filled.
    fn answering(&self, trained: &Trained, evaluation: &EvaluationShape, state: Bytes) -> Bytes {
        let mut prompts = evaluation.prompts.clone();
        prompts.sort_unstable_by_key(|tokens| std::cmp::Reverse(*tokens));
        prompts.truncate(SEQUENCES);
        let sequences = prompts.len() as u64;
        let read: u64 = prompts.iter().sum();
        let held = read + sequences * evaluation.max_new_tokens;
        let config = self.work.config;
        let elements = (config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64;
        // On the CPU a cache is f32, on a device what keys and values are.
        let width = self.gpu.map_or(4, |_| self.work.activation_bytes) * elements;
        let mut heap = Heap::holding(state.with(Cause::Cache, 2 * width * read));
        let pass = |tokens| self.run(trained, BatchShape { tokens, target_tokens: 0 });
        if sequences > 0 {
            infer(&mut heap, pass(read.min(TOKENS_PER_PASS)), sequences, 2, true);
            heap.alloc(Cause::Cache, 2 * width * (held - read));
            infer(&mut heap, pass(sequences), sequences, 2, true);
        }
        heap.peak()
    }

    fn scoring(&self, trained: &Trained, evaluation: &EvaluationShape, state: Bytes) -> Bytes {
        let longest = evaluation.scored.iter().map(|text| text.tokens).max().unwrap_or(0);
        let all = evaluation.scored.iter().map(|text| text.tokens).sum::<u64>();
        let rows = evaluation.scored.iter().map(|text| text.target_tokens).sum::<u64>().min(SCORED_ROWS);
        let mut heap = Heap::holding(state);
        if rows > 0 {
            let batch = BatchShape { tokens: longest.max(all.min(TOKENS_PER_PASS)), target_tokens: rows };
            infer(&mut heap, self.run(trained, batch), rows, 1, false);
        }
        heap.peak()
    }
}

/// Bytes of an activation between the norms, where weights were asked to be held in `asked` and the embedding is held in `embedding`: as
/// [`taper_models::LoadOptions`] says.
pub fn activation_bytes(asked: Option<WeightFormat>, embedding: WeightFormat) -> u64 {
    if asked.unwrap_or(embedding) == WeightFormat::BF16 { 2 } else { 4 }
}

fn elements(parameter: &TrainedParameter) -> u64 {
    parameter.shape.iter().map(|n| *n as u64).product()
}

/// What full training trains ([`crate::Trained::full`]): every weight, the table of a tied head once.
pub fn fully_trained(modules: &[ModuleShape]) -> Vec<TrainedModule> {
    let parameters = |module: &ModuleShape| {
        let parameter = |suffix: &str, shape: &[usize], kind| TrainedParameter {
            name: format!("{}.{suffix}", module.path),
            shape: shape.to_vec(),
            kind,
        };
        let mut parameters = Vec::new();
        match module.kind {
            ModuleKind::Linear { n_in, n_out, bias, tied, .. } => {
                if !tied {
                    parameters.push(parameter("weight", &[n_out, n_in], ParameterKind::Weight));
                }
                if bias {
                    parameters.push(parameter("bias", &[n_out], ParameterKind::Bias));
                }
            }
            ModuleKind::Embedding { rows, width } => {
                parameters.push(parameter("weight", &[rows, width], ParameterKind::Embedding));
            }
            ModuleKind::RmsNorm { width } => {
                parameters.push(parameter("weight", &[width], ParameterKind::Norm));
            }
        }
        TrainedModule { path: module.path.clone(), parameters }
    };
    modules.iter().map(parameters).filter(|module| !module.parameters.is_empty()).collect()
}

/// Bytes beside the model: `resident` of the program with its tokenizer and data, and what `threads` threads compute in.
pub fn overhead_bytes(resident: u64, threads: usize) -> u64 {
    resident + (threads as u64 + 1) * SCRATCH_BYTES
}

/// Scratch of a thread: panels of widened weights, tiles of attention, buffers of the `gemm` crate. One thread hands the work out.
const SCRATCH_BYTES: u64 = 2 << 20;

/// What the allocator holds beyond what is asked of it, and pages of the program that are first touched in a pass.
///
/// A fit, not a derivation: to what `taper bench train` held at its peak less what the heap counts, over its three shapes with and without
/// `--checkpointing` (mimalloc 3.3, Linux, two threads). Why the allocator holds so much was not found out; it goes with the size of the
/// logits more than with anything else. On other batches and types of these shapes the plan was within 6 %, but for a run of 113 MB, of which
/// it was 12 % short.
fn slack_bytes(bytes: &Bytes) -> u64 {
    let asked = bytes.total() - bytes.of(Cause::Reading);
    (40 << 20) + bytes.of(Cause::Logits) * 45 / 100 + asked * 45 / 1000
}
