//! The `[model]` section of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use taper_diagnostics::{Location, Problem, Problems};
use taper_quant::{BlockFormat, GgmlType};

/// The base model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// The base: a folder with `config.json`, `tokenizer.json` and safetensors or a GGUF file (both relative to the recipe file), or a hub id
    /// `owner/name` or a GGUF file of one, `owner/name/file.gguf`; both may end in `@revision`. Only a hub id ever uses the network, and only
    /// until it lies in the cache.
    pub base: String,
    /// Branch, tag or commit of a hub id; "main" when absent. A commit makes a run repeatable when the model's owner uploads again.
    pub revision: Option<String>,
    /// The type that the base's weights are held in. "auto" keeps what is stored; "bf16" and "f16" take 2 bytes a weight, "f32" takes 4.
    /// Arithmetic is in f32 either way, and adapters are always f32.
    pub dtype: DtypeChoice,
    /// Quantise the frozen linear layers while they are loaded: "nf4" and "fp4" (QLoRA, bitsandbytes' layout, 4.5 bits a weight), "int8"
    /// (8 bits), or GGML's "q8_0", "q6_k", "q5_k", "q4_k", "q4_0" (8.5, 6.6, 5.5, 4.5 and 4.5 bits). Absent: weights stay as they are stored.
    /// Adapters are trained on the quantised values; a base that is quantised in its files needs no key. K types need layers whose input is a
    /// multiple of 256.
    pub quantize: Option<QuantizeChoice>,
    /// Code the scales of "nf4" or "fp4" in 8 bits as well: 4.13 bits a weight instead of 4.5, for a little more noise.
    pub double_quant: bool,
    /// Weights that share a scale in "nf4" or "fp4", a power of two from 32 to 4096; 64 when absent, bitsandbytes' default. Larger ones save
    /// little and cost precision.
    pub quantize_block_size: Option<usize>,
    /// Quantise the embedding and the output head too. They are a large part of a small model with a large vocabulary, and the part that
    /// suffers most.
    pub quantize_embeddings: bool,
    /// The most that the base's weights may take of a GPU's memory, such as "20GiB": linear layers beyond it stay in the host's memory and are
    /// copied to the GPU each time they are used, which is slow. Absent: all weights are put on the GPU. On the CPU it has no meaning.
    pub max_memory: Option<String>,
    /// A Jinja chat template to use instead of the checkpoint's own (relative to the recipe file). For bases that have none; a template other
    /// than the one a model was tuned with usually costs quality.
    pub chat_template: Option<PathBuf>,
    /// "pretrained" loads the weights; "random" draws new ones for the shape in config.json, to train a model from nothing
    /// (`train.method = "full"`).
    pub init: InitChoice,
}

/// What frozen weights are quantised to while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuantizeChoice {
    /// 4-bit NormalFloat (Dettmers et al. 2023), bitsandbytes' layout.
    Nf4,
    /// 4-bit floats, bitsandbytes' layout.
    Fp4,
    /// A byte a weight and a scale a row, as LLM.int8() (Dettmers et al. 2022) codes weights.
    Int8,
    /// GGML's 8 bits with a scale for 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGML's 6 bits, 16 scales for 256.
    #[serde(rename = "q6_k")]
    Q6K,
    /// GGML's 5 bits, 8 scales and minima for 256.
    #[serde(rename = "q5_k")]
    Q5K,
    /// GGML's 4 bits, 8 scales and minima for 256.
    #[serde(rename = "q4_k")]
    Q4K,
    /// GGML's 4 bits with a scale for 32.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// bitsandbytes' block.
const DEFAULT_BLOCK_SIZE: usize = 64;

/// Where the first weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InitChoice {
    /// The checkpoint.
    #[default]
    Pretrained,
    /// The run's seed.
    Random,
}

/// The type that weights are held in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// As stored.
    #[default]
    Auto,
    /// 4 bytes a weight.
    F32,
    /// 2 bytes, the range of f32, 8 bits of precision.
    Bf16,
    /// 2 bytes, up to 65504, 11 bits of precision.
    F16,
}

impl ModelSection {
    /// What linear layers are quantised to; `None` leaves them as they are stored.
    pub fn quantize_format(&self) -> Option<BlockFormat> {
        let (block_size, double_quant) =
            (self.quantize_block_size.unwrap_or(DEFAULT_BLOCK_SIZE), self.double_quant);
        Some(match self.quantize? {
            QuantizeChoice::Nf4 => BlockFormat::Nf4 { block_size, double_quant },
            QuantizeChoice::Fp4 => BlockFormat::Fp4 { block_size, double_quant },
            QuantizeChoice::Int8 => BlockFormat::Int8,
            QuantizeChoice::Q8_0 => BlockFormat::Ggml(GgmlType::Q8_0),
            QuantizeChoice::Q6K => BlockFormat::Ggml(GgmlType::Q6K),
            QuantizeChoice::Q5K => BlockFormat::Ggml(GgmlType::Q5K),
            QuantizeChoice::Q4K => BlockFormat::Ggml(GgmlType::Q4K),
            QuantizeChoice::Q4_0 => BlockFormat::Ggml(GgmlType::Q4_0),
        })
    }

    /// `max_memory` in bytes.
    pub fn max_memory_bytes(&self) -> Option<u64> {
        self.max_memory.as_deref().and_then(bytes_of)
    }

    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut fault = |key: &str, message: &str, hint: &str| {
            let at = Location::default().with_key(format!("model.{key}"));
            problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
        };
        if self.base.trim().is_empty() {
            fault("base", "no base model is named", "set `model.base` to a folder or a hub id");
        }
        if self.revision.as_deref().is_some_and(|revision| !is_revision(revision)) {
            fault("revision", "`revision` is no branch, tag or commit", "leave the key out for `main`");
        }
        if self.chat_template.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            fault("chat_template", "`chat_template` is empty", "leave the key out for the checkpoint's own");
        }
        let four_bit = matches!(self.quantize, Some(QuantizeChoice::Nf4 | QuantizeChoice::Fp4));
        if self.double_quant && !four_bit {
            fault(
                "double_quant",
                "`double_quant` codes the scales of \"nf4\" and \"fp4\", and `quantize` is neither",
                "set `quantize = \"nf4\"`, or remove the key",
            );
        }
        if self.quantize_block_size.is_some() && !four_bit {
            fault(
                "quantize_block_size",
                "`quantize_block_size` is for \"nf4\" and \"fp4\", and `quantize` is neither",
                "the blocks of the other formats have one size: remove the key",
            );
        }
        if self.quantize_block_size.is_some_and(|n| !n.is_power_of_two() || !(32..=4096).contains(&n)) {
            fault(
                "quantize_block_size",
                "`quantize_block_size` is no power of two from 32 to 4096",
                "64 is bitsandbytes' default",
            );
        }
        if self.max_memory.as_deref().is_some_and(|size| bytes_of(size).is_none()) {
            fault(
                "max_memory",
                "`max_memory` is no amount of memory",
                "write a number and MiB, GiB, MB or GB, as \"20GiB\"",
            );
        }
        if self.quantize_embeddings && self.quantize.is_none() {
            fault(
                "quantize_embeddings",
                "`quantize_embeddings` has no effect without `quantize`",
                "set `quantize`, or remove the key",
            );
        }
        problems
    }
}

/// A number with a unit of memory behind it: `20GiB`, `500 MB`; `None` where it is not one.
pub fn bytes_of(size: &str) -> Option<u64> {
    let size = size.trim();
    let (number, unit) = size.split_at(size.find(|c: char| c.is_ascii_alphabetic())?);
    let unit = match unit {
        "MiB" => 1u64 << 20,
        "GiB" => 1 << 30,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * unit as f64) as u64)
}

/// Whether git could have a ref or commit of this name; the cache makes a path of it, so `..` must not pass.
pub(crate) fn is_revision(revision: &str) -> bool {
    !revision.is_empty()
        && !revision.starts_with(['/', '.', '-'])
        && !revision.ends_with(['/', '.'])
        && !revision.contains("..")
        && !revision.contains("//")
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_of_memory_has_a_unit() {
        assert_eq!(bytes_of("20GiB"), Some(20 << 30));
        assert_eq!(bytes_of("1.5 GB"), Some(1_500_000_000));
        assert_eq!(bytes_of("0MiB"), Some(0));
        for wrong in ["20", "GiB", "-1GiB", "nan GiB", "20 gigabytes", ""] {
            assert_eq!(bytes_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_fault_of_the_section_is_found_at_once() {
        let section = ModelSection {
            revision: Some("../x".into()),
            chat_template: Some(PathBuf::new()),
            ..ModelSection::default()
        };
        let keys: Vec<_> = section.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect();
        assert_eq!(keys, ["model.base", "model.revision", "model.chat_template"]);
        let good = ModelSection {
            base: "a/b".into(),
            revision: Some("refs/pr/1".into()),
            ..ModelSection::default()
        };
        assert!(good.check().is_empty());
    }

    #[test]
    fn keys_of_quantising_need_what_they_are_about() {
        let keys = |section: ModelSection| -> Vec<String> {
            let section = ModelSection { base: "a/b".into(), ..section };
            section.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect()
        };
        let quantize = Some(QuantizeChoice::Q4K);
        let wrong = ModelSection {
            quantize,
            double_quant: true,
            quantize_block_size: Some(64),
            ..ModelSection::default()
        };
        assert_eq!(keys(wrong), ["model.double_quant", "model.quantize_block_size"]);
        let alone = ModelSection { quantize_embeddings: true, ..ModelSection::default() };
        assert_eq!(keys(alone), ["model.quantize_embeddings"]);
        for odd in [16, 48, 8192] {
            let quantize = Some(QuantizeChoice::Nf4);
            let odd = ModelSection { quantize, quantize_block_size: Some(odd), ..ModelSection::default() };
            assert_eq!(keys(odd), ["model.quantize_block_size"]);
        }
        let good: ModelSection =
            serde_json::from_str(r#"{"base":"a/b","quantize":"nf4","double_quant":true}"#).unwrap();
        assert!(good.check().is_empty());
        assert_eq!(good.quantize_format(), Some(BlockFormat::Nf4 { block_size: 64, double_quant: true }));
        for (name, format) in [("q6_k", GgmlType::Q6K), ("q4_0", GgmlType::Q4_0)] {
            let text = format!(r#"{{"base":"a/b","quantize":"{name}"}}"#);
            let section: ModelSection = serde_json::from_str(&text).unwrap();
            assert_eq!(section.quantize_format(), Some(BlockFormat::Ggml(format)));
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<ModelSection>(r#"{"base":"a/b","dtyp":"f32"}"#).unwrap_err();
        assert!(error.to_string().contains("dtyp"), "{error}");
    }
}
