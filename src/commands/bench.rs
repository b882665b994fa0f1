//! `taper bench`: throughput of training and decoding for a published model shape, random weights.

use crate::cli::{BenchModelArgs, BenchVerb};
use crate::fault::{OrFault, user_error};
use crate::memory::peak_bytes;
use crate::output::print;
use crate::workspace::model_section;
use candle_core::DType;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use taper_data::{Batch, RowPlace, TokenizedExample};
use taper_diagnostics::ExitCode;
use taper_hub::{HubOptions, ModelSource};
use taper_kernels::rng::CounterRng;
use taper_models::{CausalLm, LoadOptions, ModelConfig, ModelType};
use taper_nn::{ForwardContext, KvCache, SequenceLayout, StoredFormat};
use taper_peft::{AdapterConfig, AdapterSection};
use taper_train::plan::{
    BatchShape, PhaseName, WeightFormat, Workload, activation_bytes, modules, overhead_bytes, weight_bytes,
};
use taper_train::{
    LrSchedule, OptimizerSection, ScheduleSection, Stepper, TrainSection, Trained, resident_bytes,
};

/// Shapes as their owners publish them: architecture; hidden, layers, query heads, key/value heads, MLP width, vocabulary. All heads are tied.
const SHAPES: [(&str, ModelType, [usize; 6]); 4] = [
    ("15M", ModelType::Llama, [288, 6, 6, 6, 768, 4096]),
    ("smollm2-135m", ModelType::Llama, [576, 30, 9, 3, 1536, 49152]),
    ("qwen2.5-0.5b", ModelType::Qwen2, [896, 24, 14, 2, 4864, 151_936]),
    ("llama3.2-1b", ModelType::Llama, [2048, 16, 32, 8, 8192, 128_256]),
];

pub(crate) fn bench(verb: &BenchVerb) -> anyhow::Result<ExitCode> {
    refuse_zeros(verb)?;
    let figures = match verb {
        BenchVerb::Train { model, batch, seq, steps, checkpointing } => {
            train(model, *batch, *seq, *steps, *checkpointing)?
        }
        BenchVerb::Generate { model, model_file, batch, prompt, tokens } => {
            generate(model, model_file.as_deref(), *batch, *prompt, *tokens)?
        }
    };
    print(&figures.to_string())?;
    Ok(ExitCode::Passed)
}

/// Nothing measured must not look like a measurement.
fn refuse_zeros(verb: &BenchVerb) -> anyhow::Result<()> {
    let sizes = match verb {
        BenchVerb::Train { batch, seq, steps, .. } => {
            [("--batch", *batch), ("--seq", *seq), ("--steps", *steps)]
        }
        BenchVerb::Generate { batch, prompt, tokens, .. } => {
            [("--batch", *batch), ("--prompt", *prompt), ("--tokens", *tokens)]
        }
    };
    match sizes.into_iter().find(|(_, size)| *size == 0) {
        Some((flag, _)) => Err(user_error(format!("`{flag}` is 0"), "it takes 1 or more")),
        None => Ok(()),
    }
}

/// A shape with random weights, held as the flags say.
fn random_model(args: &BenchModelArgs) -> anyhow::Result<(Box<dyn CausalLm>, LoadOptions)> {
    let named = SHAPES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(&args.shape));
    let Some((_, model_type, [hidden, layers, heads, kv_heads, mlp, vocabulary])) = named else {
        return Err(user_error(
            format!("no shape is named `{}`", args.shape),
            "there are 15M, smollm2-135m, qwen2.5-0.5b and llama3.2-1b",
        ));
    };
    let config = json!({
        "model_type": model_type.name(), "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let config = ModelConfig::parse(&config.to_string())?;
    let section = model_section(&args.quantize, &args.shape, &args.dtype)?;
    let options = LoadOptions::from(&section);
    Ok((taper_models::init_with(&config, 1, options).or_fault()?, options))
}

fn train(
    args: &BenchModelArgs,
    batch: usize,
    seq: usize,
    steps: usize,
    checkpointing: bool,
) -> anyhow::Result<serde_json::Value> {
    let resident = resident_bytes().unwrap_or(0);
    let (mut model, options) = random_model(args)?;
    let section = AdapterSection { r: 16, lora_alpha: 32.0, ..AdapterSection::default() };
    let config = section.to_config(&args.shape);
    let model_type = model.config().model_type.name();
    let trained = Trained::adapter(taper_peft::attach(model.as_mut(), &config, model_type, 1).or_fault()?);
    let section = TrainSection { gradient_checkpointing: checkpointing, ..TrainSection::default() };
    let batch_shape = BatchShape { tokens: (batch * seq) as u64, target_tokens: (batch * (seq - 1)) as u64 };
    let predicted = predicted_bytes(model.config(), &config, options, &section, batch_shape, resident)?;
    let total_steps = steps as u64 + 1;
    let schedule = LrSchedule::new(&ScheduleSection::default(), total_steps);
    let mut stepper =
        Stepper::new(trained.parameters(), &section, &OptimizerSection::default(), schedule).or_fault()?;
    let interrupt = AtomicBool::new(false);
    let vocabulary = model.config().vocab_size as u64;
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..total_steps {
        let examples: Vec<TokenizedExample> =
            (0..batch).map(|row| random_example(seq, vocabulary, step * batch as u64 + row as u64)).collect();
        let started = Instant::now();
        stepper.step(model.as_ref(), &[Batch::new(&examples)], &interrupt).or_fault()?;
        // The first step touches every page for the first time.
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    Ok(json!({
        "bench": "train", "shape": args.shape, "dtype": args.dtype, "quantize": args.quantize.quantize,
        "double_quant": args.quantize.double_quant, "batch": batch, "seq": seq, "rank": 16,
        "gradient_checkpointing": checkpointing, "threads": taper_kernels::threads::thread_count(),
        "median_step_seconds": median, "tokens_per_second": (batch * seq) as f64 / median,
        "peak_bytes": peak_bytes(), "predicted_peak_bytes": predicted,
    }))
}

/// What `taper plan` would say of the steps, for whoever holds it against the peak beside it.
fn predicted_bytes(
    model: &ModelConfig,
    adapter: &AdapterConfig,
    options: LoadOptions,
    train: &TrainSection,
    batch: BatchShape,
    resident: u64,
) -> anyhow::Result<u64> {
    let dense = WeightFormat::from(StoredFormat::Dense(options.dtype.unwrap_or(DType::BF16)));
    let format = |path: &str| match options.quantize {
        Some(quantize) if quantize.applies_to(path) => WeightFormat::Block(quantize.format),
        _ => dense,
    };
    let trained =
        taper_peft::trained_modules(adapter, &modules(model), model.model_type.name()).or_fault()?;
    let workload = Workload {
        config: model,
        weight_bytes: weight_bytes(model, format),
        activation_bytes: activation_bytes(Some(dense), dense),
        reading_bytes: 0,
        trained: &trained,
        trains_all_weights: false,
        dropout: false,
        train,
        batch,
        valid: None,
        example: None,
        evaluations: &[],
        overhead_bytes: overhead_bytes(resident, taper_kernels::threads::thread_count()),
    };
    Ok(workload.memory().phase(PhaseName::Step).map_or(0, |bytes| bytes.total()))
}

fn random_example(tokens: usize, vocabulary: u64, number: u64) -> TokenizedExample {
    let rng = CounterRng::new(2, number);
    let input_ids = (0..tokens as u64).map(|i| rng.below(i, vocabulary) as u32).collect();
    let source = RowPlace { file: Path::new("random").into(), line: 1, element: None };
    TokenizedExample { input_ids, loss_mask: vec![true; tokens], source }
}

/// The model of a folder or a GGUF file, held as the flags say.
fn model_of_file(args: &BenchModelArgs, path: &Path) -> anyhow::Result<Box<dyn CausalLm>> {
    let section = model_section(&args.quantize, &path.to_string_lossy(), &args.dtype)?;
    let offline = HubOptions { offline: true, ..HubOptions::from_env() };
    let files = ModelSource::of_section(&section, Path::new("")).or_fault()?.resolve(&offline).or_fault()?;
    taper_models::load(&files, LoadOptions::from(&section)).or_fault()
}

fn generate(
    args: &BenchModelArgs,
    file: Option<&Path>,
    batch: usize,
    prompt: usize,
    tokens: usize,
) -> anyhow::Result<serde_json::Value> {
    let model = match file {
        Some(path) => model_of_file(args, path)?,
        None => random_model(args)?.0,
    };
    let vocabulary = model.config().vocab_size as u64;
    let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(model.num_blocks())).collect();
    let prompts: Vec<u32> =
        (0..batch as u64).flat_map(|row| random_example(prompt, vocabulary, row).input_ids).collect();
    let started = Instant::now();
    pass(model.as_ref(), &prompts, &mut caches, prompt, 0)?;
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for step in 0..tokens {
        // Random weights: which token is likeliest does not matter, only what it costs to find out.
        let ids: Vec<u32> = (0..batch).map(|row| ((step + row) as u64 % vocabulary) as u32).collect();
        pass(model.as_ref(), &ids, &mut caches, 1, prompt + step)?;
    }
    let decode = started.elapsed().as_secs_f64();
    Ok(json!({
        "bench": "generate", "shape": file.is_none().then_some(&args.shape), "model": file, "dtype": args.dtype, "quantize": args.quantize.quantize,
        "double_quant": args.quantize.double_quant, "batch": batch, "prompt": prompt, "tokens": tokens,
        "threads": taper_kernels::threads::thread_count(),
        "prefill_tokens_per_second": (batch * prompt) as f64 / prefill,
        "decode_tokens_per_second": (batch * tokens) as f64 / decode,
        "peak_bytes": peak_bytes(),
    }))
}

/// New tokens of every sequence, and the logits behind the last one of each.
fn pass(
    model: &dyn CausalLm,
    ids: &[u32],
    caches: &mut [KvCache],
    new: usize,
    past: usize,
) -> anyhow::Result<()> {
    let layout = SequenceLayout::continued(&vec![(new, past); caches.len()]);
    let mut ctx = ForwardContext::cached(&layout, caches.iter_mut().collect());
    let hidden = taper_models::forward_hidden(model, ids, &mut ctx)?;
    let last: Vec<u32> = layout.segments().iter().map(|s| s.end as u32 - 1).collect();
    let last = candle_core::Tensor::new(last.as_slice(), hidden.device())?;
    let logits = model.lm_head(&hidden.index_select(&last, 0)?, &ctx)?;
    std::hint::black_box(logits);
    Ok(())
}
