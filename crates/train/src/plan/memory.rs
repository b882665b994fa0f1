//! The phases of a run, and what each holds.

use super::BatchShape;
use super::WeightFormat;
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
        let phases = [
            Some((PhaseName::Load, self.load())),
            self.example.filter(|_| self.train.self_test).map(|e| (PhaseName::SelfTest, self.self_test(e))),
            Some((PhaseName::Step, self.step())),
            self.valid.map(|batch| (PhaseName::Validation, self.validation(batch))),
            Some((PhaseName::Checkpoint, self.checkpoint())),
            (!self.evaluations.is_empty()).then(|| (PhaseName::Evaluation, self.evaluation())),
        ];
        let with_slack = |(name, bytes): (PhaseName, Bytes)| {
            let slack = slack_bytes(&bytes);
            Phase { name, bytes: bytes.with(Cause::Overhead, self.overhead_bytes + slack) }
        };
        MemoryPlan { phases: phases.into_iter().flatten().map(with_slack).collect() }
    }

    /// Numbers that are trained.
    pub fn trained_parameters(&self) -> u64 {
        self.trained.iter().flat_map(|module| &module.parameters).map(elements).sum()
    }

    /// What the model and its trained parameters take in all steps.
    fn state(&self) -> Bytes {
        let trained = 4 * self.trained_parameters();
        Bytes::default()
            .with(Cause::Weights, if self.trains_all_weights { 0 } else { self.weight_bytes })
            .with(Cause::Parameters, trained)
            .with(Cause::Gradients, trained)
            .with(Cause::Optimizer, 2 * trained)
    }

    /// A tensor is let go in its file once it has been copied, and as values once it has been quantised.
    fn load(&self) -> Bytes {
        Bytes::default().with(Cause::Weights, self.weight_bytes).with(Cause::Reading, self.reading_bytes)
    }

    fn run<'r>(&'r self, trained: &'r Trained, batch: BatchShape) -> Run<'r> {
        Run { config: self.config, trained, batch, activation_bytes: self.activation_bytes }
    }

    fn options(&self) -> PassOptions {
        PassOptions {
            gradient_checkpointing: self.train.gradient_checkpointing,
            activation_offloading: self.train.activation_offloading,
            neftune_noise_alpha: self.train.neftune_noise_alpha,
            logits_bytes: LOGITS_BYTES,
        }
    }

    /// `self_test` holds the values from before, those with B stirred, a set of gradients of its own, and those that it tries.
    fn self_test(&self, example: BatchShape) -> Bytes {
        let trained = Trained::new(self.trained, false);
        // It computes in f32 whatever the training computes in.
        let run = Run { activation_bytes: 4, ..self.run(&trained, example) };
        let copy = 4 * self.trained_parameters();
        let mut heap = Heap::holding(self.state().with(Cause::Copies, 3 * copy));
        forward_backward(&mut heap, run, &PassOptions::default());
        heap.alloc(Cause::Copies, copy);
        evaluate_loss(&mut heap, run, LOGITS_BYTES);
        heap.peak()
    }

    fn step(&self) -> Bytes {
        let trained = Trained::new(self.trained, self.dropout);
        let mut heap = Heap::holding(self.state());
        forward_backward(&mut heap, self.run(&trained, self.batch), &self.options());
        heap.peak()
    }

    fn validation(&self, batch: BatchShape) -> Bytes {
        let trained = Trained::new(self.trained, false);
        let mut heap = Heap::holding(self.state());
        evaluate_loss(&mut heap, self.run(&trained, batch), LOGITS_BYTES);
        heap.peak()
    }

    /// A tensor at a time is turned into bytes, in a buffer that doubles as it grows; full training copies all values first.
    fn checkpoint(&self) -> Bytes {
        let largest = self.trained.iter().flat_map(|module| &module.parameters).map(elements).max();
        let values = if self.trains_all_weights { 4 * self.trained_parameters() } else { 0 };
        self.state().with(Cause::Copies, values + 3 * 4 * largest.unwrap_or(0))
    }

    /// The base is loaded anew, without optimiser.
    fn evaluation(&self) -> Bytes {
        let adapter = if self.trains_all_weights { 0 } else { 4 * self.trained_parameters() };
        let state = Bytes::default().with(Cause::Weights, self.weight_bytes).with(Cause::Parameters, adapter);
        let trained =
            Trained::new(if self.trains_all_weights { &[] } else { self.trained }, false).in_inference();
        let mut most = state.with(Cause::Reading, self.reading_bytes);
        for evaluation in self.evaluations {
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
        let config = self.config;
        let width = (config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64;
        let mut heap = Heap::holding(state.with(Cause::Cache, 2 * 4 * width * read));
        let pass = |tokens| self.run(trained, BatchShape { tokens, target_tokens: 0 });
        if sequences > 0 {
            infer(&mut heap, pass(read.min(TOKENS_PER_PASS)), sequences, 2, true);
            heap.alloc(Cause::Cache, 2 * 4 * width * (held - read));
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
