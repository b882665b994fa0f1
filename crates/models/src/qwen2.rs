//! Qwen 1.5, 2 and 2.5: a Llama with biases on queries, keys and values (Yang et al. 2024).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Qwen2Config`. The biases are not a key there: they always are.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::windows;

/// Read a `config.json` of model_type `qwen2`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults =
        Defaults { max_position_embeddings: 32_768, num_key_value_heads: Some(32), ..Defaults::default() };
    let common = common(fields, ModelType::Qwen2, &defaults);
    ModelConfig { qkv_bias: true, windows: windows::by_block(fields, common.num_hidden_layers), ..common }
}
