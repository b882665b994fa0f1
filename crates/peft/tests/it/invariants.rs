//! DESIGN.md 3, invariants 1, 2, 4 and 7, on a real architecture.

use crate::support::{batch, bits, disturb, furthest, golden, largest, model, state};
use candle_core::Tensor;
use taper_hub::ModelFiles;
use taper_models::{LoadOptions, Quantize};
use taper_nn::{FrozenWeight, ModuleMut, RandomKey, Weight, to_vec_f32};
use taper_peft::{AdapterConfig, AdapterSection, Error, InitLoraWeights, LoadMode, attach, load};
use taper_quant::BlockFormat;

fn config(json: &str) -> AdapterConfig {
    let section: AdapterSection = serde_json::from_str(json).unwrap();
    assert!(section.check().is_empty(), "{json}");
    section.to_config("base")
}

const TARGET_SETS: [(&str, &str); 42] = [
    ("models/llama_untied", "{}"),
    ("models/llama_untied", r#"{"target_modules": ["q_proj"]}"#),
    ("models/llama_untied", r#"{"target_modules": ["k_proj", "v_proj"], "use_rslora": true}"#),
    ("models/llama_untied", r#"{"target_modules": ["o_proj"], "layers_to_transform": [0]}"#),
    (
        "models/llama_untied",
        r#"{"target_modules": ["gate_proj", "up_proj", "down_proj"], "lora_dropout": 0.3}"#,
    ),
    ("models/llama_untied", r#"{"target_modules": ["lm_head", "q_proj"]}"#),
    ("models/llama_untied", r#"{"target_modules": ".*layers\\.1\\..*_proj"}"#),
    (
        "models/llama_untied",
        r#"{"modules_to_save": ["embed_tokens", "lm_head", "norm"], "lora_dropout": 0.3}"#,
    ),
    ("models/llama_tied", r#"{"init_lora_weights": "gaussian"}"#),
    ("models/llama_tied", r#"{"modules_to_save": ["norm"], "init_lora_weights": false}"#),
    ("models/llama_bias", r#"{"bias": "all", "lora_dropout": 0.3}"#),
    ("models/llama_bias", r#"{"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]}"#),
    ("models/mistral", "{}"),
    ("models/qwen3_moe", "{}"),
    ("models/qwen3_moe", r#"{"target_modules": ["gate", "q_proj"]}"#),
    ("models/olmo2", "{}"),
    ("models/granite", "{}"),
    ("models/qwen2", "{}"),
    ("models/gemma2", r#"{"modules_to_save": ["norm"]}"#),
    ("models/gemma3", "{}"),
    ("models/phi3", r#"{"lora_dropout": 0.3}"#),
    ("models/phi3_longrope", r#"{"target_modules": ["qkv_proj", "gate_up_proj"]}"#),
    ("models/llama_untied", r#"{"use_dora": true}"#),
    ("models/llama_untied", r#"{"use_dora": true, "lora_dropout": 0.3, "use_rslora": true}"#),
    ("models/llama_untied", r#"{"target_modules": ["lm_head", "q_proj"], "use_dora": true}"#),
    ("models/qwen3_moe", r#"{"use_dora": true}"#),
    ("models/phi3", r#"{"use_dora": true}"#),
    ("models/llama_untied", r#"{"lora_bias": true, "lora_dropout": 0.3}"#),
    ("models/llama_tied", r#"{"target_modules": ["embed_tokens", "q_proj"]}"#),
    ("models/gemma2", r#"{"target_modules": ["embed_tokens", "q_proj"]}"#),
    ("models/llama_tied", r#"{"target_modules": ["lm_head", "q_proj"]}"#),
    (
        "models/llama_tied",
        r#"{"target_modules": ["lm_head", "q_proj"], "modules_to_save": ["embed_tokens"], "use_dora": true}"#,
    ),
    ("models/llama_tied", r#"{"modules_to_save": ["embed_tokens"], "ensure_weight_tying": true}"#),
    ("models/llama_tied", r#"{"modules_to_save": ["lm_head"]}"#),
    ("models/llama_tied", r#"{"trainable_token_indices": [1, 5]}"#),
    ("models/llama_untied", r#"{"peft_type": "vera", "r": 8, "lora_dropout": 0.3}"#),
    ("models/gemma3", r#"{"peft_type": "vera"}"#),
    ("models/qwen2", r#"{"peft_type": "ia3"}"#),
    ("models/llama_untied", r#"{"peft_type": "ia3", "target_modules": ["k_proj", "up_proj"]}"#),
    ("models/llama_untied", r#"{"peft_type": "loha", "r": 3}"#),
    ("models/llama_untied", r#"{"peft_type": "lokr", "r": 2, "decompose_both": true}"#),
    ("models/olmo2", r#"{"peft_type": "lokr", "r": 3}"#),
];

const KEY: RandomKey = RandomKey { seed: 1, step: 0, micro_batch: 0 };

#[test]
fn invariant_1_every_adapter_parameter_gets_a_gradient_and_no_frozen_weight_does() {
    let batch = batch();
    for (base, json) in TARGET_SETS {
        let mut model = model(base);
        let adapter = attach(&mut *model, &config(json), "llama", 3).unwrap();
        disturb(&adapter);
        let (loss, gradients) = batch.loss_and_gradients(&*model, Some(KEY));
        assert!(loss.is_finite(), "{json}");
        for parameter in &adapter.parameters {
            let gradient = gradients.get(parameter.var.as_tensor()).unwrap();
            let gradient = &gradient.unwrap_or_else(|| panic!("{json}: {} has no gradient", parameter.name));
            assert!(
                to_vec_f32(gradient).unwrap().iter().all(|g| g.is_finite()),
                "{json}: {}",
                parameter.name
            );
            assert!(largest(gradient) > 0.0, "{json}: {} has a gradient of zeros", parameter.name);
        }
        assert_eq!(gradients.count(), adapter.parameters.len(), "{json}: something else has a gradient");
    }
}

#[test]
fn invariant_2_zero_b_leaves_the_logits_and_detaching_restores_the_base_bit_for_bit() {
    let batch = batch();
    for (base, json) in
        TARGET_SETS.into_iter().filter(|(_, json)| !json.contains("\"init_lora_weights\": false"))
    {
        let mut model = model(base);
        let untouched = bits(&batch.logits(&*model));
        let adapter = attach(&mut *model, &config(json), "llama", 3).unwrap();
        let attached = batch.logits(&*model).detach();
        if json.contains("\"bias\"") || base.ends_with("qwen2") || json.contains("token") {
            // A trained bias is added behind the product instead of within it, logits of some tokens are a product of their own: equal but for rounding.
            let values = to_vec_f32(&attached).unwrap();
            let off = values.iter().zip(&untouched).map(|(a, b)| (a - f32::from_bits(*b)).abs());
            assert!(off.fold(0.0, f32::max) < 2e-5, "{json}");
        } else {
            assert!(bits(&attached) == untouched, "{json}: an adapter with B = 0 moves the logits");
        }
        disturb(&adapter);
        assert!(bits(&batch.logits(&*model)) != untouched, "{json}: the adapter does nothing");
        adapter.detach(&mut *model).unwrap();
        assert!(bits(&batch.logits(&*model)) == untouched, "{json}: detaching does not restore the base");
    }
}

#[test]
fn all_linear_layers_are_those_of_experts_too_but_not_their_routers() {
    let mut model = model("models/qwen3_moe");
    let adapter = attach(&mut *model, &config("{}"), "qwen3_moe", 3).unwrap();
    let adapted = |part: &str| adapter.parameters.iter().filter(|p| p.name.contains(part)).count();
    // A and B of three layers in each of six experts of two blocks, and in the one MLP of the third.
    assert_eq!((adapted(".experts."), adapted("layers.1.mlp.")), (2 * 3 * 6 * 2, 2 * 3));
    assert_eq!((adapted(".mlp.gate."), adapted("self_attn")), (0, 2 * 4 * 3));
}

#[test]
fn invariant_4_the_seed_alone_decides_the_first_values() {
    let first = |seed| {
        let mut model = model("models/llama_untied");
        attach(&mut *model, &config("{}"), "llama", seed).unwrap().weights().to_bytes().unwrap()
    };
    assert!(first(1) == first(1));
    assert!(first(1) != first(2));
}

#[test]
fn invariant_7_targets_that_match_nothing_are_an_error_with_the_nearest_name() {
    let told = |json: &str| {
        let mut model = model("models/llama_untied");
        let error = attach(&mut *model, &config(json), "llama", 3).unwrap_err();
        (format!("{}", taper_diagnostics::Problem::from_error("peft", &error)), error)
    };
    let (text, error) = told(r#"{"target_modules": ["q_prpj", "v_proj"]}"#);
    assert!(text.contains("`q_prpj`") && text.contains("did you mean `q_proj`?"), "{text}");
    assert!(matches!(error, Error::MatchesNothing { key: "target_modules", .. }));
    let (text, _) = told(r#"{"peft_type": "ia3", "feedforward_modules": ["dwn_proj"]}"#);
    assert!(text.contains("did you mean `down_proj`?"), "{text}");
    let (text, _) = told(r#"{"modules_to_save": ["norm"], "ensure_weight_tying": true}"#);
    assert!(text.contains("ensure_weight_tying") && text.contains("leave it out"), "{text}");
    for more in [r#""use_dora": true"#, r#""lora_bias": true"#, r#""init_lora_weights": "pissa""#] {
        let (text, _) = told(&format!(r#"{{"target_modules": ["embed_tokens", "q_proj"], {more}}}"#));
        assert!(text.contains("is an embedding"), "{text}");
    }
    let (text, _) = told(r#"{"target_modules": ["zzz"]}"#);
    assert!(text.contains("`gate_proj`") && text.contains("`lm_head`"), "{text}");
    let (text, _) = told(r#"{"layers_to_transform": [9]}"#);
    assert!(text.contains("the layers are 0 to 1"), "{text}");
    let (text, _) = told(r#"{"bias": "all"}"#);
    assert!(text.contains("no biases"), "{text}");
}

/// LoftQ begins nearer to the base than its quantised weights are, and its saved adapter over the base is nearer to what was trained than the one that forgets
/// its beginning. What quantisation still loses is not of low rank, so neither is exact.
#[test]
fn loftq_begins_nearer_to_the_base_than_quantising_it() {
    let (batch, base) = (batch(), "models/llama_untied");
    let mut plain = model(base);
    let untouched = batch.logits(&*plain);
    let files = ModelFiles::of_folder(&golden(base)).unwrap();
    let format = BlockFormat::Nf4 { block_size: 64, double_quant: false };
    let quantize = Some(Quantize { format, embeddings: false });
    let quantised = taper_models::load(&files, LoadOptions { quantize, ..LoadOptions::default() }).unwrap();
    let distance = |a: &Tensor, b: &Tensor| {
        let d = a.sub(b).unwrap();
        d.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    };
    let lost = distance(&batch.logits(&*quantised), &untouched);
    let mut before = lost;
    for rank in [4, 16, 32] {
        let json = format!(r#"{{"r": {rank}, "init_lora_weights": "loftq"}}"#);
        let adapter = attach(&mut *plain, &config(&json), "llama", 3).unwrap();
        let begun = distance(&batch.logits(&*plain).detach(), &untouched);
        assert!(begun < before, "rank {rank}: begins {begun} off the base, {before} before");
        before = begun;
        disturb(&adapter);
        let trained = batch.logits(&*plain).detach();
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path()).unwrap();
        adapter.detach(&mut *plain).unwrap();
        let read = load(folder.path(), &mut *plain, LoadMode::Inference).unwrap();
        let off = distance(&batch.logits(&*plain), &trained);
        assert!(off < lost, "rank {rank}: saved {off} off the trained model, quantising costs {lost}");
        read.detach(&mut *plain).unwrap();
    }
}

/// Taken off the base and given to the adapter: together they are the base, and what is saved is plain LoRA over it.
#[test]
fn beginnings_made_from_the_weights_start_at_the_base_and_are_saved_over_it() {
    let batch = batch();
    for (base, json, start) in [
        ("models/llama_untied", r#"{"r": 4, "init_lora_weights": "pissa"}"#, 2e-4),
        (
            "models/llama_untied",
            r#"{"r": 4, "init_lora_weights": "pissa_niter_4", "use_rslora": true}"#,
            2e-4,
        ),
        (
            "models/llama_tied",
            r#"{"r": 4, "target_modules": ["lm_head", "q_proj"], "init_lora_weights": "pissa"}"#,
            2e-4,
        ),
        ("models/qwen2", r#"{"r": 4, "init_lora_weights": "olora", "rank_pattern": {"q_proj": 2}}"#, 2e-4),
        ("models/phi3", r#"{"r": 3, "init_lora_weights": "olora", "alpha_pattern": {"o_proj": 3}}"#, 2e-4),
    ] {
        let mut model = model(base);
        let untouched = batch.logits(&*model);
        let adapter = attach(&mut *model, &config(json), "llama", 3).unwrap();
        let moved = furthest(&batch.logits(&*model).detach(), &untouched);
        assert!(moved <= start, "{json}: begins {moved} off the base");
        disturb(&adapter);
        let trained = batch.logits(&*model).detach();
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path()).unwrap();
        adapter.detach(&mut *model).unwrap();
        assert!(bits(&batch.logits(&*model)) == bits(&untouched), "{json}: the base is not restored");

        let read = load(folder.path(), &mut *model, LoadMode::Inference).unwrap();
        let changed = furthest(&trained, &untouched);
        let off = furthest(&batch.logits(&*model), &trained);
        assert!(off <= 5e-4, "{json}: saved {off} off the trained model, which moved by {changed}");
        let (text, again) = (read.config.to_json(), read.config.init_lora_weights);
        assert_eq!(again, InitLoraWeights::Default, "{text}");
    }
}

/// PiSSA's beginning is the best of its rank, OLoRA's has orthonormal columns: both are checked by the products, since signs are free.
#[test]
fn pissa_takes_the_largest_part_of_a_weight() {
    let mut model = model("models/llama_untied");
    let before = state(&mut *model);
    let section = r#"{"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}"#;
    let adapter = attach(&mut *model, &config(section), "llama", 3).unwrap();
    let path = "model.layers.0.self_attn.q_proj";
    let residual = state(&mut *model)[&format!("{path}.weight")].clone();
    let weight = &before[&format!("{path}.weight")];
    let weights = adapter.weights();
    let factor = |name: &str| weights.get(&format!("base_model.model.{path}.{name}.weight")).unwrap().clone();
    let (a, b) = (factor("lora_A"), factor("lora_B"));
    // Each side has the square root of the singular values: A A^T and B^T B are the same diagonal matrix.
    let (left, right) = (a.matmul(&a.t().unwrap()).unwrap(), b.t().unwrap().matmul(&b).unwrap());
    assert!(furthest(&left, &right) < 1e-4);
    let scale = adapter.layers[0].scale;
    let delta = (b.matmul(&a).unwrap() * scale).unwrap();
    assert!(furthest(&residual.add(&delta).unwrap(), weight) < 1e-5);
    // The rest and what was taken are orthogonal, as the parts of a singular value decomposition are.
    assert!(largest(&residual.matmul(&a.t().unwrap()).unwrap()) < 1e-3);
}

/// Tables are filled up with rows of zeros, which have no direction for DoRA to keep.
#[test]
fn dora_leaves_a_row_of_zeros_as_it_is() {
    let (batch, mut base) = (batch(), model("models/llama_untied"));
    base.visit_modules(&mut |module| {
        if let ModuleMut::Linear(head) = module
            && head.path() == "lm_head"
        {
            let (rows, width) = head.weight().dims();
            let weight = head.weight().to_f32()?.narrow(0, 0, rows - 1)?;
            let zeros = Tensor::zeros((1, width), weight.dtype(), weight.device())?;
            let padded = Tensor::cat(&[weight, zeros], 0)?;
            head.set_weight(Weight::Frozen(FrozenWeight::dense(&padded)?))?;
        }
        Ok(())
    })
    .unwrap();
    let untouched = batch.logits(&*base);
    let json = r#"{"target_modules": ["lm_head", "q_proj"], "use_dora": true}"#;
    let adapter = attach(&mut *base, &config(json), "llama", 3).unwrap();
    assert!(furthest(&batch.logits(&*base).detach(), &untouched) < 2e-5);
    let (_, gradients) = batch.loss_and_gradients(&*base, None);
    for parameter in &adapter.parameters {
        let gradient = gradients.get(parameter.var.as_tensor()).unwrap().unwrap();
        assert!(to_vec_f32(&gradient).unwrap().iter().all(|g| g.is_finite()), "{}", parameter.name);
    }
    adapter.merge_into(&mut *base).unwrap();
    assert!(furthest(&batch.logits(&*base), &untouched) < 2e-5);
}
