//! The `[adapter]` section of a recipe.

use crate::checks;
use crate::targets::{ModuleNames, TargetModules};
use crate::{AdapterConfig, Bias, Ia3, InitLoraWeights, Loha, Lokr, Method, TokenIndices, Vera};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use taper_diagnostics::{Location, Problem, Problems};

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
    /// Values that the adapter begins with: true (A random, B zero: it begins as nothing), "gaussian" (the same, A normal), false
    /// (both random: it begins as noise; for tests), or values made from each layer's weight: "pissa", "pissa_niter_4" or "pissa_niter_16" (its largest singular
    /// vectors, exactly or in some rounds; often learns faster), "olora" (its QR factors, cheaper to find), "loftq" (the adapted layers are quantised to NF4, and the adapter
    /// begins with what that lost). Such an adapter is saved with twice the rank, as plain LoRA over the base.
    pub init_lora_weights: InitLoraWeights,
    /// How layers are adapted: "lora"; "vera" (two vectors a layer over shared random projections, the smallest files after "ia3"), "ia3"
    /// (a factor for each activation), "loha" and "lokr" (Hadamard and Kronecker products, a higher rank from few numbers). `lora_alpha`,
    /// `lora_dropout` and the patterns are for those that have them. Engines that serve adapters know "lora"; the others are best exported merged.
    pub peft_type: PeftType,
    /// Give the rows of `W + s B A` trained lengths (DoRA): better at small ranks, slower, and unknown to many engines. LoRA only.
    pub use_dora: bool,
    /// A trained bias beside B. LoRA only; merging needs a base with biases.
    pub lora_bias: bool,
    /// Tokens that get trained rows of their own in the embedding, by id: for words that are new or mean something else. LoRA only.
    pub trainable_token_indices: Option<Vec<u32>>,
    /// Train what embedding and head share as one where `modules_to_save` names it; without it, they part. LoRA only.
    pub ensure_weight_tying: bool,
    /// Targets whose inputs are scaled, not their outputs: a list of names or a regular expression. (IA)³ only; without it, ["down_proj"].
    pub feedforward_modules: Option<ModuleNames>,
    /// What VeRA's inner vector begins with (0.1).
    pub d_initial: Option<f64>,
    /// The seed of VeRA's projections (0).
    pub projection_prng_key: Option<u64>,
    /// Make LoKr's left factor low-rank too, where it is large.
    pub decompose_both: bool,
    /// One size of LoKr's left factor; without it, about the root of the layer's.
    pub decompose_factor: Option<usize>,
}

/// How layers are adapted, by PEFT's name for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeftType {
    /// A low-rank delta.
    #[default]
    Lora,
    /// Two vectors over shared random projections.
    Vera,
    /// Factors of activations.
    Ia3,
    /// The Hadamard product of two low-rank deltas.
    Loha,
    /// A Kronecker product.
    Lokr,
}

impl Default for AdapterSection {
    fn default() -> Self {
        let peft = AdapterConfig::default();
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
            peft_type: PeftType::Lora,
            use_dora: peft.use_dora,
            lora_bias: peft.lora_bias,
            trainable_token_indices: None,
            ensure_weight_tying: peft.ensure_weight_tying,
            feedforward_modules: None,
            d_initial: None,
            projection_prng_key: None,
            decompose_both: false,
            decompose_factor: None,
        }
    }
}

impl AdapterSection {
    /// Everything about the section that can be known without the model.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for (key, methods) in self.without_effect() {
            let at = Location::default().with_key(format!("adapter.{key}"));
            let message = format!(
                "`{key}` is for {methods}, and `peft_type` is \"{}\"",
                self.method().peft_type().to_lowercase()
            );
            let hint = "leave it out, or choose another `peft_type`";
            problems.push(Problem::error("unused-key", message).at(at).hint(hint));
        }
        checks::check(&self.to_config(""), "adapter.", &mut problems);
        problems
    }

    /// The method as people write it.
    pub fn method_name(&self) -> &'static str {
        match self.peft_type {
            PeftType::Lora if self.use_dora => "DoRA",
            PeftType::Lora => "LoRA",
            PeftType::Vera => "VeRA",
            PeftType::Ia3 => "IA3",
            PeftType::Loha => "LoHa",
            PeftType::Lokr => "LoKr",
        }
    }

    /// Keys that are set and that the method does not have, and which methods do.
    fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        use PeftType::{Ia3, Loha, Lokr, Lora, Vera};
        let default = Self::default();
        let keys: [(&'static str, bool, &[PeftType], &'static str); 19] = [
            ("r", self.r != default.r, &[Lora, Vera, Loha, Lokr], "lora, vera, loha and lokr"),
            ("lora_alpha", self.lora_alpha != default.lora_alpha, &[Lora, Loha, Lokr], "lora, loha and lokr"),
            ("lora_dropout", self.lora_dropout != 0.0, &[Lora, Vera], "lora and vera"),
            (
                "exclude_modules",
                self.exclude_modules.is_some(),
                &[Lora, Ia3, Loha, Lokr],
                "lora, ia3, loha and lokr",
            ),
            ("rank_pattern", !self.rank_pattern.is_empty(), &[Lora, Loha, Lokr], "lora, loha and lokr"),
            ("alpha_pattern", !self.alpha_pattern.is_empty(), &[Lora, Loha, Lokr], "lora, loha and lokr"),
            (
                "layers_to_transform",
                self.layers_to_transform.is_some(),
                &[Lora, Vera, Loha, Lokr],
                "lora, vera, loha and lokr",
            ),
            ("use_rslora", self.use_rslora, &[Lora], "lora"),
            ("bias", self.bias != Bias::None, &[Lora], "lora"),
            ("init_lora_weights", self.init_lora_weights != default.init_lora_weights, &[Lora], "lora"),
            ("use_dora", self.use_dora, &[Lora], "lora"),
            ("lora_bias", self.lora_bias, &[Lora], "lora"),
            ("trainable_token_indices", self.trainable_token_indices.is_some(), &[Lora], "lora"),
            ("ensure_weight_tying", self.ensure_weight_tying, &[Lora], "lora"),
            ("feedforward_modules", self.feedforward_modules.is_some(), &[Ia3], "ia3"),
            ("d_initial", self.d_initial.is_some(), &[Vera], "vera"),
            ("projection_prng_key", self.projection_prng_key.is_some(), &[Vera], "vera"),
            ("decompose_both", self.decompose_both, &[Lokr], "lokr"),
            ("decompose_factor", self.decompose_factor.is_some(), &[Lokr], "lokr"),
        ];
        let unused =
            keys.into_iter().filter(|(_, set, methods, _)| *set && !methods.contains(&self.peft_type));
        unused.map(|(key, _, _, methods)| (key, methods)).collect()
    }

    fn method(&self) -> Method {
        match self.peft_type {
            PeftType::Lora => Method::Lora,
            PeftType::Vera => {
                let default = Vera::default();
                Method::Vera(Vera {
                    projection_prng_key: self.projection_prng_key.unwrap_or(default.projection_prng_key),
                    d_initial: self.d_initial.unwrap_or(default.d_initial),
                })
            }
            PeftType::Ia3 => {
                let feedforward_modules = Some(self.feedforward_modules.clone().unwrap_or_else(|| {
                    let is_down = |name: &String| name.rsplit('.').next() == Some("down_proj");
                    ModuleNames::List(match &self.target_modules {
                        TargetModules::List(names) => names.iter().filter(|n| is_down(n)).cloned().collect(),
                        _ => vec!["down_proj".to_owned()],
                    })
                }));
                Method::Ia3(Ia3 { feedforward_modules, ..Ia3::default() })
            }
            PeftType::Loha => Method::Loha(Loha::default()),
            PeftType::Lokr => Method::Lokr(Lokr {
                decompose_both: self.decompose_both,
                decompose_factor: self.decompose_factor.map_or(-1, |f| i64::try_from(f).unwrap_or(i64::MAX)),
                ..Lokr::default()
            }),
        }
    }

    /// The configuration of an adapter of the model `base` (a folder or a hub id).
    pub fn to_config(&self, base: &str) -> AdapterConfig {
        AdapterConfig {
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
            method: self.method(),
            use_dora: self.use_dora,
            lora_bias: self.lora_bias,
            trainable_token_indices: self.trainable_token_indices.clone().map(TokenIndices::List),
            ensure_weight_tying: self.ensure_weight_tying,
            ..AdapterConfig::default()
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
    fn a_key_of_another_method_is_a_problem() {
        let told = |json: &str| -> Vec<String> {
            section(json).unwrap().check().iter().filter_map(|p| p.location.clone()?.key).collect()
        };
        assert_eq!(
            told(r#"{"peft_type": "ia3", "r": 4, "use_dora": true, "d_initial": 1.0}"#),
            ["adapter.r", "adapter.use_dora", "adapter.d_initial"]
        );
        assert_eq!(told(r#"{"decompose_factor": 4}"#), ["adapter.decompose_factor"]);
        assert_eq!(told(r#"{"use_dora": true, "lora_bias": true}"#), ["adapter.lora_bias"]);
        assert!(told(r#"{"peft_type": "lokr", "r": 4, "lora_alpha": 3, "decompose_factor": 4}"#).is_empty());
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
            r#"{"peft_type": "ia3"}"#,
            r#"{"use_dora": true}"#,
            r#"{"lora_bias": true}"#,
            r#"{"trainable_token_indices": [3]}"#,
            r#"{"ensure_weight_tying": true}"#,
        ];
        let of_others = [
            (r#"{"peft_type": "ia3"}"#, r#"{"peft_type": "ia3", "feedforward_modules": ["up_proj"]}"#),
            (r#"{"peft_type": "vera"}"#, r#"{"peft_type": "vera", "d_initial": 0.5}"#),
            (r#"{"peft_type": "vera"}"#, r#"{"peft_type": "vera", "projection_prng_key": 3}"#),
            (r#"{"peft_type": "lokr"}"#, r#"{"peft_type": "lokr", "decompose_both": true}"#),
            (r#"{"peft_type": "lokr"}"#, r#"{"peft_type": "lokr", "decompose_factor": 4}"#),
        ];
        for (without, with) in of_others {
            let of = |json| section(json).unwrap().to_config("b");
            assert_ne!(of(without), of(with), "{with}");
        }
        assert_ne!(section(r#"{"peft_type": "loha"}"#).unwrap().to_config("b"), default);
        let written = serde_json::to_value(AdapterSection::default()).unwrap();
        assert_eq!(written.as_object().unwrap().len(), changes.len() + of_others.len());
        for change in changes {
            assert_ne!(section(change).unwrap().to_config("b"), default, "{change}");
        }
    }

    #[test]
    fn the_schema_describes_every_key() {
        let schema = serde_json::to_value(schemars::schema_for!(AdapterSection)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 22);
        assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
        assert_eq!(schema["$defs"]["TargetModules"]["oneOf"].as_array().unwrap().len(), 2);
    }
}
