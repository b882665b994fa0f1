//! What becomes of each architecture's metadata.

use super::*;
use proptest::prelude::*;
use taper_testkit::{GgufFile, golden, real_data_or_skip};

/// A file with what every architecture needs: 2 blocks, 4 heads of 8.
fn file(architecture: &str) -> GgufFile {
    let key = |key: &str| format!("{architecture}.{key}");
    GgufFile::new()
        .text("general.architecture", architecture)
        .u32(&key("context_length"), 128)
        .u32(&key("embedding_length"), 32)
        .u32(&key("block_count"), 2)
        .u32(&key("feed_forward_length"), 48)
        .u32(&key("attention.head_count"), 4)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
        .zeros("token_embd.weight", &[64, 32])
}

fn made_with(file: &GgufFile, rotary: &RotaryFactors) -> Result<Value, GgufError> {
    let text = text(&Header::parse(&file.bytes()).unwrap(), rotary)?;
    Ok(serde_json::from_str(&text).unwrap())
}

fn made(file: &GgufFile) -> Value {
    made_with(file, &RotaryFactors::default()).unwrap()
}

fn refused(file: &GgufFile) -> String {
    made_with(file, &RotaryFactors::default()).unwrap_err().to_string()
}

/// The keys of `expected` as they are in `given`.
fn assert_has(given: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&given[key], value, "`{key}`");
    }
}

#[test]
fn the_common_keys_are_transformers() {
    let config = made(&file("llama").u32("tokenizer.ggml.eos_token_id", 2));
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "torch_dtype": "float32",
        "eos_token_id": 2, "attention_bias": false, "mlp_bias": false, "rope_theta": 10000.0, "rope_scaling": null,
    });
    assert_has(&config, &expected);
    assert!(config.get("head_dim").is_none() && config.get("bos_token_id").is_none());
}

#[test]
fn tensors_say_what_the_metadata_does_not() {
    let config =
        made(&file("llama").zeros("output.weight", &[64, 32]).zeros("blk.0.attn_q.bias", &[32]).tensor(
            "blk.0.ffn_up.weight",
            8,
            &[256, 64],
            &[0; 256 * 68],
        ));
    let expected = json!({"tie_word_embeddings": false, "attention_bias": true, "torch_dtype": "bfloat16"});
    assert_has(&config, &expected);
    let vocabulary = GgufFile::new().u32("x", 1);
    assert!(refused(&vocabulary).contains("`general.architecture` is missing"));
}

#[test]
fn a_size_of_a_head_that_is_not_even_is_written() {
    let wide = |value: u32| {
        file("llama").u32("llama.attention.key_length", 16).u32("llama.attention.value_length", value)
    };
    assert_eq!(made(&wide(16))["head_dim"], 16);
    assert!(refused(&wide(8)).contains("`llama.attention.value_length` is 8, wanted 16"));
    let partly = file("llama").u32("llama.rope.dimension_count", 4);
    assert!(refused(&partly).contains("`llama.rope.dimension_count` is 4, wanted 8, the size of a head"));
    assert_eq!(made(&file("qwen3").u32("qwen3.attention.key_length", 8))["head_dim"], 8);
}

#[test]
fn mistral_is_told_by_its_window() {
    let config = made(&file("llama").u32("llama.attention.sliding_window", 16));
    assert_has(&config, &json!({"model_type": "mistral", "sliding_window": 16}));
    assert_eq!(made(&file("llama").u32("llama.attention.sliding_window", 0))["model_type"], "llama");
}

#[test]
fn scaling_by_metadata() {
    let scaled = |kind: &str| {
        file("qwen2").text("qwen2.rope.scaling.type", kind).f32("qwen2.rope.scaling.factor", 4.0)
    };
    assert_eq!(made(&scaled("none"))["rope_scaling"], Value::Null);
    assert_eq!(made(&scaled("linear"))["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    let yarn = scaled("yarn").u32("qwen2.rope.scaling.original_context_length", 32);
    assert_eq!(
        made(&yarn.f32("qwen2.rope.scaling.yarn_beta_fast", 24.0))["rope_scaling"],
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 24.0})
    );
    assert!(refused(&scaled("yarn")).contains("`qwen2.rope.scaling.original_context_length` is missing"));
    assert!(refused(&scaled("spiral")).contains("`qwen2.rope.scaling.type` is `spiral`"));
    let old = file("llama").f32("llama.rope.scale_linear", 2.0).f32("llama.rope.freq_base", 5e5);
    assert_has(
        &made(&old),
        &json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500000.0}),
    );
}

#[test]
fn llama3s_factors_are_longrope_of_one_length() {
    let with = |freqs: Vec<f64>| {
        made_with(&file("llama"), &RotaryFactors { freqs: Some(freqs), ..RotaryFactors::default() })
    };
    let expected = json!({
        "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 128,
        "short_factor": [1.0, 1.0, 2.5, 8.0], "long_factor": [1.0, 1.0, 2.5, 8.0],
    });
    assert_eq!(with(vec![1.0, 1.0, 2.5, 8.0]).unwrap()["rope_scaling"], expected);
    assert_eq!(with(vec![1.0; 4]).unwrap()["rope_scaling"], Value::Null);
    let error = with(vec![1.0; 3]).unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor `rope_freqs.weight` has the shape [3], wanted 4 numbers, one for each pair of a head"
    );
}

#[test]
fn phi3_has_its_window_and_its_two_lists_of_factors() {
    let phi =
        file("phi3").u32("phi3.rope.scaling.original_context_length", 64).u32("phi3.rope.dimension_count", 6);
    let rotary =
        RotaryFactors { short: Some(vec![1.0, 1.1, 1.2]), long: Some(vec![2.0, 3.0, 4.0]), freqs: None };
    let with = phi.clone().f32("phi3.rope.scaling.attn_factor", 1.19).u32("phi3.attention.sliding_window", 0);
    let expected = json!({
        "model_type": "phi3", "sliding_window": null, "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0], "attention_factor": 1.19,
        },
    });
    assert_has(&made_with(&with, &rotary).unwrap(), &expected);
    let half = RotaryFactors { long: None, ..rotary };
    let error = made_with(&with, &half).unwrap_err().to_string();
    assert!(
        error.contains("`phi3.rope.scaling.type` is another, wanted a scaling that goes with"),
        "{error}"
    );
    assert_eq!(made(&phi.u32("phi3.attention.sliding_window", 20))["sliding_window"], 20);
}

#[test]
fn gemmas_scale_is_that_of_their_size() {
    let gemma2 = file("gemma2")
        .u32("gemma2.attention.key_length", 16)
        .u32("gemma2.attention.sliding_window", 32)
        .f32("gemma2.attn_logit_softcapping", 50.0)
        .f32("gemma2.final_logit_softcapping", 30.0);
    let expected = json!({
        "architectures": ["Gemma2ForCausalLM"], "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
    });
    let config = made(&gemma2);
    assert_has(&config, &expected);
    assert!(config.get("hidden_act").is_none());
    let mut large = Header::parse(&gemma2.bytes()).unwrap();
    large.metadata.0.insert("gemma2.block_count".into(), Found::Unsigned(46));
    let text = text(&large, &RotaryFactors::default()).unwrap();
    assert!(text.contains("\"query_pre_attn_scalar\": 8"), "{text}");
}

#[test]
fn gemma3_has_two_rotary_embeddings_and_a_window_in_five_blocks_of_six() {
    let gemma3 = |blocks: u32| {
        let mut header = Header::parse(
            &file("gemma3")
                .u32("gemma3.attention.key_length", 8)
                .u32("gemma3.attention.sliding_window", 512)
                .f32("gemma3.rope.freq_base", 1e6)
                .text("gemma3.rope.scaling.type", "linear")
                .f32("gemma3.rope.scaling.factor", 8.0)
                .bytes(),
        )
        .unwrap();
        header.metadata.0.insert("gemma3.block_count".into(), Found::Unsigned(blocks.into()));
        header
    };
    let config = |header: &Header| -> Value {
        serde_json::from_str(&text(header, &RotaryFactors::default()).unwrap()).unwrap()
    };
    let (s, f) = ("sliding_attention", "full_attention");
    let expected = json!({
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 512, "final_logit_softcapping": null,
        "layer_types": [s, s, s, s, s, f, s, s], "query_pre_attn_scalar": 8,
    });
    assert_has(&config(&gemma3(8)), &expected);
    let mut other = gemma3(4);
    other.metadata.0.insert("gemma3.attention.sliding_window_pattern".into(), Found::Unsigned(2));
    assert_eq!(config(&other)["layer_types"], json!([s, f, s, f]));
    other.metadata.0.insert("gemma3.attention.sliding_window".into(), Found::Unsigned(0));
    assert_eq!(config(&other)["layer_types"], json!([f, f, f, f]));
    let listed = file("gemma3").u32("gemma3.attention.sliding_window", 8);
    let key = "gemma3.attention.sliding_window_pattern";
    assert_eq!(made(&listed.clone().flags(key, &[false, true]))["layer_types"], json!([f, s]));
    assert!(
        refused(&listed.flags(key, &[true]))
            .contains("is an array of 1, wanted a truth value for each block")
    );
}

#[test]
fn the_others_have_their_own_keys() {
    let moe = file("qwen3moe")
        .u32("qwen3moe.expert_count", 8)
        .u32("qwen3moe.expert_used_count", 2)
        .zeros("blk.0.ffn_gate_exps.weight", &[8, 24, 32]);
    let expected = json!({
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
    });
    assert_has(&made(&moe), &expected);
    assert_eq!(made(&moe.u32("qwen3moe.expert_feed_forward_length", 40))["moe_intermediate_size"], 40);

    let granite = file("granite").f32("granite.attention.scale", 0.015625).f32("granite.logit_scale", 8.0);
    let expected = json!({
        "model_type": "granite", "attention_multiplier": 0.015625, "logits_scaling": 8.0, "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
    });
    assert_has(&made(&granite), &expected);
    assert!(refused(&file("granite")).contains("`granite.attention.scale` is missing"));

    assert_has(&made(&file("olmo2")), &json!({"model_type": "olmo2", "attention_bias": false}));
    let olmo3 = file("olmo2").u32("olmo2.attention.sliding_window", 64);
    assert!(refused(&olmo3).contains("the architecture `olmo2 with a sliding window`"));
}

#[test]
fn what_a_golden_or_real_file_says_is_read() {
    let config = |path: &std::path::Path| -> Value {
        serde_json::from_str(&crate::gguf::read_companions(path).unwrap().config).unwrap()
    };
    assert_eq!(config(&golden("gguf/llama_mixed.gguf"))["rms_norm_eps"], 1e-5);
    let Some(real) = real_data_or_skip("configurations of real GGUF files") else { return };
    let stories = config(&real.join("gguf/stories260K-q8_0.gguf"));
    let shape = json!({"vocab_size": 512, "num_key_value_heads": 4, "tie_word_embeddings": false});
    assert_has(&stories, &shape);
    assert_eq!(config(&real.join("gguf/stories260K-f32.gguf"))["tie_word_embeddings"], true);
    let phi = config(&real.join("gguf/vocab/ggml-vocab-phi-3.gguf"));
    assert_has(&phi, &json!({"model_type": "phi3", "sliding_window": 2047, "vocab_size": 32064}));
}

proptest! {
    #[test]
    fn no_value_of_a_key_makes_the_translation_panic(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            any::<u64>().prop_map(Found::Unsigned),
            any::<i64>().prop_map(Found::Signed),
            any::<f32>().prop_map(Found::F32),
            any::<bool>().prop_map(Found::Bool),
            ".{0,8}".prop_map(Found::Text),
        ],
        architecture in 0..Architecture::ALL.len(),
    ) {
        let name = Architecture::ALL[architecture].name();
        let mut header = Header::parse(&file(name).bytes()).unwrap();
        let keys: Vec<String> = header.metadata.iter().map(|(key, _)| key.to_owned()).collect();
        // Blocks beyond all reason are lists beyond all reason: see the limit of `block_count`.
        header.metadata.0.insert(keys[at.index(keys.len())].clone(), value);
        let _ = text(&header, &RotaryFactors::default());
        let _ = crate::gguf::hub_tensors(&header);
    }
}

#[test]
fn a_number_of_blocks_beyond_all_reason_is_refused_before_anything_is_made_for_each() {
    for architecture in ["gemma2", "gemma3", "llama"] {
        let mut header = Header::parse(&file(architecture).bytes()).unwrap();
        let key = format!("{architecture}.block_count");
        header.metadata.0.insert(key.clone(), Found::Unsigned(4_000_000_000));
        let error = text(&header, &RotaryFactors::default()).unwrap_err().to_string();
        assert!(error.contains(&key) && error.contains("from 1 to 4096"), "{error}");
    }
}
