//! The `config.json` of published checkpoints, as far as they tell shapes, and the numbers of parameters on their cards.

use serde_json::{Value, json};
use taper_models::{ModelConfig, RopeScaling};

fn parsed(config: &Value) -> ModelConfig {
    ModelConfig::parse(&config.to_string()).unwrap()
}

#[test]
fn gemma_2_2b() {
    let config = parsed(&json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "torch_dtype": "float32", "use_cache": true, "vocab_size": 256_000
    }));
    assert_eq!(config.parameters(), 2_614_341_888);
    assert!(config.tie_word_embeddings);
    assert_eq!((config.attention_scale, config.logits_soft_cap), (1.0 / 16.0, Some(30.0)));
    assert_eq!(config.windows[..3], [Some(4096), None, Some(4096)]);
}

#[test]
fn gemma_3_1b() {
    let config = parsed(&json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "vocab_size": 262_144
    }));
    assert_eq!(config.parameters(), 999_885_952);
    let full: Vec<usize> = (0..26).filter(|block| config.windows[*block].is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    assert_eq!((config.rope.theta, config.local_rope.unwrap().theta), (1e6, 1e4));
    assert_eq!(config.attention_soft_cap.or(config.logits_soft_cap), None);
}

fn phi3(changes: &Value) -> ModelConfig {
    let mut config = json!({
        "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "attention_bias": false, "vocab_size": 32064
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    parsed(&config)
}

/// Lists as long as the published ones; their numbers do not matter here.
fn factors(count: usize) -> Value {
    (0..count).map(|i| 1.0 + i as f64).collect::<Vec<_>>().into()
}

#[test]
fn phi_3_mini_4k_with_the_python_code_that_it_names() {
    let config = phi3(&json!({}));
    assert_eq!(config.parameters(), 3_821_079_552);
    assert_eq!((config.windows[0], config.rotary_dim), (Some(2047), 96));
}

#[test]
fn phi_3_mini_128k_under_both_names_of_its_scaling() {
    for name in ["longrope", "su"] {
        let config = phi3(&json!({
            "max_position_embeddings": 131_072, "sliding_window": 262_144,
            "rope_scaling": {"type": name, "short_factor": factors(48), "long_factor": factors(48)}
        }));
        assert_eq!(config.parameters(), 3_821_079_552);
        let RopeScaling::LongRope { original, attention_factor, .. } = config.rope.scaling else {
            panic!("{:?}", config.rope)
        };
        // sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5 / 12)
        assert!(original == 4096 && (attention_factor - (17.0f64 / 12.0).sqrt()).abs() < 1e-12);
    }
}

#[test]
fn phi_4_mini() {
    let config = phi3(&json!({
        "max_position_embeddings": 131_072, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": factors(48), "long_factor": factors(48)}, "sliding_window": 262_144,
        "tie_word_embeddings": true, "vocab_size": 200_064
    }));
    assert_eq!(config.parameters(), 3_836_021_760);
    assert_eq!((config.head_dim, config.rotary_dim), (128, 96));
}

#[test]
fn qwen3_30b_a3b() {
    let config = parsed(&json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1_000_000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151_936
    }));
    assert_eq!(config.parameters(), 30_532_122_624);
    let experts = config.experts.unwrap();
    assert_eq!((experts.num_experts, experts.num_experts_per_tok, experts.norm_topk_prob), (128, 8, true));
    assert_eq!(experts.blocks, [true; 48]);
}

#[test]
fn olmo_2_1b() {
    let config = parsed(&json!({
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "eos_token_id": 100_257, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 100_277, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 500_000, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 100_352
    }));
    assert_eq!(config.parameters(), 1_484_916_736);
}

#[test]
fn granite_3_1_2b() {
    let config = parsed(&json!({
        "architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_multiplier": 0.015625, "bos_token_id": 0,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "logits_scaling": 8.0, "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "granite", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "rope_theta": 5_000_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 49155
    }));
    assert_eq!(config.parameters(), 2_533_531_648);
    assert_eq!(
        (config.attention_scale, config.residual_multiplier, config.logits_divisor),
        (0.015625, 0.22, 8.0)
    );
}

/// A GGUF file's Llama 3 says its divisors themselves.
#[test]
fn longrope_is_a_scaling_of_any_architecture() {
    let config = parsed(&json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.0, 2.0, 8.0], "long_factor": [1.0, 1.0, 2.0, 8.0],
            "original_max_position_embeddings": 8192, "attention_factor": 1.0}
    }));
    let RopeScaling::LongRope { short_factor, original, attention_factor, .. } = config.rope.scaling else {
        panic!("{:?}", config.rope)
    };
    assert_eq!((short_factor, original, attention_factor), (vec![1.0, 1.0, 2.0, 8.0], 8192, 1.0));
}

#[test]
fn faults_of_the_newer_keys_are_named() {
    let refused = |model_type: &str, changes: Value| {
        let mut config = json!({"model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8});
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::parse(&config.to_string()).unwrap_err().to_string()
    };
    let longrope = |short: Value| {
        let scaling = json!({"type": "longrope", "short_factor": short, "long_factor": [1, 1, 1, 1]});
        refused("phi3", json!({"rope_scaling": scaling}))
    };
    assert!(
        longrope(json!([1, 1, 1])).contains("`rope_scaling.short_factor` has 3 entries, 3 of them numbers")
    );
    assert!(longrope(json!([1, 1, 0, "x"])).contains("has 4 entries, 2 of them numbers"));
    assert!(longrope(Value::Null).contains("`rope_scaling.short_factor` is missing"));
    let partial = |factor: f64| refused("phi3", json!({"partial_rotary_factor": factor}));
    assert!(partial(0.4).contains("rotates 3 of 8"), "{}", partial(0.4));
    assert!(partial(1.5).contains("`partial_rotary_factor` is 1.5"));
    let local = json!({"full_attention": {"rope_type": "default"}, "chunked": {}});
    assert!(refused("gemma3_text", json!({"rope_parameters": local})).contains("`rope_parameters.chunked`"));
    assert!(refused("gemma3_text", json!({"sliding_window": null})).contains("`sliding_window` is null"));
    let gemma2 = |changes| refused("gemma2", changes);
    assert!(gemma2(json!({"hidden_activation": "gelu"})).contains("supported is `gelu_pytorch_tanh`"));
    assert!(gemma2(json!({"use_bidirectional_attention": true})).contains("`use_bidirectional_attention`"));
    assert!(gemma2(json!({"final_logit_softcapping": 0})).contains("`final_logit_softcapping` is 0"));
    let experts = |changes| refused("qwen3_moe", changes);
    assert!(
        experts(json!({"num_experts": 4})).contains("`num_experts_per_tok` is 8, and there are 4 experts")
    );
    assert!(experts(json!({"mlp_only_layers": ["all"]})).contains("`mlp_only_layers`"));
    assert!(refused("granite", json!({"logits_scaling": 0})).contains("`logits_scaling` is 0"));
    // Gemma 3 with eyes is another model_type, and refused as one.
    assert!(refused("gemma3", json!({})).contains("`gemma3` is not supported"));
}
