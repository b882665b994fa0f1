//! Qwen 3: queries and keys are normed over each head before they are rotated, in place of Qwen 2's biases (Yang et al. 2025).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Qwen3Config`. Models with experts are another model_type.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::switches::QkNorm;
use crate::windows;

/// Read a `config.json` of model_type `qwen3`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults {
        max_position_embeddings: 32_768,
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let common = common(fields, ModelType::Qwen3, &defaults);
    let attention_bias = fields.flag("attention_bias", false);
    ModelConfig {
        qk_norm: QkNorm::Head,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        windows: windows::by_block(fields, common.num_hidden_layers),
        ..common
    }
}
