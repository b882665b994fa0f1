//! Training on a device against training on the CPU: gradients, the same bits again, checkpoints.

use crate::support::{
    attach, bits, device, examples, files, model, pass, relative_error, same_pass, staged, stir, tiny,
};
use candle_core::{DType, Device};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use taper_data::{Batch, DataLoader, DataLoaderOptions};
use taper_models::{CausalLm, LoadOptions, Quantize};
use taper_nn::with_f32_activations;
use taper_quant::{BlockFormat, GgmlType};
use taper_testkit::TinySpec;
use taper_train::{
    Event, LrSchedule, OptimizerSection, Outcome, PassOptions, ProgressSink, RunPlace, ScheduleSection,
    Sections, Silent, Start, Stepper, TrainSection, Trained, Trainer, TrainingData,
};

const LORA: &str = r#"{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}"#;
/// Of sums in another order, through a whole model.
const EXACT: f32 = 1e-4;
/// Of the losses and norms of a whole model that rounds to bf16 elsewhere.
const ROUNDED: f32 = 3e-2;

fn in_type(dtype: DType) -> LoadOptions {
    LoadOptions { dtype: Some(dtype), quantize: None }
}

fn tolerance(options: LoadOptions) -> f32 {
    if options.dtype == Some(DType::BF16) { ROUNDED } else { EXACT }
}

/// The gradients of an adapter on both devices, with blocks kept and computed again. Without `staging` nothing goes through the host.
fn check(
    what: &str,
    load: impl Fn(&Device) -> Box<dyn CausalLm>,
    adapter: &str,
    tolerance: f32,
    staging: bool,
) {
    let Some(gpu) = device() else { return };
    let kept = PassOptions::default();
    let again = PassOptions { gradient_checkpointing: true, ..PassOptions::default() };
    let mut base = load(&Device::Cpu);
    let adapted = attach(base.as_mut(), adapter);
    stir(&adapted.parameters);
    let wanted = pass(base.as_ref(), &adapted.parameters, &kept);
    let exact = with_f32_activations(|| pass(base.as_ref(), &adapted.parameters, &kept));
    let mut base = load(gpu);
    let adapted = attach(base.as_mut(), adapter);
    assert!(adapted.parameters.iter().all(|p| p.var.device().same_device(gpu)), "{what}: elsewhere");
    stir(&adapted.parameters);
    let before = staged();
    let got = pass(base.as_ref(), &adapted.parameters, &kept);
    let checkpointed = pass(base.as_ref(), &adapted.parameters, &again);
    let through_host = staged() - before;
    if tolerance == ROUNDED {
        same_rounded_pass(what, &got, &wanted, &exact);
    } else {
        same_pass(what, &adapted.parameters, &got, &wanted, tolerance);
    }
    assert!(got == checkpointed, "{what}: other bits where blocks are computed again");
    assert!(staging || through_host == 0, "{what}: {through_host} operations went through the host");
}

/// Each device rounds activations to bf16 at places of its own, and single numbers of a gradient move by some hundredths of the largest. So what
/// counts is how far all together are from those over activations in f32: a device's hardly further than the CPU's.
fn same_rounded_pass(
    what: &str,
    got: &(f64, Vec<Vec<f32>>),
    wanted: &(f64, Vec<Vec<f32>>),
    exact: &(f64, Vec<Vec<f32>>),
) {
    let loss = ((got.0 - exact.0) / exact.0).abs();
    assert!(loss < 2e-3, "{what}: loss {} against {}", got.0, exact.0);
    let (ours, cpus) = (relative_error(&got.1, &exact.1), relative_error(&wanted.1, &exact.1));
    let between = relative_error(&got.1, &wanted.1);
    println!("{what}: off by {ours:.1e}, the CPU's by {cpus:.1e}, {between:.1e} between them");
    assert!(ours < 1.4 * cpus && cpus < ROUNDED, "{what}: off by {ours}, the CPU's by {cpus}");
    for ((got, wanted), exact) in got.1.iter().zip(&wanted.1).zip(&exact.1) {
        let of = |x: &Vec<f32>| relative_error(std::slice::from_ref(x), std::slice::from_ref(exact));
        assert!(of(got) < 2.0 * of(wanted), "{what}: one is off by {}, the CPU's by {}", of(got), of(wanted));
    }
}

#[test]
fn gpu_gradients_of_lora_over_f32() {
    for name in ["llama_untied", "gemma2", "gemma3", "phi3", "qwen2", "qwen3", "mistral", "olmo2", "granite"]
    {
        check(name, |on| model(name, in_type(DType::F32), on), LORA, EXACT, false);
    }
}

#[test]
fn gpu_gradients_of_lora_over_bf16() {
    for name in ["llama_untied", "gemma2", "gemma3", "phi3"] {
        let what = format!("{name} in bf16");
        check(&what, |on| model(name, in_type(DType::BF16), on), LORA, ROUNDED, false);
    }
    // Heads of 64, for the tensor cores.
    let spec = TinySpec {
        hidden_size: 128,
        intermediate_size: 96,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        ..TinySpec::default()
    };
    check("heads of 64 in bf16", |on| tiny(&spec, in_type(DType::BF16), on), LORA, ROUNDED, false);
}

#[test]
fn gpu_gradients_of_a_mixture_of_experts() {
    check("qwen3_moe", |on| model("qwen3_moe", in_type(DType::F32), on), LORA, EXACT, true);
}

fn quantized(format: BlockFormat, dtype: DType, embeddings: bool) -> LoadOptions {
    LoadOptions { dtype: Some(dtype), quantize: Some(Quantize { format, embeddings }) }
}

#[test]
fn gpu_gradients_over_quantised_bases() {
    let nf4 = BlockFormat::Nf4 { block_size: 64, double_quant: true };
    let q8_0 = BlockFormat::Ggml(GgmlType::Q8_0);
    for options in [
        quantized(nf4, DType::F32, false),
        quantized(nf4, DType::BF16, false),
        quantized(BlockFormat::Int8, DType::F32, false),
        quantized(q8_0, DType::F32, true),
    ] {
        let what = format!("{options:?}");
        check(&what, |on| model("llama_untied", options, on), LORA, tolerance(options), false);
    }
    let spec = TinySpec {
        hidden_size: 256,
        intermediate_size: 256,
        num_hidden_layers: 1,
        tie_word_embeddings: false,
        ..TinySpec::default()
    };
    for dtype in [DType::F32, DType::BF16] {
        let options = quantized(BlockFormat::Ggml(GgmlType::Q4K), dtype, true);
        check(&format!("{options:?}"), |on| tiny(&spec, options, on), LORA, tolerance(options), false);
    }
}

#[test]
fn gpu_gradients_of_biases_norms_and_whole_modules() {
    let cases = [
        ("llama_bias", r#"{"r": 2, "bias": "all"}"#),
        (
            "llama_untied",
            r#"{"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}"#,
        ),
        ("gemma2", r#"{"r": 2, "modules_to_save": ["norm"]}"#),
        ("llama_tied", r#"{"r": 2, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": true}"#),
    ];
    for (name, adapter) in cases {
        let what = format!("{name} {adapter}");
        check(&what, |on| model(name, in_type(DType::F32), on), adapter, EXACT, false);
    }
}

#[test]
fn gpu_gradients_of_all_weights() {
    let Some(gpu) = device() else { return };
    let run = |on: &Device| {
        let mut base = model("llama_tied", in_type(DType::F32), on);
        let trained = Trained::full(base.as_mut()).unwrap();
        let pass = pass(base.as_ref(), trained.parameters(), &PassOptions::default());
        (trained, pass)
    };
    let ((_, wanted), before) = (run(&Device::Cpu), staged());
    let (trained, got) = run(gpu);
    same_pass("all weights", trained.parameters(), &got, &wanted, EXACT);
    assert_eq!(staged(), before, "something went through the host");
}

#[test]
fn gpu_three_steps_have_the_same_bits_again_and_are_near_those_of_the_cpu() {
    let Some(gpu) = device() else { return };
    let steps = |on: &Device, dtype: DType| {
        let mut base = model("llama_untied", in_type(dtype), on);
        let trained = Trained::adapter(attach(base.as_mut(), LORA));
        let optimizer =
            OptimizerSection { learning_rate: 5e-3, weight_decay: 0.1, ..OptimizerSection::default() };
        let schedule = LrSchedule::new(&ScheduleSection::default(), 3);
        let train = TrainSection { neftune_noise_alpha: Some(1.0), ..TrainSection::default() };
        let mut stepper = Stepper::new(trained.parameters(), &train, &optimizer, schedule).unwrap();
        let mut losses = Vec::new();
        for step in 0..3 {
            let batches = [0, 1].map(|part| Batch::new(&examples(2, 10 * step + part)));
            let report = stepper.step(base.as_ref(), &batches, &AtomicBool::new(false)).unwrap().unwrap();
            losses.extend([report.loss(), report.grad_norm]);
        }
        (losses, bits(trained.parameters()))
    };
    for dtype in [DType::F32, DType::BF16] {
        let (first, before) = (steps(gpu, dtype), staged());
        assert!(first == steps(gpu, dtype), "other bits");
        assert_eq!(staged(), before, "something went through the host");
        let wanted = steps(&Device::Cpu, dtype).0;
        for (got, wanted) in first.0.iter().zip(&wanted) {
            let allowed = f64::from(tolerance(in_type(dtype))) * wanted;
            assert!((got - wanted).abs() <= allowed, "{got} against {wanted} in {dtype:?}");
        }
    }
}

/// Sets a flag at one of the events.
struct At(usize, Arc<AtomicBool>);

impl ProgressSink for At {
    fn event(&mut self, _: &Event<'_>) {
        if self.0 == 0 {
            self.1.store(true, Ordering::Relaxed);
        }
        self.0 = self.0.wrapping_sub(1);
    }
}

fn sections() -> Sections {
    let mut sections = Sections::default();
    sections.train.max_steps = Some(5);
    sections.train.neftune_noise_alpha = Some(1.0);
    sections.train.logging_steps = 1;
    sections.train.eval_steps = Some(3);
    sections.train.save_steps = Some(2);
    sections.train.self_test = false;
    sections.optimizer.learning_rate = 5e-3;
    sections.schedule.warmup_steps = Some(1);
    sections
}

fn data() -> TrainingData {
    let options = DataLoaderOptions {
        batch_size: 2,
        gradient_accumulation_steps: 2,
        max_length: 64,
        packing: false,
        shuffle: true,
        seed: 5,
        num_epochs: None,
    };
    let train = DataLoader::new(examples(9, 1), options).unwrap();
    TrainingData { train, valid: vec![Batch::new(&examples(2, 99))] }
}

/// A run in `folder`: how it ended, what it left in the checkpoint and in the parameters.
struct Ran {
    outcome: Outcome,
    checkpoint: BTreeMap<String, Vec<u8>>,
    bits: BTreeMap<String, Vec<u32>>,
}

fn run(on: &Device, folder: &Path, start: Start, interrupt_at: Option<usize>) -> Ran {
    let mut base = model("llama_untied", in_type(DType::F32), on);
    let trained = Trained::adapter(attach(base.as_mut(), LORA));
    let interrupt: Arc<AtomicBool> = Arc::default();
    let fingerprints = BTreeMap::from([("recipe".to_owned(), "0123".to_owned())]);
    let place =
        RunPlace { folder: folder.to_owned(), fingerprints, start, interrupt: Arc::clone(&interrupt) };
    let mut sink: Box<dyn ProgressSink> = match interrupt_at {
        Some(events) => Box::new(At(events, interrupt)),
        None => Box::new(Silent),
    };
    let sections = sections();
    let mut trainer = Trainer::new(base.as_ref(), &trained, data(), &sections, place).unwrap();
    let outcome = trainer.run(sink.as_mut()).unwrap();
    let (Outcome::Finished { checkpoint, .. } | Outcome::Interrupted { checkpoint, .. }) = &outcome;
    Ran { checkpoint: files(checkpoint), bits: bits(trained.parameters()), outcome }
}

#[test]
fn gpu_a_run_is_resumed_on_the_device_to_the_same_bits_and_on_the_cpu() {
    let Some(gpu) = device() else { return };
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let whole = run(gpu, folders[0].path(), Start::Fresh, None);
    for folder in &folders[1..] {
        let broken = run(gpu, folder.path(), Start::Fresh, Some(5));
        assert!(matches!(broken.outcome, Outcome::Interrupted { .. }), "{:?}", broken.outcome);
        let (Outcome::Finished { checkpoint, .. } | Outcome::Interrupted { checkpoint, .. }) = broken.outcome;
        // What the device wrote is what the CPU reads.
        let mut base = model("llama_untied", in_type(DType::F32), &Device::Cpu);
        let trained = Trained::adapter(attach(base.as_mut(), LORA));
        trained.restore(&checkpoint).unwrap();
        assert!(bits(trained.parameters()) == broken.bits, "restored onto the CPU");
    }
    let resumed = run(gpu, folders[1].path(), Start::Resume, None);
    assert!(resumed.bits == whole.bits, "resumed on the device");
    assert!(resumed.checkpoint == whole.checkpoint, "the checkpoint of the resumed run");
    let on_cpu = run(&Device::Cpu, folders[2].path(), Start::Resume, None);
    assert_eq!(on_cpu.bits.keys().collect::<Vec<_>>(), whole.bits.keys().collect::<Vec<_>>());
    for (name, got) in &on_cpu.bits {
        let floats = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>();
        let off = crate::support::distance(&floats(got), &floats(&whole.bits[name]));
        assert!(off < 1e-2, "{name} is off by {off}");
    }
}
