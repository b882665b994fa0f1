//! What a run takes of a device's memory against its plan.
//!
//! The pool's peak is that of the whole process, so the measurement runs in one of its own, alone.

use crate::support::device;
use candle_core::{DType, Device};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use taper_data::{Batch, RowPlace, TokenizedExample};
use taper_models::{LoadOptions, ModelConfig, Quantize};
use taper_peft::AdapterSection;
use taper_quant::BlockFormat;
use taper_train::plan::{BatchShape, Cause, GpuWeights, PhaseName, WeightFormat, Workload, modules};
use taper_train::{
    LrSchedule, OptimizerSection, ScheduleSection, Stepper, TrainSection, Trained, evaluate_loss,
};

/// What the plan may be off by, of what lies on the device and of what a pass adds to it.
const TOLERANCE: f64 = 0.1;
const TOKENS: usize = 160;

fn config() -> ModelConfig {
    let config = json!({
        "model_type": "llama", "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": true,
    });
    ModelConfig::parse(&config.to_string()).unwrap()
}

fn batch() -> Batch {
    let example = TokenizedExample {
        input_ids: (0..TOKENS as u32).map(|at| at * 7 % 1024).collect(),
        loss_mask: (0..TOKENS).map(|at| at > 20).collect(),
        source: RowPlace { file: Path::new("made.jsonl").into(), line: 1, element: None },
    };
    Batch::new(&[example])
}

struct Case {
    name: &'static str,
    options: LoadOptions,
    adapter: &'static str,
    train: TrainSection,
}

impl Case {
    fn format(&self, path: &str) -> WeightFormat {
        match self.options.quantize {
            Some(quantize) if quantize.applies_to(path) => WeightFormat::Block(quantize.format),
            _ if self.options.dtype == Some(DType::BF16) => WeightFormat::BF16,
            _ => WeightFormat::F32,
        }
    }

    fn check(&self, gpu: &Device) {
        let (config, batch) = (config(), batch());
        let section: AdapterSection = serde_json::from_str(self.adapter).unwrap();
        let trained =
            taper_peft::trained_modules(&section.to_config("base"), &modules(&config), "llama").unwrap();
        let weights = GpuWeights::new(&config, |path| self.format(path), None);
        let workload = Workload {
            config: &config,
            weight_bytes: 0,
            activation_bytes: if self.options.dtype == Some(DType::BF16) { 2 } else { 4 },
            reading_bytes: 0,
            trained: &trained,
            trains_all_weights: false,
            dropout: section.lora_dropout > 0.0,
            train: &self.train,
            batch: BatchShape::from(&batch),
            valid: Some(BatchShape::from(&batch)),
            example: None,
            evaluations: &[],
            overhead_bytes: 0,
        };
        let plan = workload.memory_on_gpu(&weights);
        let planned = |phase, causes: &[Cause]| -> u64 {
            let bytes = plan.phase(phase).unwrap();
            causes.iter().map(|cause| bytes.of(*cause)).sum()
        };
        let memory = || taper_nn::memory_of(gpu).unwrap();

        let start = memory().used;
        let mut model = taper_models::init_with(&config, 1, self.options).unwrap();
        taper_nn::move_to(model.as_mut(), gpu, None).unwrap();
        self.compare("weights", weights.device_bytes, memory().used - start);
        let adapter = taper_peft::attach(model.as_mut(), &section.to_config("base"), "llama", 1).unwrap();
        let trained = Trained::adapter(adapter);
        let schedule = LrSchedule::new(&ScheduleSection::default(), 9);
        let mut stepper =
            Stepper::new(trained.parameters(), &self.train, &OptimizerSection::default(), schedule).unwrap();
        let state = [Cause::Weights, Cause::Parameters, Cause::Gradients, Cause::Optimizer];
        let held = memory().used;
        self.compare("state", planned(PhaseName::Step, &state), held - start);

        let of_pass = [Cause::Activations, Cause::Temporaries, Cause::Logits];
        assert!(taper_nn::reset_peak_memory(gpu));
        stepper.step(model.as_ref(), std::slice::from_ref(&batch), &AtomicBool::new(false)).unwrap();
        assert_eq!(memory().used, held, "{}: a step leaves something behind", self.name);
        self.compare("step", planned(PhaseName::Step, &of_pass), memory().peak - held);
        assert!(taper_nn::reset_peak_memory(gpu));
        evaluate_loss(model.as_ref(), &batch, taper_train::LOGITS_BYTES).unwrap();
        self.compare("validation", planned(PhaseName::Validation, &of_pass), memory().peak - held);
    }

    fn compare(&self, what: &str, planned: u64, counted: usize) {
        let off = planned as f64 / counted as f64 - 1.0;
        println!("{}, {what}: planned {planned}, counted {counted} ({:+.2} %)", self.name, 100.0 * off);
        assert!(off.abs() < TOLERANCE, "{}, {what}: planned {planned}, counted {counted}", self.name);
    }
}

fn cases() -> Vec<Case> {
    let dense = |dtype| LoadOptions { dtype: Some(dtype), quantize: None };
    let nf4 = |double_quant| {
        let format = BlockFormat::Nf4 { block_size: 64, double_quant };
        LoadOptions { dtype: Some(DType::BF16), quantize: Some(Quantize { format, embeddings: false }) }
    };
    let again = TrainSection { gradient_checkpointing: true, ..TrainSection::default() };
    let offloaded = TrainSection { activation_offloading: true, ..again.clone() };
    let (kept, r16) = (TrainSection::default(), r#"{"r": 16}"#);
    let case =
        |name, options, adapter, train: &TrainSection| Case { name, options, adapter, train: train.clone() };
    vec![
        case("bf16", dense(DType::BF16), r16, &kept),
        case("bf16, checkpointed", dense(DType::BF16), r16, &again),
        case("bf16, checkpointed and offloaded", dense(DType::BF16), r16, &offloaded),
        case("nf4", nf4(false), r16, &kept),
        case("nf4, checkpointed", nf4(true), r16, &again),
        case("nf4, dropout", nf4(true), r#"{"r": 8, "lora_dropout": 0.1}"#, &kept),
        case(
            "queries and values alone",
            dense(DType::BF16),
            r#"{"r": 8, "target_modules": ["q_proj", "v_proj"]}"#,
            &kept,
        ),
        case("f32", dense(DType::F32), r16, &kept),
    ]
}

#[test]
fn gpu_memory_is_as_planned() {
    if device().is_none() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let args = ["--exact", "memory::measured_alone", "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(this).args(args).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "the peak is the process's: `gpu_memory_is_as_planned` runs this alone"]
fn measured_alone() {
    let Some(gpu) = device() else { return };
    for case in cases() {
        case.check(gpu);
    }
}

/// Runs `taper` on the emulated device with so much memory: the exit status, and what was said on both streams.
fn taper(folder: &Path, memory: u64, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_taper"))
        .args(args)
        .current_dir(folder)
        .env("TAPER_EMULATOR_MEMORY", memory.to_string())
        .env("TAPER_CACHE_DIR", folder.join("cache"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A base of so many blocks, data and a recipe in a folder, with `words` words in the answers of the training and of the validation data.
fn desk(layers: usize, train_words: usize, valid_words: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
    let spec = taper_testkit::TinySpec {
        hidden_size: 64,
        intermediate_size: 256,
        num_hidden_layers: layers,
        ..taper_testkit::TinySpec::default()
    };
    taper_testkit::tiny_checkpoint(&folder.path().join("base"), &spec);
    let row = |n: usize, words: usize| {
        let answer = "a story ".repeat(words);
        json!({ "messages": [
            { "role": "user", "content": format!("tell number {n}") }, { "role": "assistant", "content": answer },
        ] })
        .to_string()
    };
    let rows = |numbers: std::ops::Range<usize>, words| {
        numbers.map(|n| row(n, words)).collect::<Vec<_>>().join("\n")
    };
    write("train.jsonl", &rows(0..8, train_words));
    write("valid.jsonl", &rows(100..104, valid_words));
    write(
        "recipe.toml",
        r#"schema = 1
name = "stories"
[model]
base = "base"
[adapter]
r = 8
lora_alpha = 16
[data]
train = "train.jsonl"
valid = "valid.jsonl"
max_length = 4096
[train]
max_steps = 2
batch_size = 4
eval_steps = 1
self_test = false
"#,
    );
    folder
}

/// Bytes of tensors that a phase is planned to hold at its peak.
fn planned(folder: &Path, phase: &str) -> u64 {
    let (code, out, err) =
        taper(folder, 1 << 30, &["plan", "recipe.toml", "--json", "--gpu-memory", "24GiB"]);
    assert_eq!(code, Some(0), "{err}");
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    let phases = plan["memory"]["phases"].as_array().unwrap();
    let phase = phases.iter().find(|p| p["name"] == phase).unwrap();
    phase["bytes"].as_u64().unwrap() - taper_train::plan::DRIVER_BYTES
}

/// On a real card there is no telling it to have less memory.
fn is_emulated() -> bool {
    device().is_some_and(|device| taper_nn::device_name(device).starts_with("Emulated"))
}

#[test]
fn gpu_a_step_that_does_not_fit_is_told_with_settings_that_do() {
    if !is_emulated() {
        return;
    }
    let desk = desk(6, 15, 1);
    let (state, step) = (planned(desk.path(), "checkpoint"), planned(desk.path(), "step"));
    let memory = state + (step - state) * 2 / 3;
    let train = ["train", "recipe.toml", "--device", "cuda"];
    let (code, _, err) = taper(desk.path(), memory, &train);
    assert_eq!(code, Some(2), "{err}");
    for part in ["the GPU's memory is spent: failed to ", "block", "which asks for", "no step was completed"]
    {
        assert!(err.contains(part), "{part} is not in:\n{err}");
    }
    let settings: Vec<&str> = err.split('`').filter(|part| part.starts_with("--set ")).collect();
    assert!(settings.iter().any(|s| s.contains("train.gradient_checkpointing=true")), "{err}");
    let batch = settings.iter().find(|s| s.contains("train.batch_size=")).unwrap();
    assert!(batch.contains("train.gradient_accumulation_steps="), "{err}");
    // What is said to fit does.
    for setting in settings.iter().filter(|s| !s.contains("data.")) {
        let args: Vec<&str> = train.into_iter().chain(["--overwrite"]).chain(setting.split(' ')).collect();
        let (code, _, err) = taper(desk.path(), memory, &args);
        assert_eq!(code, Some(0), "{setting}: {err}");
        assert!(err.contains(" gpu_memory_mb=") && err.contains(" gpu_total_mb="), "{err}");
    }
}

#[test]
fn gpu_a_validation_that_does_not_fit_leaves_a_checkpoint_of_the_steps_before() {
    if !is_emulated() {
        return;
    }
    let desk = desk(2, 1, 80);
    let (step, validation) = (planned(desk.path(), "step"), planned(desk.path(), "validation"));
    assert!(step < validation / 2, "a step of {step} bytes, a validation of {validation}");
    let (code, _, err) =
        taper(desk.path(), validation * 3 / 4, &["train", "recipe.toml", "--device", "cuda"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("the GPU's memory is spent") && err.contains("the last good state is `"), "{err}");
    assert!(desk.path().join("runs/stories/checkpoints").is_dir(), "{err}");
    let resume = ["train", "recipe.toml", "--device", "cuda", "--resume"];
    let (code, _, err) = taper(desk.path(), validation * 2, &resume);
    assert_eq!(code, Some(0), "{err}");
    let metrics = fs_err::read_to_string(desk.path().join("runs/stories/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"gpu_memory_mb\":") && metrics.contains("\"gpu_reserved_mb\":"), "{metrics}");
}
