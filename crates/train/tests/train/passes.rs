//! The layer-wise pass: invariants 5 and 6, and what it leaves out.

use crate::support::{adapter_with, examples, model, new_adapter};
use std::rc::Rc;
use taper_data::{Batch, IGNORE};
use taper_kernels::rng::{CounterRng, stream_of};
use taper_models::CausalLm;
use taper_nn::ops;
use taper_nn::tape::record;
use taper_nn::{ForwardContext, ParameterKind, RandomKey, SequenceLayout, update_f32};
use taper_train::{Gradients, Pass, PassOptions, Trained, evaluate_loss, forward_backward};

const KEY: RandomKey = RandomKey { seed: 3, step: 4, micro_batch: 1 };

fn batch() -> Batch {
    Batch::new(&examples(5, 7))
}

/// Make B non-zero, so that A has a gradient.
fn stir(trained: &Trained) {
    for p in trained.parameters().iter().filter(|p| p.kind == ParameterKind::LoraB) {
        let rng = CounterRng::new(9, stream_of(&p.name));
        update_f32(&p.var, |values| rng.fill_normal(0, 0.05, values)).unwrap();
    }
}

fn pass(model: &dyn CausalLm, trained: &Trained, batch: &Batch, options: &PassOptions) -> (Pass, Gradients) {
    let mut gradients = Gradients::new(trained.parameters()).unwrap();
    let pass = forward_backward(model, batch, Some(KEY), options, &mut gradients).unwrap();
    assert_eq!(pass.stray, Vec::<String>::new());
    (pass, gradients)
}

/// The same on one tape from the ids to the logits, differentiated at once.
fn one_graph(model: &dyn CausalLm, trained: &Trained, batch: &Batch) -> (f64, Gradients) {
    let lengths: Vec<usize> = batch.segments.iter().map(std::ops::Range::len).collect();
    let layout = SequenceLayout::from_lengths(&lengths);
    let mut ctx = ForwardContext::training(&layout, KEY);
    let learned = batch.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
    let (rows, targets): (Vec<u32>, Vec<u32>) = learned.map(|(row, target)| (row as u32, *target)).unzip();
    let forward = || {
        let mut x = model.embed(&batch.input_ids)?;
        for index in 0..model.num_blocks() {
            x = model.block(index, &x, &mut ctx)?;
        }
        model.lm_head(&model.final_norm(&ops::rows(&x, rows.clone())?)?, &ctx)
    };
    let (logits, tape) = record(&[], forward).unwrap();
    let (losses, seed) = ops::cross_entropy_with_gradient(logits.copy().unwrap(), &targets).unwrap();
    let mut gradients = Gradients::new(trained.parameters()).unwrap();
    tape.backward(&logits, Rc::new(seed), [], &mut gradients).unwrap();
    (losses.sum().unwrap(), gradients)
}

fn same_bits(a: &Gradients, b: &Gradients) {
    for ((p, a), b) in a.parameters().iter().zip(a.to_vecs().unwrap()).zip(b.to_vecs().unwrap()) {
        assert!(
            a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0)),
            "{}",
            p.name
        );
        assert!(a.iter().any(|g| *g != 0.0), "{} has a gradient", p.name);
    }
}

fn check_three_ways(model: &dyn CausalLm, trained: &Trained) {
    let kept = pass(model, trained, &batch(), &PassOptions::default());
    let options = PassOptions { gradient_checkpointing: true, ..PassOptions::default() };
    let checkpointed = pass(model, trained, &batch(), &options);
    let (loss, graph) = one_graph(model, trained, &batch());
    assert_eq!(kept.0, checkpointed.0);
    assert_eq!(kept.0.loss_sum.to_bits(), loss.to_bits());
    same_bits(&kept.1, &checkpointed.1);
    same_bits(&kept.1, &graph);
}

#[test]
fn invariant_6_checkpointed_kept_and_one_graph_give_the_same_bits() {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    stir(&trained);
    check_three_ways(base.as_ref(), &trained);
}

#[test]
fn invariant_6_holds_for_every_architecture() {
    for name in [
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "phi3_longrope",
        "qwen3_moe",
        "olmo2",
        "granite",
    ] {
        let mut base = model(name);
        let trained = new_adapter(base.as_mut(), 1);
        stir(&trained);
        check_three_ways(base.as_ref(), &trained);
    }
}

/// Adapters in one expert of the lowest block: nothing before it is trained, and what the other experts give is no part of the graph.
#[test]
fn invariant_6_holds_when_one_expert_is_trained() {
    for projection in ["gate_proj", "down_proj"] {
        let mut base = model("qwen3_moe");
        let trained = adapter_with(base.as_mut(), 1, |config| {
            let targets = format!(r"model\.layers\.0\.mlp\.experts\.2\.{projection}");
            config.target_modules = serde_json::from_value(targets.into()).unwrap();
        });
        stir(&trained);
        check_three_ways(base.as_ref(), &trained);
    }
}

#[test]
fn invariant_6_holds_when_the_head_has_an_adapter_and_the_lower_block_none() {
    let mut base = model("llama_untied");
    let trained = adapter_with(base.as_mut(), 1, |config| {
        let targets = r"model\.layers\.1\..*_proj|lm_head";
        config.target_modules = serde_json::from_value(targets.into()).unwrap();
    });
    stir(&trained);
    assert!(trained.parameters().iter().all(|p| !p.name.contains("layers.0.")));
    check_three_ways(base.as_ref(), &trained);
}

#[test]
fn invariant_6_holds_for_full_training_of_a_tied_model() {
    let mut base = model("llama_tied");
    let trained = Trained::full(base.as_mut()).unwrap();
    assert!(trained.parameters().iter().all(|p| !p.name.starts_with("lm_head")));
    check_three_ways(base.as_ref(), &trained);
}

#[test]
fn invariant_5_the_cut_into_micro_batches_does_not_change_loss_or_gradient() {
    let mut base = model("llama_untied");
    let trained = adapter_with(base.as_mut(), 1, |config| config.lora_dropout = 0.0);
    stir(&trained);
    let all = examples(6, 11);
    let of_size = |size: usize| {
        let mut gradients = Gradients::new(trained.parameters()).unwrap();
        let (mut loss, mut targets) = (0.0, 0);
        for examples in all.chunks(size) {
            let batch = Batch::new(examples);
            let pass =
                forward_backward(base.as_ref(), &batch, Some(KEY), &PassOptions::default(), &mut gradients)
                    .unwrap();
            loss += pass.loss_sum;
            targets += pass.target_tokens;
        }
        (loss / targets as f64, gradients)
    };
    let (want, whole) = of_size(6);
    for size in [1, 2, 4] {
        let (loss, parts) = of_size(size);
        assert!((loss - want).abs() < 1e-5, "{loss} against {want}");
        let worst = relative_difference(&whole, &parts);
        eprintln!("micro-batches of {size}: loss {:.1e}, gradients {worst:.1e}", (loss - want).abs());
        assert!(worst < 5e-5, "{worst}");
    }
}

/// The largest difference in a tensor over the tensor's largest entry, the largest over all tensors.
fn relative_difference(a: &Gradients, b: &Gradients) -> f32 {
    let one = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
    };
    a.to_vecs().unwrap().iter().zip(&b.to_vecs().unwrap()).map(one).fold(0.0, f32::max)
}

#[test]
fn the_loss_over_chunks_of_rows_is_the_loss_over_all_rows() {
    let mut base = model("llama_untied");
    let trained = adapter_with(base.as_mut(), 1, |config| config.lora_dropout = 0.0);
    stir(&trained);
    let whole = pass(base.as_ref(), &trained, &batch(), &PassOptions::default());
    for rows in [1, 3] {
        let options = PassOptions { logits_bytes: rows * 256 * 4, ..PassOptions::default() };
        let chunked = pass(base.as_ref(), &trained, &batch(), &options);
        assert!((whole.0.loss_sum - chunked.0.loss_sum).abs() < 1e-4);
        assert!(relative_difference(&whole.1, &chunked.1) < 5e-5);
        let (loss, targets) = evaluate_loss(base.as_ref(), &batch(), options.logits_bytes).unwrap();
        assert!((loss - chunked.0.loss_sum).abs() < 1e-4);
        assert_eq!(targets, batch().target_tokens);
    }
}

#[test]
fn a_batch_without_a_target_has_no_loss_and_no_gradient() {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    let mut batch = batch();
    batch.targets.fill(IGNORE);
    batch.target_tokens = 0;
    let (pass, gradients) = pass(base.as_ref(), &trained, &batch, &PassOptions::default());
    assert_eq!((pass.loss_sum, gradients.norm().unwrap()), (0.0, 0.0));
}

#[test]
fn noise_and_dropout_depend_on_their_key_alone() {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    stir(&trained);
    let loss = |key: Option<RandomKey>, neftune_noise_alpha| {
        let mut gradients = Gradients::new(trained.parameters()).unwrap();
        let options = PassOptions { neftune_noise_alpha, ..PassOptions::default() };
        forward_backward(base.as_ref(), &batch(), key, &options, &mut gradients).unwrap().loss_sum
    };
    let other = RandomKey { step: 5, ..KEY };
    assert_eq!(loss(Some(KEY), Some(5.0)), loss(Some(KEY), Some(5.0)));
    assert_ne!(loss(Some(KEY), Some(5.0)), loss(Some(KEY), None));
    assert_ne!(loss(Some(KEY), Some(5.0)), loss(Some(other), Some(5.0)));
    assert_ne!(loss(Some(KEY), None), loss(Some(other), None));
    assert_ne!(loss(Some(KEY), None), loss(None, None));
    assert_eq!(loss(None, Some(5.0)), loss(None, None));
}
