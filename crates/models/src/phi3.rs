//! Phi 3, 3.5 and 4-mini: a Llama whose q, k and v are one layer and whose gate and up are another, with a window, and LongRoPE over part
//! of each head (Abdin et al. 2024, "Phi-3"; Microsoft 2025, "Phi-4-Mini").
//!
//! Its `config.json` keys and their defaults are those of transformers' `Phi3Config`. Checkpoints name Python code of their own beside it
//! (`auto_map`), older than transformers' own.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::rotary::{self, RopeContext};
use crate::windows;

/// Read a `config.json` of model_type `phi3`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults {
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        reads_rope: false,
        ..Defaults::default()
    };
    let common = common(fields, ModelType::Phi3, &defaults);
    let rotary_dim = (common.head_dim as f64 * partial_rotary_factor(fields)) as usize;
    let context = RopeContext {
        read_elsewhere: &["partial_rotary_factor"],
        // Names from before the method had one; its object has the keys of longrope.
        longrope_aliases: &["su", "yarn"],
        ..RopeContext::new(common.max_position_embeddings, rotary_dim)
    };
    // Here, and not elsewhere, a window that is not named is none.
    let window = fields.get("sliding_window").and_then(|_| windows::sliding_window(fields));
    ModelConfig {
        rope: rotary::config(fields, &context),
        rotary_dim,
        fused_projections: true,
        windows: windows::uniform(fields, common.num_hidden_layers, window),
        ..common
    }
}

/// In the object of the rotary embedding (transformers 5) or outside it (4).
fn partial_rotary_factor(fields: &mut Fields<'_>) -> f64 {
    const RANGE: std::ops::RangeInclusive<f64> = 1e-3..=1.0;
    let inner = fields.object("rope_parameters", "rope_parameters.").and_then(|mut inner| {
        let factor = inner.number("partial_rotary_factor", RANGE);
        fields.faults.append(&mut inner.faults);
        factor
    });
    inner.or_else(|| fields.number("partial_rotary_factor", RANGE)).unwrap_or(1.0)
}
