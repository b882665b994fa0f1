//! The self-test finds what candle would not say.

use crate::support::{bits, examples, model, new_adapter};
use candle_core::{Tensor, Var};
use std::sync::Arc;
use taper_data::{Batch, IGNORE};
use taper_models::CausalLm;
use taper_nn::{ForwardContext, Linear, LinearAdapter, ModuleMut, VisitModules, Weight, ops};
use taper_train::{Gradients, PassOptions, Trained, forward_backward, self_test, shortest_example};

/// What is wrong with the adapter of one layer.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Its output is another tensor with the same values, as an operation of candle's own gives.
    Cut,
    /// Its gradient is one and a half times the right one.
    TooLong,
    /// It multiplies by the frozen weight as if it were trained.
    FrozenDifferentiated,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn LinearAdapter>,
    fault: Fault,
}

impl LinearAdapter for Faulty {
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let y = self.inner.forward(x, base, ctx)?;
        match self.fault {
            Fault::Cut => y.copy(),
            Fault::TooLong => ops::add(&ops::scale(&y, 1.5)?, &ops::scale(&y.copy()?, -0.5)?),
            Fault::FrozenDifferentiated => {
                let weight = Weight::Trainable(Var::from_tensor(&base.weight().to_f32()?)?);
                ops::add(&y, &ops::scale(&ops::linear(x, &weight, None, x.dtype())?, 1e-3)?)
            }
        }
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        self.inner.merged_weight(base)
    }
}

fn break_layer(model: &mut dyn VisitModules, path: &str, fault: Fault) {
    let mut found = false;
    model
        .visit_modules(&mut |module| {
            if let ModuleMut::Linear(linear) = module
                && linear.path() == path
                && let Some(inner) = linear.adapter().cloned()
            {
                linear.set_adapter(Some(Arc::new(Faulty { inner, fault })));
                found = true;
            }
            Ok(())
        })
        .unwrap();
    assert!(found);
}

fn example() -> Batch {
    shortest_example(&[Batch::new(&examples(6, 2))]).unwrap()
}

fn broken(path: &str, fault: Fault) -> String {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    break_layer(base.as_mut(), path, fault);
    let before = bits(trained.parameters());
    let error = self_test(base.as_ref(), &trained, &example(), 1).unwrap_err().to_string();
    assert_eq!(before, bits(trained.parameters()), "every value is as it was");
    error
}

#[test]
fn invariant_1_holds_on_the_golden_models_and_nothing_is_left_changed() {
    let adapter: fn(&mut dyn CausalLm) -> Trained = |model| new_adapter(model, 1);
    let full: fn(&mut dyn CausalLm) -> Trained = |model| Trained::full(model).unwrap();
    for (name, make) in [
        ("llama_untied", adapter),
        ("llama_tied", adapter),
        ("gemma2", adapter),
        ("gemma3", adapter),
        ("phi3", adapter),
        ("qwen3_moe", adapter),
        ("olmo2", adapter),
        ("granite", adapter),
        ("llama_untied", full),
        ("llama_tied", full),
    ] {
        let mut base = model(name);
        let trained = make(base.as_mut());
        let before = bits(trained.parameters());
        let report = self_test(base.as_ref(), &trained, &example(), 1).unwrap();
        assert_eq!(before, bits(trained.parameters()));
        assert_eq!(report.parameters, trained.parameters().len());
        eprintln!("{name}, {} tensors: off by {:.1e}", report.parameters, report.difference);
    }
}

/// A short text reaches some experts only. What is trained in the others has no gradient, which is no fault; where it is cut in all of a
/// block, it is.
#[test]
fn experts_that_no_token_went_to_are_no_fault_and_cut_ones_are() {
    let few = |batch: &Batch| {
        let mut base = model("qwen3_moe");
        let trained = new_adapter(base.as_mut(), 1);
        let report = self_test(base.as_ref(), &trained, batch, 1).unwrap();
        assert_eq!(report.parameters, trained.parameters().len());
        let mut gradients = Gradients::new(trained.parameters()).unwrap();
        forward_backward(base.as_ref(), batch, None, &PassOptions::default(), &mut gradients).unwrap();
        let received = gradients.parameters().iter().zip(gradients.received());
        received.filter(|(_, got)| !**got).map(|(p, _)| p.name.clone()).collect::<Vec<_>>()
    };
    let mut short = examples(1, 2).remove(0);
    short.input_ids.truncate(2);
    short.loss_mask = vec![false, true];
    let unreached = few(&Batch::new(&[short]));
    assert!(
        !unreached.is_empty() && unreached.iter().all(|name| name.contains(".experts.")),
        "{unreached:?}"
    );

    let mut base = model("qwen3_moe");
    let trained = new_adapter(base.as_mut(), 1);
    for expert in 0..6 {
        break_layer(base.as_mut(), &format!("model.layers.2.mlp.experts.{expert}.up_proj"), Fault::Cut);
    }
    let error = self_test(base.as_ref(), &trained, &example(), 1).unwrap_err().to_string();
    assert!(
        error.contains("gets no gradient") && error.contains("layers.2.mlp.experts.0.up_proj"),
        "{error}"
    );
    assert!(!error.contains("layers.0") && !error.contains("down_proj"), "{error}");
}

#[test]
fn a_cut_gradient_is_named() {
    let error = broken("model.layers.1.self_attn.k_proj", Fault::Cut);
    assert!(error.contains("gets no gradient"), "{error}");
    for factor in ["lora_A", "lora_B"] {
        let name = format!("base_model.model.model.layers.1.self_attn.k_proj.{factor}.weight");
        assert!(error.contains(&name), "{error}");
    }
    assert!(!error.contains("q_proj"), "{error}");
}

#[test]
fn a_gradient_of_the_wrong_length_is_found() {
    let error = broken("model.layers.0.mlp.down_proj", Fault::TooLong);
    assert!(error.contains("finite difference"), "{error}");
}

#[test]
fn a_frozen_weight_that_is_differentiated_is_found() {
    let error = broken("model.layers.0.mlp.up_proj", Fault::FrozenDifferentiated);
    assert!(error.contains("frozen, yet differentiated") && error.contains("block 0"), "{error}");
}

#[test]
fn the_example_is_the_shortest_that_shows_attention() {
    let mut all = examples(6, 2);
    all[3].input_ids.truncate(2);
    all[3].loss_mask = vec![false, true];
    // Its only target is predicted by the first token, which sees nothing but itself.
    let batches = [Batch::new(&all[..2]), Batch::new(&all[2..])];
    let example = shortest_example(&batches).unwrap();
    let others = all.iter().enumerate().filter(|(i, _)| *i != 3).map(|(_, e)| e.input_ids.len());
    assert_eq!(example.tokens(), others.min().unwrap());
    assert_eq!(example.target_tokens, example.targets.iter().filter(|t| **t != IGNORE).count());
    assert!(shortest_example(&[Batch::new(&all[3..4])]).is_none());
}

#[test]
fn of_a_long_example_a_part_around_its_first_target_is_taken() {
    let mut long = examples(1, 2).remove(0);
    long.input_ids = (0..300).map(|i| i % 7).collect();
    long.loss_mask = (0..300).map(|i| i >= 200).collect();
    let example = shortest_example(&[Batch::new(&[long])]).unwrap();
    assert_eq!((example.tokens(), example.segments.len()), (48, 1));
    assert!((1..48).contains(&example.target_tokens));
    assert!(example.targets[1..].iter().any(|target| *target != IGNORE));
}
