//! The text models of Gemma 3: Gemma 2 with norms on queries and keys in place of soft caps, and five blocks with a window and a rotary
//! embedding of its own to one without (Gemma Team, "Gemma 3", 2025).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Gemma3TextConfig`. Models that see pictures are another
//! model_type, `gemma3`.

use crate::config::{Defaults, ModelConfig, ModelType};
use crate::fields::Fields;
use crate::rotary::{RopeConfig, RopeContext, RopeScaling, THETA, parameters};
use crate::switches::QkNorm;
use crate::{gemma2, rotary, windows};

const GLOBAL_THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;

/// Read a `config.json` of model_type `gemma3_text`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults =
        Defaults { max_position_embeddings: 131_072, reads_rope: false, ..gemma2::shared_defaults() };
    let common = gemma2::shared(fields, ModelType::Gemma3, &defaults);
    let context = RopeContext::new(common.max_position_embeddings, common.rotary_dim);
    let (rope, local_rope) = ropes(fields, &context);
    // Transformers 5 writes the pattern behind an underscore.
    let pattern = match fields.get("sliding_window_pattern") {
        Some(_) => fields.size("sliding_window_pattern", None, 1..=1 << 12),
        None => fields.size("_sliding_window_pattern", Some(6), 1..=1 << 12),
    };
    if fields.is_null("sliding_window") {
        fields.fault("`sliding_window` is null, and this model_type has blocks with a window".into());
    }
    ModelConfig {
        rope,
        local_rope: Some(local_rope),
        qk_norm: QkNorm::Head,
        attention_soft_cap: gemma2::soft_cap(fields, "attn_logit_softcapping", None),
        logits_soft_cap: gemma2::soft_cap(fields, "final_logit_softcapping", None),
        windows: windows::alternating(fields, common.num_hidden_layers, |i| (i + 1) % pattern != 0),
        ..common
    }
}

/// The rotary embeddings of blocks without and with a window: `rope_parameters` by layer type (transformers 5), or `rope_theta`,
/// `rope_scaling` and `rope_local_base_freq` (4).
fn ropes(fields: &mut Fields<'_>, context: &RopeContext) -> (RopeConfig, RopeConfig) {
    let (global, local) =
        (RopeContext { theta: GLOBAL_THETA, ..*context }, RopeContext { theta: LOCAL_THETA, ..*context });
    let Some(mut by_type) = fields.object("rope_parameters", "rope_parameters.") else {
        let theta = fields.number("rope_local_base_freq", THETA).unwrap_or(LOCAL_THETA);
        return (rotary::config(fields, &global), RopeConfig { theta, scaling: RopeScaling::Default });
    };
    by_type.refuse_unknown(&["full_attention", "sliding_attention"]);
    let full = by_type.object("full_attention", "rope_parameters.full_attention.");
    let sliding = by_type.object("sliding_attention", "rope_parameters.sliding_attention.");
    fields.faults.append(&mut by_type.faults);
    let mut read = |inner: Option<Fields<'_>>, context: &RopeContext| match inner {
        Some(inner) => parameters(fields, inner, None, context),
        None => RopeConfig { theta: context.theta, scaling: RopeScaling::Default },
    };
    (read(full, &global), read(sliding, &local))
}
