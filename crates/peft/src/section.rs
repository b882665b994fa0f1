//! The `[adapter]` section of a recipe.

use crate::keys;
use crate::targets::{ModuleNames, TargetModules};
use crate::{Bias, InitLoraWeights, LoraConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use taper_diagnostics::Problems;

/// Which low-rank deltas are trained, and where they sit. Names and meanings are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterSection {
    /// Rank of the deltas (1 to 16384). Parameters, file size and optimiser memory grow with it; 8 to 16 teach a format or a
    /// style, 32 to 128 a larger task.
    pub r: usize,
    /// Numerator of the scale `lora_alpha / r` that the delta is multiplied by (above 0). Twice r is a common start; a larger
    /// value acts like a larger learning rate.
    pub lora_alpha: f64,
    /// Share of an adapter's input elements that are dropped in training (0 to below 1). 0.05 to 0.1 help against overfitting
    /// on a few hundred examples, and cost some time.
    pub lora_dropout: f64,
    /// Which linear layers get an adapter: "all-linear" (all but the output head), a list of names such as ["q_proj", "v_proj"]
    /// (the last segments of a module's path, or the whole path), or a regular expression that matches the whole path. More
    /// layers learn more and cost more; attention alone is the cheap choice.
    pub target_modules: TargetModules,
    /// Layers that get none although they are targets: a list of names or a regular expression, as for `target_modules`.
    pub exclude_modules: Option<ModuleNames>,
    /// Ranks that differ from `r`, by name: a regular expression that matches the end of the path, from a dot on. The first in
    /// alphabetical order counts. `lora_alpha` stays, so that the scale changes with the rank; see `alpha_pattern`.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Numerators that differ from `lora_alpha`, by name as in `rank_pattern`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Layers that get adapters, counted from 0; without it, all. Fewer layers save memory, the upper ones matter most.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Scale by `lora_alpha / sqrt(r)` instead of `lora_alpha / r` (rsLoRA): keeps large ranks from learning too slowly. Some
    /// engines that read adapters do not know it.
    pub use_rslora: bool,
    /// Which biases of the base are trained along: "none", "all", or "lora_only" (of the adapted layers). With anything but
    /// "none" the model without its adapter is no longer the base.
    pub bias: Bias,
    /// Modules trained in full and saved with the adapter, by the end of their path, for example ["lm_head", "embed_tokens"] when
    /// the vocabulary gets a new meaning. They cost memory as in full training; many engines refuse such adapters. As in PEFT,
    /// "norm" matches every path that ends so, `input_layernorm` too.
    pub modules_to_save: Vec<String>,
    /// Values that the adapter begins with: true (A random, B zero: it begins as nothing), "gaussian" (the same, A normal), or false
    /// (both random: it begins as noise; for tests).
    pub init_lora_weights: InitLoraWeights,
}

impl Default for AdapterSection {
    fn default() -> Self {
        let peft = LoraConfig::default();
        Self {
            r: peft.r,
            lora_alpha: peft.lora_alpha,
            lora_dropout: peft.lora_dropout,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers_to_transform: None,
            use_rslora: peft.use_rslora,
            bias: peft.bias,
            modules_to_save: Vec::new(),
            init_lora_weights: peft.init_lora_weights,
        }
    }
}

impl AdapterSection {
    /// Everything about the section that can be known without the model.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        keys::check(&self.to_config(""), "adapter.", &mut problems);
        problems
    }

    /// The configuration of an adapter of the model `base` (a folder or a hub id).
    pub fn to_config(&self, base: &str) -> LoraConfig {
        LoraConfig {
            base_model_name_or_path: Some(base.to_owned()),
            task_type: Some("CAUSAL_LM".to_owned()),
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            target_modules: Some(self.target_modules.clone()),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            rank_pattern: self.rank_pattern.iter().map(|(k, &v)| (k.clone(), v)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(k, &v)| (k.clone(), v)).collect(),
            use_rslora: self.use_rslora,
            bias: self.bias,
            modules_to_save: self.modules_to_save.clone(),
            init_lora_weights: self.init_lora_weights,
            ..LoraConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(json: &str) -> Result<AdapterSection, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn targets_are_a_word_a_list_or_a_pattern_and_are_written_back() {
        let cases = [
            (r#""all-linear""#, TargetModules::AllLinear),
            (r#"["q_proj"]"#, TargetModules::List(vec!["q_proj".into()])),
            (r#"".*q_proj""#, TargetModules::Regex(".*q_proj".into())),
        ];
        for (text, expected) in cases {
            let section = section(&format!("{{\"target_modules\":{text}}}")).unwrap();
            assert_eq!(section.target_modules, expected);
            assert_eq!(serde_json::to_string(&section.target_modules).unwrap(), text);
        }
        assert!(
            section(r#"{"target_modules": 3}"#).unwrap_err().to_string().contains("a list of module names")
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_that_lists_what_exists() {
        let error = section(r#"{"rank": 8}"#).unwrap_err().to_string();
        assert!(error.contains("`rank`") && error.contains("`lora_alpha`"), "{error}");
    }

    #[test]
    fn all_faults_of_the_section_are_found_at_once() {
        let section = section(
            r#"{"r": 0, "lora_alpha": -1, "lora_dropout": 1.0, "rank_pattern": {"q_proj": 0}, "alpha_pattern": {"(": 1.0},
                "exclude_modules": [""]}"#,
        )
        .unwrap();
        let problems = section.check();
        let keys: Vec<String> = problems.iter().filter_map(|p| p.location.clone()?.key).collect();
        assert_eq!(
            keys,
            [
                "adapter.r",
                "adapter.lora_alpha",
                "adapter.lora_dropout",
                "adapter.rank_pattern",
                "adapter.exclude_modules",
                "adapter.alpha_pattern"
            ]
        );
    }

    #[test]
    fn every_key_changes_the_configuration() {
        let default = AdapterSection::default().to_config("b");
        let changes = [
            r#"{"r": 4}"#,
            r#"{"lora_alpha": 16}"#,
            r#"{"lora_dropout": 0.1}"#,
            r#"{"target_modules": ["q_proj"]}"#,
            r#"{"exclude_modules": ["q_proj"]}"#,
            r#"{"rank_pattern": {"q_proj": 4}}"#,
            r#"{"alpha_pattern": {"q_proj": 4}}"#,
            r#"{"layers_to_transform": [1]}"#,
            r#"{"use_rslora": true}"#,
            r#"{"bias": "all"}"#,
            r#"{"modules_to_save": ["lm_head"]}"#,
            r#"{"init_lora_weights": "gaussian"}"#,
        ];
        let written = serde_json::to_value(AdapterSection::default()).unwrap();
        assert_eq!(written.as_object().unwrap().len(), changes.len());
        for change in changes {
            assert_ne!(section(change).unwrap().to_config("b"), default, "{change}");
        }
    }

    #[test]
    fn the_schema_describes_every_key() {
        let schema = serde_json::to_value(schemars::schema_for!(AdapterSection)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 12);
        assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
        assert_eq!(schema["$defs"]["TargetModules"]["oneOf"].as_array().unwrap().len(), 2);
    }
}
