//! DESIGN.md 3, invariants 1, 2, 4 and 7, on a real architecture.

use crate::support::{batch, bits, disturb, largest, model};
use taper_nn::{RandomKey, to_vec_f32};
use taper_peft::{AdapterSection, Error, LoraConfig, attach};

fn config(json: &str) -> LoraConfig {
    let section: AdapterSection = serde_json::from_str(json).unwrap();
    assert!(section.check().is_empty(), "{json}");
    section.to_config("base")
}

const TARGET_SETS: [(&str, &str); 22] = [
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
        if json.contains("bias") {
            // A trained bias is added behind the product instead of within it: equal but for rounding.
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
    let (text, _) = told(r#"{"target_modules": ["zzz"]}"#);
    assert!(text.contains("`gate_proj`") && text.contains("`lm_head`"), "{text}");
    let (text, _) = told(r#"{"layers_to_transform": [9]}"#);
    assert!(text.contains("the layers are 0 to 1"), "{text}");
    let (text, _) = told(r#"{"bias": "all"}"#);
    assert!(text.contains("no biases"), "{text}");
}

#[test]
fn a_shared_head_is_refused_as_target_and_as_trained_module() {
    for json in [
        r#"{"target_modules": ["lm_head", "q_proj"]}"#,
        r#"{"modules_to_save": ["lm_head"]}"#,
        r#"{"modules_to_save": ["embed_tokens"]}"#,
    ] {
        let mut model = model("models/llama_tied");
        let error = attach(&mut *model, &config(json), "llama", 3).unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{json}: {error}");
    }
}
