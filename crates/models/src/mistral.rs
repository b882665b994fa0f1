//! Mistral: a Llama without biases whose tokens see a window of those before them (Jiang et al. 2023).
//!
//! Its `config.json` keys and their defaults are those of transformers' `MistralConfig`; later releases set `sliding_window` to `null`.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::windows;

/// Read a `config.json` of model_type `mistral`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults =
        Defaults { max_position_embeddings: 131_072, num_key_value_heads: Some(8), ..Defaults::default() };
    let common = common(fields, ModelType::Mistral, &defaults);
    let window = windows::sliding_window(fields);
    ModelConfig { windows: windows::uniform(fields, common.num_hidden_layers, window), ..common }
}
