//! The `[export]` section of a recipe.

use crate::GgufType;
use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use taper_diagnostics::{Location, Problem, Problems};

/// What is written at the end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSection {
    /// What to write: "peft" is the adapter alone, some megabytes, for use on its base; "merged" is a whole model with the
    /// adapter in its weights, as large as the base, for programs that know no adapters; "gguf" is that in one file for llama.cpp and its
    /// kin, "gguf-adapter" the adapter alone for them; "mlx" the adapter for mlx-lm; "ollama" a GGUF file with a Modelfile beside it.
    /// Left out: the adapter, or after full training "merged", which is then the model.
    pub formats: Vec<ExportFormat>,
    /// The type of a merged model's weights. "auto" takes the base's; "f32" keeps every bit of the adapter at twice the size of
    /// "bf16" or "f16", which round it.
    pub merged_dtype: MergedDtype,
    /// The least share of the adapter's gain that an export has to keep, from 0 to 1. The gain is what the adapter lowers the loss on
    /// held-out answers by, from the base's; of what was written and read back it is measured again. With 0.9 an export that gives up
    /// more than a tenth of it fails with exit code 100: rounding that is small beside the weights can be large beside a small
    /// adapter. Lower it where size counts more than fidelity.
    pub min_gain_kept: f64,
    /// The type of the weights in a GGUF file: "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m" or "q4_0", from exact to small;
    /// "q8_0" (8.5 bits a weight) loses next to nothing. The mixes and what becomes of narrow rows are llama.cpp's.
    pub gguf_type: GgufType,
    /// For "ollama": the base as Ollama knows it ("llama3.2:1b"), to which the adapter is then added; it has to be the base of the training. Left out: the whole
    /// model is written.
    pub ollama_base: Option<String>,
    /// For "ollama": a system message that is always there.
    pub ollama_system: Option<String>,
}

impl Default for ExportSection {
    fn default() -> Self {
        Self {
            formats: vec![ExportFormat::Peft],
            merged_dtype: MergedDtype::Auto,
            min_gain_kept: 0.9,
            gguf_type: GgufType::Q8_0,
            ollama_base: None,
            ollama_system: None,
        }
    }
}

impl ExportSection {
    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for (i, format) in self.formats.iter().enumerate() {
            if self.formats[..i].contains(format) {
                let at = Location::default().with_key("formats");
                let message = format!("`{format}` stands twice in `formats`");
                problems.push(Problem::error("out-of-range", message).at(at));
            }
        }
        for (key, for_formats) in self.without_effect() {
            let message = format!("`{key}` is set, and `formats` has no {for_formats}");
            let hint = format!("add it to `formats`, or leave `{key}` out");
            let at = Location::default().with_key(key);
            problems.push(Problem::error("unused-key", message).at(at).hint(hint));
        }
        if !(0.0..=1.0).contains(&self.min_gain_kept) {
            let at = Location::default().with_key("min_gain_kept");
            let message = format!("`min_gain_kept` is {}, and a share is from 0 to 1", self.min_gain_kept);
            let hint = "0.9 keeps nine tenths of what the adapter gained; 0 asks for nothing";
            problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
        }
        problems
    }

    /// Keys that are set for formats that are not written, and which these are.
    fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let has = |format| self.formats.contains(&format);
        let default = Self::default();
        let whole_for_ollama = has(ExportFormat::Ollama) && self.ollama_base.is_none();
        let keys = [
            (
                "merged_dtype",
                self.merged_dtype != default.merged_dtype,
                has(ExportFormat::Merged),
                "\"merged\"",
            ),
            (
                "gguf_type",
                self.gguf_type != default.gguf_type,
                has(ExportFormat::Gguf) || whole_for_ollama,
                "\"gguf\", and no \"ollama\" with a whole model",
            ),
            ("ollama_base", self.ollama_base.is_some(), has(ExportFormat::Ollama), "\"ollama\""),
            ("ollama_system", self.ollama_system.is_some(), has(ExportFormat::Ollama), "\"ollama\""),
        ];
        keys.into_iter()
            .filter(|(_, set, used, _)| *set && !used)
            .map(|(key, _, _, what)| (key, what))
            .collect()
    }
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// The adapter in PEFT's format.
    Peft,
    /// A whole model in the Hub's layout.
    Merged,
    /// A whole model in a GGUF file.
    Gguf,
    /// The adapter in a GGUF file.
    GgufAdapter,
    /// The adapter in mlx-lm's layout.
    Mlx,
    /// A Modelfile for Ollama and a GGUF file.
    Ollama,
}

impl ExportFormat {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Peft, Self::Merged, Self::Gguf, Self::GgufAdapter, Self::Mlx, Self::Ollama];

    /// Whether it is the adapter alone, which full training does not have.
    pub fn is_adapter(self) -> bool {
        matches!(self, Self::Peft | Self::GgufAdapter | Self::Mlx)
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "peft",
            Self::Merged => "merged",
            Self::Gguf => "gguf",
            Self::GgufAdapter => "gguf-adapter",
            Self::Mlx => "mlx",
            Self::Ollama => "ollama",
        })
    }
}

/// The type of a merged model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MergedDtype {
    /// As the base says.
    #[default]
    Auto,
    /// 4 bytes a weight.
    F32,
    /// 2 bytes, the range of f32, 8 bits of precision.
    Bf16,
    /// 2 bytes, up to 65504, 11 bits of precision.
    F16,
}

impl MergedDtype {
    /// The tensor type; `None` for "auto".
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_reads_its_keys_and_refuses_others() {
        let section: ExportSection =
            toml::from_str("formats = ['merged', 'peft']\nmerged_dtype = 'bf16'").unwrap();
        assert_eq!(section.formats, [ExportFormat::Merged, ExportFormat::Peft]);
        assert!(section.check().is_empty() && ExportSection::default().check().is_empty());
        assert!(toml::from_str::<ExportSection>("format = []").is_err());
        assert!(
            toml::from_str::<ExportSection>("formats = ['onnx']").unwrap_err().to_string().contains("merged")
        );
    }

    #[test]
    fn what_would_be_ignored_is_a_problem() {
        let section: ExportSection =
            toml::from_str("formats = ['peft', 'peft']\nmerged_dtype = 'f16'\nmin_gain_kept = 1.5").unwrap();
        let keys: Vec<_> = section.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect();
        assert_eq!(keys, ["formats", "merged_dtype", "min_gain_kept"]);
        let nan = ExportSection { min_gain_kept: f64::NAN, ..ExportSection::default() };
        assert!(nan.check().has_errors());
    }
}
