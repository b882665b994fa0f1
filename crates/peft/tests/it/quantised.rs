//! Adapters over quantised bases: QLoRA's numbers from PEFT and bitsandbytes, and every format against its dequantised values.

use crate::support::{Batch, batch, disturb, furthest, golden, json, largest, model, tensors};
use serde_json::json;
use taper_models::{CausalLm, LoadOptions, ModelConfig, Quantize, init_with};
use taper_nn::tape::CollectedGradients;
use taper_nn::{FrozenWeight, ModuleMut, VisitModules, Weight};
use taper_peft::{Adapter, AdapterSection, LoadMode, TargetModules, attach, load};
use taper_quant::{BlockFormat, GgmlType};

const LOGITS: f32 = 1e-4;
const GRADIENT: f32 = 5e-5;

#[test]
fn qlora_over_a_checkpoint_of_bitsandbytes_gives_pefts_logits_and_gradients() {
    let (batch, expected) = (batch(), tensors(&golden("quant/qlora.safetensors")));
    let mut model = model("quant/llama_nf4_double");
    let adapter = load(&golden("peft/lora_all"), &mut *model, LoadMode::Training).unwrap();
    let off = furthest(&batch.logits(&*model).detach(), &batch.unpadded(&expected["logits"]));
    assert!(off <= LOGITS, "logits off by {off}");
    let (loss, gradients) = batch.loss_and_gradients(&*model, None);
    let loss_off = (loss - json(&golden("quant/qlora.json"))["loss"].as_f64().unwrap()).abs();
    assert!(loss_off <= 1e-5, "loss off by {loss_off}");
    let mut worst = 0f32;
    for parameter in &adapter.parameters {
        let expected = &expected[&format!("grad.{}", parameter.name)];
        let gradient = &gradients.get(parameter.var.as_tensor()).unwrap().unwrap();
        worst = worst.max(furthest(gradient, expected) / largest(expected));
    }
    assert!(worst <= GRADIENT, "gradients off by {worst}");
    println!("qlora: logits {off:.1e} loss {loss_off:.1e} gradients {worst:.1e}");
}

fn wide(format: BlockFormat) -> Box<dyn CausalLm> {
    let config = json!({"model_type": "llama", "vocab_size": 256, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "initializer_range": 0.06});
    let config = ModelConfig::parse(&config.to_string()).unwrap();
    let quantize = Some(Quantize { format, embeddings: true });
    init_with(&config, 5, LoadOptions { quantize, ..LoadOptions::default() }).unwrap()
}

/// Every frozen weight in its place as a dense f32 tensor of the same values.
fn dequantise(model: &mut dyn VisitModules) {
    let dense = |weight: &Weight| Weight::Frozen(FrozenWeight::dense(&weight.to_f32().unwrap()).unwrap());
    let visited = model.visit_modules(&mut |module| {
        match module {
            ModuleMut::Linear(linear) => linear.set_weight(dense(linear.weight()))?,
            ModuleMut::Embedding(embedding) => {
                *embedding = taper_nn::Embedding::new(embedding.path(), dense(embedding.weight()));
            }
            ModuleMut::RmsNorm(_) => {}
        }
        Ok(())
    });
    visited.unwrap();
}

fn with_adapter(model: &mut dyn CausalLm) -> Adapter {
    let section =
        AdapterSection { r: 4, target_modules: TargetModules::AllLinear, ..AdapterSection::default() };
    let adapter = attach(model, &section.to_config("base"), "llama", 3).unwrap();
    disturb(&adapter);
    adapter
}

fn run(batch: &Batch, model: &mut dyn CausalLm) -> (f64, CollectedGradients, Adapter) {
    let adapter = with_adapter(model);
    let (loss, gradients) = batch.loss_and_gradients(model, None);
    (loss, gradients, adapter)
}

/// Invariant 1 over every kind of base: each adapter tensor gets the gradient that it has over the dequantised weights, to rounding, and no
/// frozen weight gets one.
#[test]
fn gradients_over_quantised_weights_are_those_over_their_values() {
    let batch = batch();
    let formats = [
        BlockFormat::Nf4 { block_size: 64, double_quant: true },
        BlockFormat::Fp4 { block_size: 64, double_quant: false },
        BlockFormat::Int8,
        BlockFormat::Ggml(GgmlType::Q4K),
        BlockFormat::Ggml(GgmlType::Q6K),
        BlockFormat::Ggml(GgmlType::Q8_0),
    ];
    for format in formats {
        let (mut coded, mut dense) = (wide(format), wide(format));
        dequantise(&mut *dense);
        let (loss, gradients, adapter) = run(&batch, &mut *coded);
        let (dense_loss, dense_gradients, dense_adapter) = run(&batch, &mut *dense);
        assert!((loss - dense_loss).abs() < 1e-6, "{format:?}: loss {loss} and not {dense_loss}");
        for (p, q) in adapter.parameters.iter().zip(&dense_adapter.parameters) {
            let gradient = &gradients.get(p.var.as_tensor()).unwrap().unwrap();
            let expected = &dense_gradients.get(q.var.as_tensor()).unwrap().unwrap();
            let size = largest(expected);
            assert!(size > 0.0, "{format:?}: {} gets zeros", p.name);
            let off = furthest(gradient, expected) / size;
            assert!(off <= 1e-5, "{format:?}: gradient of {} off by {off}", p.name);
        }
        assert_eq!(
            gradients.count(),
            adapter.parameters.len(),
            "{format:?}: a frozen weight is differentiated"
        );
    }
}

#[test]
fn an_adapter_over_a_quantised_base_merges_into_its_values() {
    let batch = batch();
    let mut model = wide(BlockFormat::Nf4 { block_size: 64, double_quant: false });
    let base = batch.logits(&*model);
    let adapter = with_adapter(&mut *model);
    let unmerged = batch.logits(&*model).detach();
    assert!(furthest(&unmerged, &base) > 1e-2, "the adapter does nothing");
    adapter.merge_into(&mut *model).unwrap();
    let off = furthest(&batch.logits(&*model), &unmerged);
    assert!(off <= 2e-4, "merging moves the logits by {off}");
    adapter.detach(&mut *model).unwrap();
    assert_eq!(furthest(&batch.logits(&*model), &base), 0.0, "the quantised base is back");
}
