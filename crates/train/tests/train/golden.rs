//! Twenty steps as PyTorch, PEFT and transformers made them.

use crate::support::{golden, golden_adapter, labelled_batch, model};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use taper_data::Batch;
use taper_nn::{Parameter, to_vec_f32};
use taper_train::{LrSchedule, OptimizerSection, ScheduleSection, SchedulerType, Stepper, TrainSection};

/// `[steps][micro-batches]` of `batches.safetensors`, padding cut off.
fn golden_batches() -> Vec<Vec<Batch>> {
    let file = candle_core::safetensors::load(golden("train/batches.safetensors"), &Device::Cpu).unwrap();
    let flat = |name: &str| file[name].flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let (ids, labels, mask) = (flat("input_ids"), flat("labels"), flat("attention_mask"));
    assert_eq!(file["input_ids"].dims(), [20, 2, 2, 16]);
    let row = |at: usize| {
        let cells = 16 * at..16 * (at + 1);
        let length = mask[cells.clone()].iter().sum::<i64>() as usize;
        assert!(mask[cells.clone()][..length].iter().all(|m| *m == 1), "padding is on the right");
        let ids = ids[cells.clone()][..length].iter().map(|id| *id as u32).collect();
        (ids, labels[cells][..length].to_vec())
    };
    let micro_batch = |at: usize| labelled_batch(&[row(2 * at), row(2 * at + 1)]);
    (0..20).map(|step| vec![micro_batch(2 * step), micro_batch(2 * step + 1)]).collect()
}

/// The largest difference between the parameters and the tensors of a file whose names have `prefix`.
fn worst_difference(parameters: &[Parameter], file: &HashMap<String, Tensor>, prefix: &str) -> f32 {
    let one = |p: &Parameter| {
        let want = to_vec_f32(&file[&format!("{prefix}{}", p.name)]).unwrap();
        let got = to_vec_f32(p.var.as_tensor()).unwrap();
        assert_eq!(want.len(), got.len());
        got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    parameters.iter().map(one).fold(0.0, f32::max)
}

#[derive(Default, Debug)]
struct Worst {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    snapshots: f32,
    weights: f32,
}

fn follow(case: &str, optimizer: &OptimizerSection, gradient_checkpointing: bool) -> Worst {
    let mut model = model("llama_untied");
    let trained = golden_adapter(&format!("train/{case}/init"), model.as_mut());
    let trace: Value =
        serde_json::from_str(&fs_err::read_to_string(golden(&format!("train/{case}/trace.json"))).unwrap())
            .unwrap();
    let load = |name: &str| {
        candle_core::safetensors::load(golden(&format!("train/{case}/{name}")), &Device::Cpu).unwrap()
    };
    let snapshots = load("snapshots.safetensors");
    let schedule = ScheduleSection {
        lr_scheduler_type: SchedulerType::Cosine,
        warmup_steps: Some(3),
        ..ScheduleSection::default()
    };
    let train = TrainSection { gradient_checkpointing, ..TrainSection::default() };
    let mut stepper =
        Stepper::new(trained.parameters(), &train, optimizer, LrSchedule::new(&schedule, 20)).unwrap();
    let mut worst = Worst::default();
    for (batches, want) in golden_batches().iter().zip(trace["trace"].as_array().unwrap()) {
        let report = stepper.step(model.as_ref(), batches, &AtomicBool::new(false)).unwrap().unwrap();
        let off = |got: f64, key: &str| (got - want[key].as_f64().unwrap()).abs();
        assert_eq!(report.step, want["step"].as_u64().unwrap());
        worst.loss = worst.loss.max(off(report.loss(), "loss"));
        worst.grad_norm = worst.grad_norm.max(off(report.grad_norm, "grad_norm"));
        worst.learning_rate = worst.learning_rate.max(off(report.learning_rate, "lr"));
        if [1, 2, 5].contains(&report.step) {
            let prefix = format!("step{}.", report.step);
            worst.snapshots =
                worst.snapshots.max(worst_difference(trained.parameters(), &snapshots, &prefix));
        }
    }
    worst.weights = worst_difference(trained.parameters(), &load("final/adapter_model.safetensors"), "");
    worst
}

#[test]
fn twenty_steps_follow_the_golden_traces() {
    let adamw =
        |weight_decay| OptimizerSection { learning_rate: 5e-3, weight_decay, ..OptimizerSection::default() };
    let cases = [
        ("adamw_wd0.01", adamw(0.01), false),
        ("adamw_wd0", adamw(0.0), true),
        ("loraplus", OptimizerSection { loraplus_lr_ratio: Some(4.0), ..adamw(0.0) }, false),
    ];
    for (case, optimizer, gradient_checkpointing) in cases {
        let worst = follow(case, &optimizer, gradient_checkpointing);
        eprintln!("{case}: {worst:?}");
        assert!(worst.loss < 5e-5 && worst.grad_norm < 1e-4, "{case}: {worst:?}");
        assert!(worst.learning_rate < 1e-9, "{case}: {worst:?}");
        assert!(worst.snapshots < 5e-5 && worst.weights < 5e-5, "{case}: {worst:?}");
    }
}
