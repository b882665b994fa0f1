//! Llama: RMSNorm, rotary attention with grouped heads, SwiGLU (Touvron et al. 2023; Dubey et al. 2024).
//!
//! Its `config.json` keys and their defaults are those of transformers' `LlamaConfig`; the decoder does the rest.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::windows;

/// Read a `config.json` of model_type `llama`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let common = common(fields, ModelType::Llama, &Defaults::default());
    let attention_bias = fields.flag("attention_bias", false);
    // Above 1, the reference computed its products in slices, for the sake of the same bits as its tensor-parallel training.
    fields.size("pretraining_tp", Some(1), 1..=1);
    ModelConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias", false),
        windows: windows::uniform(fields, common.num_hidden_layers, None),
        ..common
    }
}
