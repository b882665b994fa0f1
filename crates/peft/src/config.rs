//! PEFT's `adapter_config.json` for LoRA.

use crate::keys;
use crate::methods::Method;
use crate::sizes::Sizes;
use crate::targets::{ModuleNames, TargetModules};
use crate::{CONFIG_FILE, Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use taper_diagnostics::{Location, Problem, Problems};

/// Which biases of the base are trained along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the layers that have an adapter.
    LoraOnly,
}

impl Bias {
    /// As PEFT writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// The values that a new adapter begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform in ±1/sqrt(in), B zero. The adapter begins as nothing.
    #[default]
    Default,
    /// `"gaussian"`: A normal with standard deviation 1/r, B zero.
    Gaussian,
    /// `false`: A uniform in ±1/sqrt(in), B uniform in ±1/sqrt(r). The adapter begins as noise.
    Random,
    /// `"pissa"`, `"pissa_niter_N"`: the r largest singular values and vectors of the weight, which is taken off the base while training (Meng et al. 2024).
    Pissa {
        /// Rounds of subspace iteration; without it, as many as it takes.
        niter: Option<usize>,
    },
    /// `"olora"`: the first columns of the weight's QR factors (Büyükakyüz 2024), taken off the base likewise.
    Olora,
    /// `"loftq"`: what quantising the weight lost, at best in rank r (Li et al. 2023). For a quantised base whose stored weights are not.
    Loftq,
}

impl InitLoraWeights {
    /// As PEFT writes it.
    fn to_value(self) -> Value {
        match self {
            Self::Default => json!(true),
            Self::Random => json!(false),
            Self::Gaussian => json!("gaussian"),
            Self::Pissa { niter: None } => json!("pissa"),
            Self::Pissa { niter: Some(n) } => json!(format!("pissa_niter_{n}")),
            Self::Olora => json!("olora"),
            Self::Loftq => json!("loftq"),
        }
    }

    /// Those that are made from the base's weights.
    pub fn is_of_the_weight(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora | Self::Loftq)
    }

    pub(crate) fn named(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "gaussian" => Some(Self::Gaussian),
            "pissa" => Some(Self::Pissa { niter: None }),
            "olora" => Some(Self::Olora),
            "loftq" => Some(Self::Loftq),
            _ => {
                let niter = text.strip_prefix("pissa_niter_")?.parse().ok()?;
                (1..=1000).contains(&niter).then_some(Self::Pissa { niter: Some(niter) })
            }
        }
    }
}

/// Tokens that get rows of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenIndices {
    /// Of the token embedding.
    List(Vec<u32>),
    /// By the name of the embedding.
    Map(BTreeMap<String, Vec<u32>>),
}

impl TokenIndices {
    /// Name of the embedding, and the tokens.
    pub(crate) fn of_modules(&self) -> Vec<(&str, &[u32])> {
        match self {
            Self::List(ids) => vec![("embed_tokens", ids.as_slice())],
            Self::Map(map) => map.iter().map(|(name, ids)| (name.as_str(), ids.as_slice())).collect(),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::List(ids) => json!(ids),
            Self::Map(map) => json!(map),
        }
    }
}

/// PEFT's LoRA configuration: the keys that are honoured. The others are known and refused by name.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Where the base is: a folder or a hub id.
    pub base_model_name_or_path: Option<String>,
    /// The base's revision.
    pub revision: Option<String>,
    /// `CAUSAL_LM`, or nothing.
    pub task_type: Option<String>,
    /// Saved as `true`; it tells PEFT to freeze the adapter when it reads it.
    pub inference_mode: bool,
    /// The version of PEFT that wrote the file; null in our files, and PEFT then fills in its own.
    pub peft_version: Option<String>,
    /// The class of the base for PEFT's own loading, kept as it was read.
    pub auto_mapping: Option<Value>,
    /// The rank, unless `rank_pattern` says otherwise.
    pub r: usize,
    /// The numerator of the scale, unless `alpha_pattern` says otherwise.
    pub lora_alpha: f64,
    /// Probability with which an element of an adapter's input is dropped in training.
    pub lora_dropout: f64,
    /// Where adapters go; `None` is PEFT's default for the model's type.
    pub target_modules: Option<TargetModules>,
    /// Where they do not go, even if a target.
    pub exclude_modules: Option<ModuleNames>,
    /// Layers that adapters go to; `None` is all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the segment in front of a layer's number; empty is any.
    pub layers_pattern: Vec<String>,
    /// Ranks of modules whose path matches; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Numerators of modules whose path matches; the first match counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale by `alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules trained in full, matched by the end of their path.
    pub modules_to_save: Vec<String>,
    /// The values that a new adapter begins with.
    pub init_lora_weights: InitLoraWeights,
    /// How layers are adapted. What follows and the patterns, `use_rslora` and `bias` are LoRA's; LoHa and LoKr have the patterns too.
    pub method: Method,
    /// Give the rows of `W + s B A` lengths of their own.
    pub use_dora: bool,
    /// A bias beside B.
    pub lora_bias: bool,
    /// Tokens that get rows of their own.
    pub trainable_token_indices: Option<TokenIndices>,
    /// Train what embedding and head share once, for both.
    pub ensure_weight_tying: bool,
}

impl Default for AdapterConfig {
    /// PEFT's own defaults.
    fn default() -> Self {
        Self {
            base_model_name_or_path: None,
            revision: None,
            task_type: None,
            inference_mode: false,
            peft_version: None,
            auto_mapping: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            bias: Bias::None,
            modules_to_save: Vec::new(),
            init_lora_weights: InitLoraWeights::Default,
            method: Method::Lora,
            use_dora: false,
            lora_bias: false,
            trainable_token_indices: None,
            ensure_weight_tying: false,
        }
    }
}

impl AdapterConfig {
    /// Read an `adapter_config.json`. Unknown keys that say something are refused: a reader who drops them serves another
    /// model than the one that was trained.
    ///
    /// # Errors
    /// [`Error::Problems`] with every key that cannot be honoured.
    pub fn from_json(text: &str) -> Result<Self> {
        keys::parse(text).map_err(Error::Problems)
    }

    /// [`AdapterConfig::from_json`] of the file in an adapter's folder.
    ///
    /// # Errors
    /// Besides, when the file cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let text = fs_err::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotAnAdapter {
                path: folder.to_owned(),
                what: format!("there is no `{CONFIG_FILE}` in the folder"),
                remedy: "name the folder that holds adapter_config.json and adapter_model.safetensors",
            },
            _ => Error::Read { path: path.clone(), source },
        })?;
        let text = crate::foreign::peft_text(folder, text)?;
        keys::parse(&text).map_err(|problems| {
            let mut placed = Problems::new();
            for problem in problems.iter() {
                let location = problem.location.clone().unwrap_or_default();
                let location = Location { file: Some(path.clone()), ..location };
                placed.push(Problem { location: Some(location), ..problem.clone() });
            }
            Error::Problems(placed)
        })
    }

    /// The file as PEFT writes it: every key of the method's configuration, sorted, lists sorted, indented by two, numbers
    /// that are whole written as integers where readers expect them.
    pub fn to_json(&self) -> String {
        let mut map = self.method.as_dyn().write(self);
        map.insert("peft_type", json!(self.method.peft_type()));
        map.insert("base_model_name_or_path", json!(self.base_model_name_or_path));
        map.insert("revision", json!(self.revision));
        map.insert("task_type", json!(self.task_type));
        map.insert("inference_mode", json!(self.inference_mode));
        map.insert("peft_version", json!(self.peft_version));
        map.insert("auto_mapping", json!(self.auto_mapping));
        map.insert("target_modules", names_or_null(self.target_modules.clone().map(Into::into)));
        map.insert("modules_to_save", sorted_or_null(&self.modules_to_save));
        let map: Map<String, Value> = map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        format!("{:#}\n", Value::Object(map))
    }

    /// The keys of LoRA beyond those of all methods.
    pub(crate) fn lora_keys(&self) -> BTreeMap<&'static str, Value> {
        let mut map = keys::inert_values();
        map.extend(self.layer_keys());
        map.extend(self.pattern_keys());
        map.extend([
            ("r", json!(self.r)),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("exclude_modules", names_or_null(self.exclude_modules.clone())),
            ("use_rslora", json!(self.use_rslora)),
            ("use_dora", json!(self.use_dora)),
            ("lora_bias", json!(self.lora_bias)),
            ("bias", json!(self.bias.as_str())),
            ("init_lora_weights", self.init_lora_weights.to_value()),
            ("ensure_weight_tying", json!(self.ensure_weight_tying)),
            (
                "trainable_token_indices",
                self.trainable_token_indices.as_ref().map_or(Value::Null, TokenIndices::to_value),
            ),
        ]);
        map
    }

    /// The keys that LoHa and LoKr share.
    pub(crate) fn lycoris_keys(&self) -> BTreeMap<&'static str, Value> {
        let mut map = self.layer_keys();
        map.extend(self.pattern_keys());
        map.extend([
            ("r", json!(self.r)),
            ("alpha", number(self.lora_alpha)),
            ("exclude_modules", names_or_null(self.exclude_modules.clone())),
            ("module_dropout", json!(0.0)),
            ("rank_dropout", json!(0.0)),
            ("use_effective_conv2d", json!(false)),
        ]);
        map
    }

    /// Which layers.
    pub(crate) fn layer_keys(&self) -> BTreeMap<&'static str, Value> {
        let pattern = match self.layers_pattern.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        BTreeMap::from([
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("layers_pattern", pattern),
        ])
    }

    fn pattern_keys(&self) -> BTreeMap<&'static str, Value> {
        BTreeMap::from([
            ("rank_pattern", patterns(&self.rank_pattern, |&r| json!(r))),
            ("alpha_pattern", patterns(&self.alpha_pattern, |&alpha| number(alpha))),
        ])
    }

    /// The rank of the module at `path`.
    ///
    /// # Errors
    /// When a pattern cannot be used.
    pub fn rank_of(&self, path: &str) -> Result<usize> {
        Sizes::new(self)?.rank_of(path)
    }

    /// The numerator of the scale of the module at `path`.
    ///
    /// # Errors
    /// When a pattern cannot be used.
    pub fn alpha_of(&self, path: &str) -> Result<f64> {
        Sizes::new(self)?.alpha_of(path)
    }

    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA, of the module at `path`.
    ///
    /// # Errors
    /// When a pattern cannot be used.
    pub fn scale_of(&self, path: &str) -> Result<f64> {
        Sizes::new(self)?.scale_of(path)
    }
}

/// A number as Python would write it: `16`, not `16.0`; some readers take only integers for `lora_alpha`.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT { json!(value as i64) } else { json!(value) }
}

fn sorted_or_null(names: &[String]) -> Value {
    if names.is_empty() {
        return Value::Null;
    }
    let mut names = names.to_vec();
    names.sort();
    json!(names)
}

/// Names as PEFT writes them, lists sorted.
pub(crate) fn names_or_null(names: Option<ModuleNames>) -> Value {
    match names {
        None => Value::Null,
        Some(ModuleNames::List(mut names)) => {
            names.sort();
            json!(names)
        }
        Some(ModuleNames::Regex(pattern)) => json!(pattern),
    }
}

fn patterns<T>(patterns: &[(String, T)], value: impl Fn(&T) -> Value) -> Value {
    let sorted: BTreeMap<_, _> = patterns.iter().map(|(k, v)| (k.clone(), value(v))).collect();
    Value::Object(sorted.into_iter().collect())
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InitVisitor)
    }
}

struct InitVisitor;

impl Visitor<'_> for InitVisitor {
    type Value = InitLoraWeights;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, \"gaussian\", \"pissa\", \"pissa_niter_N\", \"olora\" or \"loftq\"")
    }

    fn visit_bool<E: serde::de::Error>(self, given: bool) -> Result<InitLoraWeights, E> {
        Ok(if given { InitLoraWeights::Default } else { InitLoraWeights::Random })
    }

    fn visit_str<E: serde::de::Error>(self, given: &str) -> Result<InitLoraWeights, E> {
        InitLoraWeights::named(given)
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(given), &self))
    }
}

impl JsonSchema for InitLoraWeights {
    fn schema_name() -> Cow<'static, str> {
        "InitLoraWeights".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "true, false, \"gaussian\", \"pissa\", \"pissa_niter_N\", \"olora\" or \"loftq\".",
            "oneOf": [
                { "type": "boolean" },
                { "enum": ["gaussian", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"] }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scale_is_alpha_over_r_or_over_its_root_after_the_patterns() {
        let config = AdapterConfig {
            r: 16,
            lora_alpha: 32.0,
            rank_pattern: vec![("q_proj".into(), 4), ("^model.layers.1.mlp.*".into(), 2)],
            alpha_pattern: vec![("layers.1.mlp.up_proj".into(), 5.0)],
            ..AdapterConfig::default()
        };
        let scale = |config: &AdapterConfig, path: &str| config.scale_of(path).unwrap();
        assert_eq!(scale(&config, "model.layers.0.self_attn.v_proj"), 2.0);
        assert_eq!(scale(&config, "model.layers.0.self_attn.q_proj"), 8.0);
        assert_eq!(scale(&config, "model.layers.1.mlp.up_proj"), 2.5);
        assert_eq!(scale(&config, "model.layers.1.mlp.down_proj"), 16.0);
        assert_eq!(scale(&config, "model.layers.0.self_attn.qq_proj"), 2.0);
        let config = AdapterConfig { use_rslora: true, ..config };
        assert_eq!(scale(&config, "model.layers.0.self_attn.v_proj"), 8.0);
        assert_eq!(scale(&config, "model.layers.0.self_attn.q_proj"), 16.0);
    }

    #[test]
    fn all_of_pefts_keys_are_written_and_read_back() {
        let text = AdapterConfig::default().to_json();
        let Value::Object(map) = serde_json::from_str(&text).unwrap() else { panic!("no object") };
        assert_eq!(map.len(), 41);
        let mut sorted: Vec<_> = map.keys().collect();
        sorted.sort();
        assert!(map.keys().eq(sorted), "keys are sorted");
        assert_eq!(AdapterConfig::from_json(&text).unwrap(), AdapterConfig::default());
    }

    #[test]
    fn a_whole_alpha_is_an_integer_and_a_broken_one_is_not() {
        let with = |lora_alpha| AdapterConfig { lora_alpha, ..AdapterConfig::default() }.to_json();
        assert!(with(16.0).contains("\"lora_alpha\": 16,"));
        assert!(with(0.5).contains("\"lora_alpha\": 0.5,"));
    }

    fn name() -> impl Strategy<Value = String> {
        "[a-z_.0-9]{1,12}"
    }

    fn sorted(names: std::collections::BTreeSet<String>) -> Vec<String> {
        names.into_iter().collect()
    }

    prop_compose! {
        fn any_config()(
            r in 1usize..512, alpha in 1u32..4096, dropout in 0u32..99,
            targets in prop::collection::btree_set(name(), 1..6),
            exclude in prop::option::of(prop::collection::btree_set(name(), 1..3)),
            layers in prop::option::of(prop::collection::vec(0usize..90, 1..4)),
            ranks in prop::collection::btree_map(name(), 1usize..64, 0..3),
            alphas in prop::collection::btree_map(name(), 1u32..640, 0..3),
            saved in prop::collection::btree_set(name(), 0..3),
            use_rslora: bool, bias in 0..3, init in 0..3,
        ) -> AdapterConfig {
            AdapterConfig {
                r,
                lora_alpha: f64::from(alpha) / 4.0,
                lora_dropout: f64::from(dropout) / 100.0,
                target_modules: Some(TargetModules::List(sorted(targets))),
                exclude_modules: exclude.map(|e| ModuleNames::List(sorted(e))),
                layers_to_transform: layers,
                rank_pattern: ranks.into_iter().collect(),
                alpha_pattern: alphas.into_iter().map(|(k, a)| (k, f64::from(a) / 8.0)).collect(),
                modules_to_save: sorted(saved),
                use_rslora,
                bias: [Bias::None, Bias::All, Bias::LoraOnly][bias as usize],
                init_lora_weights: [InitLoraWeights::Default, InitLoraWeights::Gaussian, InitLoraWeights::Random][init as usize],
                ..AdapterConfig::default()
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(config in any_config()) {
            prop_assert_eq!(AdapterConfig::from_json(&config.to_json()).unwrap(), config);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", key in "[a-z_]{1,20}", number: f64) {
            let _ = AdapterConfig::from_json(&text);
            let _ = AdapterConfig::from_json(&format!("{{\"peft_type\":\"LORA\",\"{key}\":{number}}}"));
        }
    }
}
