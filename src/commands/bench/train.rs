//! `taper bench train`: optimiser steps of a LoRA on random weights.

use super::random::{random_example, random_model};
use crate::cli::BenchTrainArgs;
use crate::device;
use crate::fault::OrFault;
use crate::memory::peak_bytes;
use candle_core::DType;
use serde_json::json;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use taper_data::{Batch, TokenizedExample};
use taper_models::{LoadOptions, ModelConfig};
use taper_nn::StoredFormat;
use taper_peft::{AdapterConfig, AdapterSection};
use taper_train::plan::{
    BatchShape, PhaseName, WeightFormat, Workload, activation_bytes, modules, overhead_bytes, weight_bytes,
};
use taper_train::{
    LrSchedule, OptimizerSection, ScheduleSection, Stepper, TrainSection, Trained, resident_bytes,
};

pub(super) fn train(args: &BenchTrainArgs) -> anyhow::Result<serde_json::Value> {
    let &BenchTrainArgs { ref model, batch, seq, steps, checkpointing } = args;
    let args = model;
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
        "device": device::figures(&device::open_choice(args.device)?),
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
