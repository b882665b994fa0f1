//! Granite 3: a Llama with factors on embeddings, scores, residuals and logits (Granite Team, "Granite 3.0", 2024; the factors are those of
//! Yang et al., "Tensor programs V", 2022).
//!
//! Its `config.json` keys and their defaults are those of transformers' `GraniteConfig`. Models with experts are another model_type.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::switches::EmbeddingScale;
use crate::windows;

/// Read a `config.json` of model_type `granite`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let common = common(fields, ModelType::Granite, &Defaults::default());
    let attention_bias = fields.flag("attention_bias", false);
    let mut factor = |key: &str| fields.number(key, 1e-6..=1e6).unwrap_or(1.0);
    ModelConfig {
        embedding_scale: EmbeddingScale::By(factor("embedding_multiplier")),
        attention_scale: factor("attention_multiplier"),
        residual_multiplier: factor("residual_multiplier"),
        logits_divisor: factor("logits_scaling"),
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias", false),
        windows: windows::uniform(fields, common.num_hidden_layers, None),
        ..common
    }
}
