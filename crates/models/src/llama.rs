//! Llama: RMSNorm, rotary attention with grouped heads, SwiGLU (Touvron et al. 2023; Dubey et al. 2024).
//!
//! Its `config.json` keys and their defaults are those of transformers' `LlamaConfig`; the decoder does the rest.

use crate::config::{ModelConfig, ModelType, dtype};
use crate::fields::Fields;
use crate::rotary;

/// Read a `config.json` of model_type `llama`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let hidden_size = fields.size("hidden_size", None, 1..=1 << 17);
    let num_attention_heads = fields.size("num_attention_heads", None, 1..=1 << 12);
    let even_split = (hidden_size / num_attention_heads).max(1);
    let head_dim_default = hidden_size.is_multiple_of(num_attention_heads).then_some(even_split);
    let max_position_embeddings = fields.size("max_position_embeddings", Some(2048), 1..=1 << 28);
    let config = ModelConfig {
        model_type: ModelType::Llama,
        vocab_size: fields.size("vocab_size", None, 1..=1 << 24),
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None, 1..=1 << 20),
        num_hidden_layers: fields.size("num_hidden_layers", None, 1..=1 << 12),
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads", Some(num_attention_heads), 1..=1 << 12),
        head_dim: fields.size("head_dim", head_dim_default, 1..=1 << 12),
        max_position_embeddings,
        rms_norm_eps: fields.number("rms_norm_eps", 0.0..=1.0).unwrap_or(1e-6),
        rope: rotary::config(fields, max_position_embeddings),
        tie_word_embeddings: fields.flag("tie_word_embeddings", false),
        attention_bias: fields.flag("attention_bias", false),
        mlp_bias: fields.flag("mlp_bias", false),
        initializer_range: fields.number("initializer_range", 0.0..=10.0).unwrap_or(0.02),
        dtype: dtype(fields),
    };
    if let Some(other) = fields.text("hidden_act").filter(|act| !matches!(*act, "silu" | "swish")) {
        fields.fault(format!("`hidden_act` is `{}`, supported is `silu`", other.escape_debug()));
    }
    // Above 1, the reference computed its products in slices, for the sake of the same bits as its tensor-parallel training.
    fields.size("pretraining_tp", Some(1), 1..=1);
    config
}
