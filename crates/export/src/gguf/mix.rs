//! Which type each tensor of a file gets.
//!
//! Source: `llama_tensor_get_type` of llama.cpp's `llama-quant.cpp`, without an importance matrix, as of September 2026. What is said of a
//! block is said of its number and of the number of blocks; llama.cpp counts tensors of a kind, which is the same for every architecture
//! here.

use crate::Exactness;
use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use taper_models::ModelConfig;
use taper_quant::GgmlType;

/// What a GGUF file's weights are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GgufType {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes, up to 65504.
    F16,
    /// 2 bytes, the range of f32.
    Bf16,
    /// 8.5 bits a weight; next to nothing is lost.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight in the oldest format, the head in Q6_K.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// About 4.9 bits a weight: Q4_K, with Q6_K for the head and half of the values and down projections.
    #[serde(rename = "q4_k_m")]
    Q4KM,
    /// About 5.7 bits a weight: Q5_K, with Q6_K as in `q4_k_m`.
    #[serde(rename = "q5_k_m")]
    Q5KM,
    /// 6.6 bits a weight.
    #[serde(rename = "q6_k")]
    Q6K,
}

impl GgufType {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4KM, Self::Q5KM, Self::Q6K];

    /// The name in a recipe and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4KM => "q4_k_m",
            Self::Q5KM => "q5_k_m",
            Self::Q6K => "q6_k",
        }
    }

    /// The type of this name, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name))
    }

    /// `general.file_type`.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The type of most of its tensors.
    pub fn ggml_type(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::BF16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q4KM => GgmlType::Q4K,
            Self::Q5KM => GgmlType::Q5K,
            Self::Q6K => GgmlType::Q6K,
        }
    }
}

/// What lies between a model and its file, for a proof.
impl From<GgufType> for Exactness {
    fn from(gguf_type: GgufType) -> Self {
        match gguf_type {
            GgufType::F32 => Self::Rounded(DType::F32),
            GgufType::F16 => Self::Rounded(DType::F16),
            GgufType::Bf16 => Self::Rounded(DType::BF16),
            _ => Self::Quantized,
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor whose rows are no whole blocks of the type that it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// Elements of a row.
    pub columns: usize,
    /// The type it should have.
    pub wanted: GgmlType,
    /// The type it has: larger blocks became those of 32, with more bits each; f16 where not even these fit.
    pub used: GgmlType,
}

/// How the types of a model's tensors are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix {
    gguf_type: GgufType,
    blocks: usize,
    experts: usize,
    /// The head is the embedding's table, which then gets the head's type.
    tied: bool,
    /// llama.cpp takes every model of 80 blocks with shared keys for Llama's 70B, whose values are few.
    seventy_b: bool,
}

impl Mix {
    pub(super) fn new(gguf_type: GgufType, config: &ModelConfig, tied: bool) -> Self {
        let shared = config.num_attention_heads != config.num_key_value_heads;
        Self {
            gguf_type,
            blocks: config.num_hidden_layers,
            experts: config.experts.as_ref().map_or(0, |experts| experts.num_experts),
            tied,
            seventy_b: config.num_hidden_layers == 80 && shared,
        }
    }

    /// The type that a tensor gets, and whether it is another than it should have.
    pub(super) fn choose(&self, name: &str, shape: &[usize]) -> (GgmlType, Option<Fallback>) {
        let columns = shape.last().copied().unwrap_or(1);
        let stays = shape.len() < 2
            || !name.ends_with("weight")
            || name.ends_with("_norm.weight")
            || name.ends_with("ffn_gate_inp.weight");
        if stays {
            return (GgmlType::F32, None);
        }
        let base = self.gguf_type.ggml_type();
        if !base.is_quantized() {
            return (base, None);
        }
        let wanted = self.wanted(name);
        let fits = |t: GgmlType| columns.is_multiple_of(t.block_len());
        if fits(wanted) {
            return (wanted, None);
        }
        let smaller = match wanted {
            GgmlType::Q4K => GgmlType::Q5_0,
            GgmlType::Q5K => GgmlType::Q5_1,
            GgmlType::Q6K => GgmlType::Q8_0,
            other => other,
        };
        let used = if fits(smaller) { smaller } else { GgmlType::F16 };
        (used, Some(Fallback { tensor: name.to_owned(), columns, wanted, used }))
    }

    fn wanted(&self, name: &str) -> GgmlType {
        use GgmlType::{Q4K, Q5K, Q6K, Q8_0};
        let base = self.gguf_type.ggml_type();
        let is = |part: &str| name.contains(part);
        if name == "output.weight" || self.tied && name == "token_embd.weight" {
            return if base == Q8_0 { Q8_0 } else { Q6K };
        }
        let mixed = matches!(self.gguf_type, GgufType::Q4KM | GgufType::Q5KM);
        let more = mixed && block_of(name).is_some_and(|block| more_bits(block, self.blocks));
        // Fused queries, keys and values count as values; the rule that llama.cpp has for them alone is never reached.
        if is("attn_v.weight") || is("attn_qkv.weight") {
            return match if more { Q6K } else { base } {
                _ if self.experts == 8 => Q8_0,
                Q4K if self.seventy_b => Q5K,
                chosen => chosen,
            };
        }
        if self.experts == 8 && is("attn_k.weight") {
            return Q8_0;
        }
        if self.experts == 8 && is("attn_output.weight") && self.gguf_type == GgufType::Q4KM {
            return Q5K;
        }
        if is("ffn_down") && more { Q6K } else { base }
    }
}

/// The blocks in which values and down projections have more bits: the first and the last eighth, and every third between.
fn more_bits(block: usize, blocks: usize) -> bool {
    let eighth = blocks / 8;
    block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2
}

fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(gguf_type: GgufType, blocks: usize, tied: bool) -> Mix {
        Mix { gguf_type, blocks, experts: 0, tied, seventy_b: false }
    }

    #[test]
    fn vectors_norms_and_routers_stay_as_they_are() {
        let mix = mix(GgufType::Q4KM, 8, true);
        for (name, shape) in [
            ("blk.0.attn_norm.weight", &[256][..]),
            ("blk.0.attn_q.bias", &[256]),
            ("blk.0.ffn_gate_inp.weight", &[8, 256]),
            ("blk.0.attn_q_norm.weight", &[4, 256]),
        ] {
            assert_eq!(mix.choose(name, shape), (GgmlType::F32, None), "{name}");
        }
    }

    #[test]
    fn the_mixes_have_llama_cpps_types() {
        let of = |gguf_type, tied, name: &str| mix(gguf_type, 16, tied).choose(name, &[256, 512]).0;
        let (q4, q5) = (GgufType::Q4KM, GgufType::Q5KM);
        assert_eq!(of(q4, true, "token_embd.weight"), GgmlType::Q6K);
        assert_eq!(of(q4, false, "token_embd.weight"), GgmlType::Q4K);
        assert_eq!(of(q4, false, "output.weight"), GgmlType::Q6K);
        assert_eq!(of(GgufType::Q8_0, false, "output.weight"), GgmlType::Q8_0);
        assert_eq!(of(GgufType::Q4_0, true, "token_embd.weight"), GgmlType::Q6K);
        // Of 16 blocks: 0, 1, then 4, 7, 10, 13, and from 14 on.
        for block in 0..16 {
            let more = matches!(block, 0 | 1 | 4 | 7 | 10 | 13 | 14 | 15);
            for part in ["attn_v", "attn_qkv", "ffn_down"] {
                let name = format!("blk.{block}.{part}.weight");
                assert_eq!(of(q4, true, &name) == GgmlType::Q6K, more, "{name}");
                assert_eq!(of(q5, true, &name) == GgmlType::Q6K, more, "{name}");
            }
            assert_eq!(of(q4, true, &format!("blk.{block}.ffn_up.weight")), GgmlType::Q4K);
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back_and_are_told() {
        let fallback = |gguf_type, name: &str, columns| mix(gguf_type, 8, true).choose(name, &[4, columns]);
        let (used, told) = fallback(GgufType::Q4KM, "blk.3.attn_q.weight", 96);
        let expected = Fallback {
            tensor: "blk.3.attn_q.weight".into(),
            columns: 96,
            wanted: GgmlType::Q4K,
            used: GgmlType::Q5_0,
        };
        assert_eq!((used, told), (GgmlType::Q5_0, Some(expected)));
        assert_eq!(fallback(GgufType::Q5KM, "blk.3.attn_q.weight", 96).0, GgmlType::Q5_1);
        assert_eq!(fallback(GgufType::Q6K, "blk.3.attn_q.weight", 96).0, GgmlType::Q8_0);
        assert_eq!(fallback(GgufType::Q8_0, "blk.3.attn_q.weight", 48).0, GgmlType::F16);
        let (used, told) = fallback(GgufType::Q4_0, "token_embd.weight", 96);
        assert_eq!((used, told.map(|told| told.wanted)), (GgmlType::Q8_0, Some(GgmlType::Q6K)));
    }

    #[test]
    fn names_are_read_back() {
        for gguf_type in GgufType::ALL {
            assert_eq!(GgufType::from_name(&gguf_type.to_string().to_uppercase()), Some(gguf_type));
            let json = format!("\"{gguf_type}\"");
            assert_eq!(serde_json::from_str::<GgufType>(&json).unwrap(), gguf_type);
        }
        assert_eq!(GgufType::from_name("q3_k_s"), None);
    }
}
