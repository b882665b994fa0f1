//! The plan of memory against a heap that counts: what a pass really holds at its worst, within a few percent.
//!
//! One test, since the counter is the process's: nothing else may run beside it.

use candle_core::DType;
use peak_alloc::PeakAlloc;
use serde_json::json;
use std::path::Path;
use taper_data::{Batch, RowPlace, TokenizedExample};
use taper_kernels::rng::CounterRng;
use taper_models::{CausalLm, LoadOptions, ModelConfig, ModelType, Quantize};
use taper_nn::RandomKey;
use taper_peft::{AdapterSection, TrainedModule};
use taper_quant::{BlockFormat, GgmlType};
use taper_train::plan::{
    BatchShape, Cause, PhaseName, WeightFormat, Workload, fully_trained, modules, weight_bytes,
};
use taper_train::{
    Gradients, LOGITS_BYTES, PassOptions, TrainSection, Trained, evaluate_loss, forward_backward,
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const KEY: RandomKey = RandomKey { seed: 3, step: 4, micro_batch: 1 };
/// What the plan of a step may be off by, of what a pass adds to the state. It is off by at most 0.6 % here.
const OF_A_STEP: f64 = 0.03;
/// The same of a validation: a small thing, in which the buffers of matrix products show.
const OF_A_VALIDATION: f64 = 0.1;

fn config(model_type: ModelType, changes: &serde_json::Value) -> ModelConfig {
    let mut config = json!({
        "model_type": model_type.name(), "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": true,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::parse(&config.to_string()).unwrap()
}

fn batch(lengths: &[usize], learned: fn(usize) -> bool) -> Batch {
    let example = |(row, length): (usize, &usize)| {
        let rng = CounterRng::new(5, row as u64);
        TokenizedExample {
            input_ids: (0..*length as u64).map(|at| rng.below(at, 1024) as u32).collect(),
            loss_mask: (0..*length).map(learned).collect(),
            source: RowPlace { file: Path::new("made.jsonl").into(), line: row + 1, element: None },
        }
    };
    Batch::new(&lengths.iter().enumerate().map(example).collect::<Vec<_>>())
}

/// The most bytes that are alive while `body` runs, beyond those alive before.
fn grown(body: impl FnOnce()) -> u64 {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    body();
    (HEAP.peak_usage() - before) as u64
}

/// What of a planned phase comes and goes with the pass.
fn of_pass(workload: &Workload<'_>, phase: PhaseName) -> u64 {
    let bytes = workload.memory().phase(phase).unwrap();
    [Cause::Activations, Cause::Temporaries, Cause::Logits].into_iter().map(|cause| bytes.of(cause)).sum()
}

struct Case {
    name: String,
    config: ModelConfig,
    adapter: Option<AdapterSection>,
    train: TrainSection,
}

impl Case {
    fn trained(&self) -> Vec<TrainedModule> {
        let modules = modules(&self.config);
        match &self.adapter {
            Some(section) => {
                let name = self.config.model_type.name();
                taper_peft::trained_modules(&section.to_config("base"), &modules, name).unwrap()
            }
            None => fully_trained(&modules),
        }
    }

    fn attach(&self, model: &mut dyn CausalLm) -> Trained {
        match &self.adapter {
            Some(section) => {
                let name = self.config.model_type.name();
                Trained::adapter(taper_peft::attach(model, &section.to_config("base"), name, 1).unwrap())
            }
            None => Trained::full(model).unwrap(),
        }
    }

    fn check(&self, batch: &Batch) {
        let mut model = taper_models::init(&self.config, 1, Some(DType::BF16)).unwrap();
        let trained = self.attach(model.as_mut());
        let planned = self.trained();
        let workload = Workload {
            config: &self.config,
            weight_bytes: 0,
            activation_bytes: 2,
            reading_bytes: 0,
            trained: &planned,
            trains_all_weights: self.adapter.is_none(),
            dropout: self.adapter.as_ref().is_some_and(|section| section.lora_dropout > 0.0),
            train: &self.train,
            batch: BatchShape::from(batch),
            valid: Some(BatchShape::from(batch)),
            example: None,
            evaluations: &[],
            overhead_bytes: 0,
        };
        assert_eq!(workload.trained_parameters(), trained.parameter_count() as u64, "{}", self.name);
        let options = PassOptions {
            gradient_checkpointing: self.train.gradient_checkpointing,
            neftune_noise_alpha: self.train.neftune_noise_alpha,
            logits_bytes: LOGITS_BYTES,
            ..PassOptions::default()
        };
        let mut gradients = Gradients::new(trained.parameters()).unwrap();
        let mut pass = || {
            forward_backward(model.as_ref(), batch, Some(KEY), &options, &mut gradients).unwrap();
        };
        // The first pass makes the scratch of the threads.
        pass();
        let measured = grown(pass);
        self.compare("forward and backward", OF_A_STEP, of_pass(&workload, PhaseName::Step), measured);
        let validate = || {
            evaluate_loss(model.as_ref(), batch, LOGITS_BYTES).unwrap();
        };
        validate();
        let measured = grown(validate);
        self.compare("validation", OF_A_VALIDATION, of_pass(&workload, PhaseName::Validation), measured);
    }

    fn compare(&self, what: &str, tolerance: f64, planned: u64, measured: u64) {
        let off = planned as f64 / measured as f64 - 1.0;
        assert!(off.abs() < tolerance, "{}, {what}: planned {planned}, measured {measured}", self.name);
    }
}

fn adapters() -> Vec<(&'static str, Option<AdapterSection>)> {
    let section = |json: &str| Some(serde_json::from_str(json).unwrap());
    vec![
        ("all linear layers", section(r#"{"r": 16}"#)),
        ("dropout", section(r#"{"r": 4, "lora_dropout": 0.1}"#)),
        ("queries and values", section(r#"{"r": 8, "target_modules": ["q_proj", "v_proj"]}"#)),
        ("the upper half", section(r#"{"layers_to_transform": [2, 3]}"#)),
        ("norms beside it", section(r#"{"modules_to_save": ["norm"]}"#)),
        ("full", None),
    ]
}

/// On one thread: scratch of a thread is made when it first gets work, which on a busy machine may be long after the first pass.
#[test]
fn what_is_planned_is_what_the_heap_holds() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(every_case);
}

fn every_case() {
    let models = [
        ("llama", config(ModelType::Llama, &json!({}))),
        (
            "untied, narrow, many words",
            config(ModelType::Llama, &json!({"tie_word_embeddings": false, "vocab_size": 4000})),
        ),
        ("qwen2", config(ModelType::Qwen2, &json!({}))),
        ("qwen3", config(ModelType::Qwen3, &json!({"head_dim": 32}))),
    ];
    let batches = [
        ("answers of long prompts", batch(&[120, 90, 33, 7], |at| at > 60)),
        ("one text", batch(&[256], |_| true)),
    ];
    for (model, config) in &models {
        for (adapter, section) in adapters() {
            for gradient_checkpointing in [false, true] {
                for (layout, batch) in &batches {
                    let train = TrainSection { gradient_checkpointing, ..TrainSection::default() };
                    let way = if gradient_checkpointing { "checkpointed" } else { "kept" };
                    let name = format!("{model}, {adapter}, {layout}, {way}");
                    let case = Case { name, config: config.clone(), adapter: section.clone(), train };
                    case.check(batch);
                }
            }
        }
    }
    // Norms behind attention and MLP, caps on scores and logits, scaled embeddings; projections in one layer.
    // And norms behind alone, factors, experts.
    let others = [
        ("gemma2", ModelType::Gemma2),
        ("gemma3", ModelType::Gemma3),
        ("phi3", ModelType::Phi3),
        ("olmo2", ModelType::Olmo2),
        ("granite", ModelType::Granite),
        ("qwen3_moe", ModelType::Qwen3Moe),
    ];
    for (name, model_type) in others {
        for (adapter, section) in [("all linear layers", Some(AdapterSection::default())), ("full", None)] {
            for ((layout, batch), gradient_checkpointing) in
                batches.iter().flat_map(|batch| [false, true].map(|checkpointing| (batch, checkpointing)))
            {
                let name = format!("{name}, {adapter}, {layout}, checkpointing {gradient_checkpointing}");
                let config = config(
                    model_type,
                    &json!({"head_dim": 16, "residual_multiplier": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0}),
                );
                let train = TrainSection { gradient_checkpointing, ..TrainSection::default() };
                Case { name, config, adapter: section.clone(), train }.check(batch);
            }
        }
    }
    let train = TrainSection { neftune_noise_alpha: Some(5.0), ..TrainSection::default() };
    let section = Some(AdapterSection { bias: taper_peft::Bias::All, ..AdapterSection::default() });
    let case = Case { name: "noise and biases".into(), config: models[2].1.clone(), adapter: section, train };
    case.check(&batches[1].1);
    other_methods(&models[0].1, &batches);
    modules_are_those_of_the_models();
    weights_are_those_of_the_formats(&models[0].1);
}

/// What the methods beside LoRA keep.
fn other_methods(config: &ModelConfig, batches: &[(&str, Batch); 2]) {
    let sections = [
        r#"{"use_dora": true}"#,
        r#"{"use_dora": true, "target_modules": ["down_proj"]}"#,
        r#"{"lora_bias": true}"#,
        r#"{"peft_type": "ia3"}"#,
        r#"{"peft_type": "vera", "r": 64}"#,
        r#"{"peft_type": "loha", "r": 4}"#,
        r#"{"peft_type": "lokr", "r": 4}"#,
        r#"{"target_modules": ["embed_tokens", "q_proj"]}"#,
        r#"{"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}"#,
    ];
    for (section, (layout, batch)) in sections.iter().flat_map(|s| batches.iter().map(move |b| (s, b))) {
        let name = format!("{section}, {layout}");
        let section = Some(serde_json::from_str(section).unwrap());
        let case = Case { name, config: config.clone(), adapter: section, train: TrainSection::default() };
        case.check(batch);
    }
}

/// Loading leaves what the plan says, in every format, and a quantised base adds nothing to a step: no dequantised matrix is ever held.
fn weights_are_those_of_the_formats(config: &ModelConfig) {
    let config = ModelConfig { hidden_size: 256, intermediate_size: 512, head_dim: 64, ..config.clone() };
    let nf4 = |double_quant| BlockFormat::Nf4 { block_size: 64, double_quant };
    let ggml = [GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q6K].map(BlockFormat::Ggml);
    for format in [nf4(false), nf4(true), BlockFormat::Int8].into_iter().chain(ggml) {
        let quantize = Quantize { format, embeddings: false };
        let options = LoadOptions { dtype: Some(DType::BF16), quantize: Some(quantize) };
        let before = HEAP.current_usage();
        let model = taper_models::init_with(&config, 1, options).unwrap();
        let held = (HEAP.current_usage() - before) as f64;
        let planned = weight_bytes(&config, |path| match quantize.applies_to(path) {
            true => WeightFormat::Block(format),
            false => WeightFormat::BF16,
        });
        // The tables that 4 bits are decoded by take 3 KB a matrix, of which there are 28, and names and the like less.
        let beside = 28.0 * 4096.0;
        let off = (planned as f64 - held).abs();
        assert!(off < 0.01 * held + beside, "{format:?}: planned {planned}, held {held}");
        let batch = batch(&[200], |_| true);
        let step = |mut model: Box<dyn CausalLm>| {
            let section = AdapterSection::default().to_config("base");
            let adapter = taper_peft::attach(model.as_mut(), &section, "llama", 1).unwrap();
            let mut gradients = Gradients::new(&adapter.parameters).unwrap();
            let mut pass = || {
                let pass =
                    forward_backward(model.as_ref(), &batch, None, &PassOptions::default(), &mut gradients);
                assert!(pass.unwrap().loss_sum > 0.0);
            };
            pass();
            grown(pass)
        };
        let dense = taper_models::init(&config, 1, Some(DType::BF16)).unwrap();
        let (coded, dense) = (step(model), step(dense));
        assert!(coded <= dense + dense / 50, "{format:?}: a pass takes {coded}, over dense weights {dense}");
    }
}

fn modules_are_those_of_the_models() {
    for model_type in ModelType::ALL {
        for tied in [false, true] {
            let config = config(model_type, &json!({"tie_word_embeddings": tied}));
            let mut model = taper_models::init(&config, 1, None).unwrap();
            assert_eq!(
                modules(&config),
                taper_peft::inventory(model.as_mut()).unwrap(),
                "{}",
                model_type.name()
            );
        }
    }
}
