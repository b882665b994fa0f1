//! The `[export]` section of a recipe.

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
    /// adapter in its weights, as large as the base, for programs that know no adapters. Left out: the adapter, or after full
    /// training "merged", which is then the model.
    pub formats: Vec<ExportFormat>,
    /// The type of a merged model's weights. "auto" takes the base's; "f32" keeps every bit of the adapter at twice the size of
    /// "bf16" or "f16", which round it.
    pub merged_dtype: MergedDtype,
    /// The least share of the adapter's gain that an export has to keep, from 0 to 1. The gain is what the adapter lowers the loss on
    /// held-out answers by, from the base's; of what was written and read back it is measured again. With 0.9 an export that gives up
    /// more than a tenth of it fails with exit code 100: rounding that is small beside the weights can be large beside a small
    /// adapter. Lower it where size counts more than fidelity.
    pub min_gain_kept: f64,
}

impl Default for ExportSection {
    fn default() -> Self {
        Self { formats: vec![ExportFormat::Peft], merged_dtype: MergedDtype::Auto, min_gain_kept: 0.9 }
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
        if self.merged_dtype != MergedDtype::Auto && !self.formats.contains(&ExportFormat::Merged) {
            let at = Location::default().with_key("merged_dtype");
            let message = "`merged_dtype` is set, but `formats` has no \"merged\"";
            let hint = "add \"merged\" to `formats`, or leave `merged_dtype` out";
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
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// The adapter in PEFT's format.
    Peft,
    /// A whole model in the Hub's layout.
    Merged,
}

impl ExportFormat {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Peft, Self::Merged];
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "peft",
            Self::Merged => "merged",
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
            toml::from_str::<ExportSection>("formats = ['gguf']").unwrap_err().to_string().contains("merged")
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
