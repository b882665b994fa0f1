//! Qwen 3 with experts: Qwen 3 whose MLPs are many small ones, a few of which see each token (Yang et al. 2025).
//!
//! Its `config.json` keys and their defaults are those of transformers' `Qwen3MoeConfig`. The loss that balances experts in pretraining
//! (`router_aux_loss_coef`) has no part in fine-tuning here, as in transformers unless `output_router_logits` is set.

use crate::config::{Defaults, ModelConfig, ModelType, common};
use crate::fields::Fields;
use crate::switches::{ExpertsConfig, QkNorm};
use crate::windows;

/// Read a `config.json` of model_type `qwen3_moe`. Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults =
        Defaults { max_position_embeddings: 32_768, num_key_value_heads: Some(4), ..Defaults::default() };
    let common = common(fields, ModelType::Qwen3Moe, &defaults);
    let attention_bias = fields.flag("attention_bias", false);
    let window = match fields.flag("use_sliding_window", false) {
        true => windows::sliding_window(fields),
        false => None,
    };
    ModelConfig {
        qk_norm: QkNorm::Head,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        windows: windows::uniform(fields, common.num_hidden_layers, window),
        experts: experts(fields, common.num_hidden_layers),
        ..common
    }
}

/// The experts, in every `decoder_sparse_step`-th block that is not among `mlp_only_layers`.
fn experts(fields: &mut Fields<'_>, blocks: usize) -> Option<ExpertsConfig> {
    // Transformers 5 writes the second name.
    let num_experts = match fields.get("num_experts") {
        Some(_) => fields.size("num_experts", None, 0..=1 << 12),
        None => fields.size("num_local_experts", Some(128), 0..=1 << 12),
    };
    let num_experts_per_tok = fields.size("num_experts_per_tok", Some(8), 1..=1 << 12);
    let step = fields.size("decoder_sparse_step", Some(1), 1..=1 << 12);
    let intermediate_size = fields.size("moe_intermediate_size", Some(768), 1..=1 << 20);
    let norm_topk_prob = fields.flag("norm_topk_prob", false);
    let plain = fields.list("mlp_only_layers").unwrap_or_default();
    if plain.iter().any(|entry| entry.as_u64().is_none()) {
        fields.fault("`mlp_only_layers` holds something else than numbers of blocks".into());
    }
    if num_experts == 0 {
        return None;
    }
    if num_experts_per_tok > num_experts {
        fields.fault(format!(
            "`num_experts_per_tok` is {num_experts_per_tok}, and there are {num_experts} experts"
        ));
    }
    let sparse = |block: usize| {
        (block + 1).is_multiple_of(step) && !plain.iter().any(|entry| entry.as_u64() == Some(block as u64))
    };
    Some(ExpertsConfig {
        num_experts,
        num_experts_per_tok,
        intermediate_size,
        norm_topk_prob,
        blocks: (0..blocks).map(sparse).collect(),
    })
}
