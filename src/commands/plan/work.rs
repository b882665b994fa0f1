//! What the run of a recipe consists of, found without weights.

use crate::commands::train::{batches, loader_options};
use crate::fault::OrFault;
use crate::session::Session;
use candle_core::DType;
use taper_data::{Batch, DataLoader, TokenizedExample};
use taper_eval::EvalTask;
use taper_hub::InitChoice;
use taper_models::{LoadOptions, ModelConfig, Quantize};
use taper_nn::{Checkpoint, StoredFormat};
use taper_peft::TrainedModule;
use taper_train::plan::{
    BatchShape, EvaluationShape, GpuWeights, MemoryPlan, ModuleKind, WeightFormat, Workload,
    activation_bytes, fully_trained, modules, overhead_bytes, weight_bytes,
};
use taper_train::{Sections, TrainSection, resident_bytes, shortest_example};

/// The sizes of a run.
pub(super) struct Work<'s> {
    pub(super) session: &'s Session,
    pub(super) config: ModelConfig,
    pub(super) trained: Vec<TrainedModule>,
    /// Types that weights are held in, each once.
    pub(super) formats: Vec<&'static str>,
    pub(super) weight_bytes: u64,
    pub(super) steps: u64,
    pub(super) steps_per_epoch: u64,
    /// Tokens of all training steps.
    pub(super) tokens: u64,
    /// The first micro-batch of a run, which has the most tokens.
    pub(super) longest: Batch,
    reading_bytes: u64,
    valid: Option<BatchShape>,
    example: Option<BatchShape>,
    evaluations: Vec<EvaluationShape>,
    overhead_bytes: u64,
    held: Held,
    on_gpu: bool,
}

/// A run with some settings changed.
#[derive(Debug, Clone)]
pub(super) struct Changed {
    pub(super) train: TrainSection,
    pub(super) batch: BatchShape,
    pub(super) weight_bytes: u64,
    /// What linear layers are quantised to instead.
    pub(super) quantize: Option<Quantize>,
}

impl<'s> Work<'s> {
    /// Those of a run on the CPU, or on a GPU.
    pub(super) fn of(session: &'s Session, on_gpu: bool) -> anyhow::Result<Self> {
        let recipe = &session.run.recipe;
        let config = ModelConfig::read(&session.base.files.config).or_fault()?;
        let trained = match &recipe.adapter {
            Some(section) => {
                let adapter = section.to_config(&recipe.model.base);
                taper_peft::trained_modules(&adapter, &modules(&config), config.model_type.name())
                    .or_fault()?
            }
            None => fully_trained(&modules(&config)),
        };
        let held = Held::of(session, &config)?;
        let weight_bytes = weight_bytes(&config, |path| held.format(path));
        let tokenized = &session.data.train.tokenized;
        let loader = DataLoader::new(tokenized.clone(), loader_options(session)).or_fault()?;
        let first = loader.clone().next_step().unwrap_or_default();
        let sections = Sections { train: recipe.train.clone(), ..Sections::default() };
        let steps = sections.total_steps(loader.steps_per_epoch());
        let tokens_per_step = loader.tokens_per_epoch() as f64 / loader.steps_per_epoch() as f64;
        let valid = batches(&session.data.valid.tokenized, recipe.train.batch_size);
        let threads = taper_kernels::threads::thread_count();
        Ok(Self {
            session,
            formats: held.names(&config),
            weight_bytes,
            steps,
            steps_per_epoch: loader.steps_per_epoch(),
            tokens: (steps as f64 * tokens_per_step).round() as u64,
            example: shortest_example(&first).as_ref().map(BatchShape::from),
            longest: first.into_iter().next().unwrap_or_default(),
            reading_bytes: held.reading_bytes(&config),
            valid: valid.iter().map(BatchShape::from).max_by_key(|batch| batch.tokens),
            evaluations: session.tasks.iter().map(|held_out| evaluation_shape(&held_out.task)).collect(),
            overhead_bytes: overhead_bytes(resident_bytes().unwrap_or(0) + copied_bytes(tokenized), threads),
            config,
            trained,
            held,
            on_gpu,
        })
    }

    /// The run as the recipe says it.
    pub(super) fn unchanged(&self) -> Changed {
        Changed {
            train: self.session.run.recipe.train.clone(),
            batch: BatchShape::from(&self.longest),
            weight_bytes: self.weight_bytes,
            quantize: None,
        }
    }

    pub(super) fn memory(&self) -> MemoryPlan {
        self.memory_with(&self.unchanged())
    }

    pub(super) fn memory_with(&self, changed: &Changed) -> MemoryPlan {
        let workload = self.workload(changed);
        if self.on_gpu { workload.memory_on_gpu(&self.gpu_weights(changed)) } else { workload.memory() }
    }

    /// What stays on the host of a run on a GPU.
    pub(super) fn host_memory(&self) -> Option<MemoryPlan> {
        let unchanged = self.unchanged();
        self.on_gpu.then(|| self.workload(&unchanged).host_memory(&self.gpu_weights(&unchanged)))
    }

    /// Whether the run is one on a GPU.
    pub(super) fn on_gpu(&self) -> bool {
        self.on_gpu
    }

    /// Weights as they lie on a GPU.
    fn gpu_weights(&self, changed: &Changed) -> GpuWeights {
        let format = |path: &str| match changed.quantize {
            Some(quantize) if quantize.applies_to(path) => WeightFormat::Block(quantize.format),
            _ => self.format(path),
        };
        GpuWeights::new(&self.config, format, self.session.run.recipe.model.max_memory_bytes())
    }

    fn workload<'w>(&'w self, changed: &'w Changed) -> Workload<'w> {
        let recipe = &self.session.run.recipe;
        Workload {
            config: &self.config,
            weight_bytes: changed.weight_bytes,
            activation_bytes: activation_bytes(self.held.chosen, self.format("model.embed_tokens")),
            reading_bytes: self.reading_bytes,
            trained: &self.trained,
            trains_all_weights: self.session.trains_all_weights(),
            dropout: recipe.adapter.as_ref().is_some_and(|section| section.lora_dropout > 0.0),
            train: &changed.train,
            batch: changed.batch,
            valid: self.valid,
            example: self.example,
            evaluations: &self.evaluations,
            overhead_bytes: self.overhead_bytes,
        }
    }

    /// What the weight of the module at `path` is held in.
    pub(super) fn format(&self, path: &str) -> WeightFormat {
        self.held.format(path)
    }

    pub(super) fn trained_parameters(&self) -> u64 {
        let parameters = self.trained.iter().flat_map(|module| &module.parameters);
        parameters.map(|p| p.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// Numbers of the model with its adapter.
    pub(super) fn parameters(&self) -> u64 {
        let beside = if self.session.trains_all_weights() { 0 } else { self.trained_parameters() };
        self.config.parameters() + beside
    }
}

/// The training examples are there twice while they are trained on: ids and mask.
fn copied_bytes(examples: &[TokenizedExample]) -> u64 {
    examples.iter().map(|example| 5 * example.input_ids.len() as u64).sum()
}

fn evaluation_shape(task: &EvalTask) -> EvaluationShape {
    let section = &task.section;
    let (generates, losses) = (section.generates(), section.needs_losses());
    let whole = task.items.iter().filter(|_| losses).map(|item| &item.whole);
    let scored = whole.chain(task.items.iter().flat_map(|item| &item.choices)).map(|scored| BatchShape {
        tokens: scored.input_ids.len() as u64,
        target_tokens: scored.mask.iter().skip(1).filter(|scored| **scored).count() as u64,
    });
    EvaluationShape {
        prompts: task.items.iter().filter(|_| generates).map(|item| item.prompt_ids.len() as u64).collect(),
        max_new_tokens: section.max_new_tokens as u64,
        scored: scored.collect(),
    }
}

/// What each matrix will be held in: quantised, as the recipe says, else as it is stored, else as `config.json` says.
struct Held {
    quantize: Option<Quantize>,
    chosen: Option<WeightFormat>,
    stored: Option<Checkpoint>,
    otherwise: WeightFormat,
}

impl Held {
    fn of(session: &Session, config: &ModelConfig) -> anyhow::Result<Self> {
        let recipe = &session.run.recipe;
        let options = LoadOptions::from(&recipe.model);
        let is_made = recipe.model.init == InitChoice::Random;
        let files = &session.base.files;
        let stored = match (&files.gguf, files.weights.as_slice()) {
            _ if is_made => None,
            (Some(path), _) => Some(Checkpoint::open_gguf(path).or_fault()?),
            (None, []) => None,
            (None, weights) => Some(Checkpoint::open(weights, files.index.as_deref()).or_fault()?),
        };
        let dense = |dtype| WeightFormat::from(StoredFormat::Dense(dtype));
        let chosen = if is_made { Some(WeightFormat::F32) } else { options.dtype.map(dense) };
        let otherwise = dense(config.dtype.unwrap_or(DType::F32));
        Ok(Self { quantize: options.quantize, chosen, stored, otherwise })
    }

    fn format(&self, path: &str) -> WeightFormat {
        match self.quantize {
            Some(quantize) if quantize.applies_to(path) => WeightFormat::Block(quantize.format),
            _ => self.before_quantising(path),
        }
    }

    /// Blocks stay as they are stored, whatever type dense weights are held in.
    fn before_quantising(&self, path: &str) -> WeightFormat {
        let stored = self.stored.as_ref().and_then(|stored| stored.format(&format!("{path}.weight")));
        match stored.map(WeightFormat::from) {
            Some(blocks @ WeightFormat::Block(_)) => blocks,
            stored => self.chosen.or(stored).unwrap_or(self.otherwise),
        }
    }

    /// Of the largest tensor: its pages in the file, and, where it is quantised, its dense values and those in f32.
    fn reading_bytes(&self, config: &ModelConfig) -> u64 {
        let pages = self.stored.as_ref().map_or(0, |stored| stored.largest_copied_bytes() as u64);
        let Some(quantize) = self.quantize else { return pages };
        let values = modules(config).into_iter().filter(|module| quantize.applies_to(&module.path));
        let values = values.map(|module| match module.kind {
            ModuleKind::Linear { n_in: columns, n_out: rows, .. }
            | ModuleKind::Embedding { rows, width: columns } => {
                WeightFormat::F32.matrix_bytes(rows, columns)
                    + self.before_quantising(&module.path).matrix_bytes(rows, columns)
            }
            ModuleKind::RmsNorm { .. } => 0,
        });
        pages + values.max().unwrap_or(0)
    }

    fn names(&self, config: &ModelConfig) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for module in modules(config) {
            let name = self.format(&module.path).name();
            if !matches!(module.kind, ModuleKind::RmsNorm { .. }) && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
