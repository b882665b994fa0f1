//! OLMo 2: a Llama whose norms stand behind attention and MLP instead of before them, and whose queries and keys are normed, all heads
//! together (OLMo Team, "2 OLMo 2 Furious", 2024).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Olmo2Config`.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::switches::{NormPlacement, QkNorm};
use crate::windows;

/// Read a `config.json` of model_type `olmo2`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults { rms_norm_eps: 1e-5, ..Defaults::default() };
    let common = common(fields, ModelType::Olmo2, &defaults);
    let attention_bias = fields.flag("attention_bias", false);
    ModelConfig {
        norm_placement: NormPlacement::Behind,
        qk_norm: QkNorm::Layer,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        windows: windows::uniform(fields, common.num_hidden_layers, None),
        ..common
    }
}
