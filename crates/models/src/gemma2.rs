//! Gemma 2: gated GELU, norms before and behind attention and MLP, soft caps on scores and logits, and a window in every other block
//! (Gemma Team, "Gemma 2", 2024).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Gemma2Config`.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::switches::{EmbeddingScale, NormPlacement};
use crate::windows;
use taper_nn::ops::Gate;

/// Read a `config.json` of model_type `gemma2`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults { max_position_embeddings: 8192, ..shared_defaults() };
    let common = shared(fields, ModelType::Gemma2, &defaults);
    ModelConfig {
        attention_soft_cap: soft_cap(fields, "attn_logit_softcapping", Some(50.0)),
        logits_soft_cap: soft_cap(fields, "final_logit_softcapping", Some(30.0)),
        windows: windows::alternating(fields, common.num_hidden_layers, |index| index % 2 == 0),
        ..common
    }
}

/// What all Gemmas have alike.
pub(crate) fn shared_defaults() -> Defaults {
    Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        tie_word_embeddings: true,
        activation: ("hidden_activation", Gate::GeluTanh, &["gelu_pytorch_tanh"]),
        ..Defaults::default()
    }
}

/// What all Gemmas read alike, with their switches. Faults are noted in `fields`.
pub(crate) fn shared(fields: &mut Fields<'_>, model_type: ModelType, defaults: &Defaults) -> ModelConfig {
    let common = common(fields, model_type, defaults);
    let attention_bias = fields.flag("attention_bias", false);
    let scalar = fields.number("query_pre_attn_scalar", 1e-3..=1e9).unwrap_or(256.0);
    if fields.flag("use_bidirectional_attention", false) {
        fields.fault(
            "`use_bidirectional_attention` is true, supported are models whose tokens see what stands before them".into(),
        );
    }
    ModelConfig {
        norm_offset: 1.0,
        norm_placement: NormPlacement::Both,
        embedding_scale: EmbeddingScale::SqrtHidden,
        attention_scale: scalar.powf(-0.5),
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..common
    }
}

/// A cap on scores or logits; `null` is none.
pub(crate) fn soft_cap(fields: &mut Fields<'_>, key: &str, default: Option<f64>) -> Option<f64> {
    if fields.is_null(key) { None } else { fields.number(key, 1e-3..=1e9).or(default) }
}
