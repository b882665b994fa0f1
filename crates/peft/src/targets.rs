//! Which modules an adapter goes on, by PEFT's rules.
//!
//! Source: PEFT 0.21 `check_target_module_exists`, `get_pattern_key`, `_set_trainable` and `_maybe_include_all_linear_layers`.
//! Regular expressions are Python's in PEFT; the engine here is a backtracking one with the same syntax for what occurs in
//! module names.

use crate::{AdapterConfig, Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// PEFT's word for every linear layer but the output head, and here but the routers of experts too.
///
/// Routers are `nn.Linear`, and so among PEFT's "all-linear", in transformers 4; in 5, on which PEFT 0.21 rests, they are not, and they are
/// best left alone: a change to a router sends tokens to other experts than those that were trained on them. By name (`gate`) they can be
/// targets. The layers of experts, which transformers 5 fuses to tensors that are no `nn.Linear` either, are linear layers here as in the
/// checkpoint, and so among them.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// Names of modules, or one regular expression over their whole paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleNames {
    /// Each entry matches a module whose path is the entry or ends with `.entry`.
    List(Vec<String>),
    /// Matches a module whose whole path it matches.
    Regex(String),
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer but the output head and the routers of experts.
    #[default]
    AllLinear,
    /// Each entry matches a module whose path is the entry or ends with `.entry`.
    List(Vec<String>),
    /// Matches a module whose whole path it matches.
    Regex(String),
}

impl From<ModuleNames> for TargetModules {
    fn from(names: ModuleNames) -> Self {
        match names {
            ModuleNames::List(names) => Self::List(names),
            ModuleNames::Regex(pattern) if pattern.eq_ignore_ascii_case(ALL_LINEAR) => Self::AllLinear,
            ModuleNames::Regex(pattern) => Self::Regex(pattern),
        }
    }
}

impl From<TargetModules> for ModuleNames {
    fn from(targets: TargetModules) -> Self {
        match targets {
            TargetModules::AllLinear => Self::Regex(ALL_LINEAR.into()),
            TargetModules::List(names) => Self::List(names),
            TargetModules::Regex(pattern) => Self::Regex(pattern),
        }
    }
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => write!(f, "\"{ALL_LINEAR}\""),
            Self::List(names) => write!(f, "{names:?}"),
            Self::Regex(pattern) => write!(f, "the pattern `{pattern}`"),
        }
    }
}

impl Serialize for ModuleNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(names) => names.serialize(serializer),
            Self::Regex(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for ModuleNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ModuleNames::from(self.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModuleNames::deserialize(deserializer).map(Into::into)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = ModuleNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of module names or a regular expression")
    }

    fn visit_str<E: serde::de::Error>(self, pattern: &str) -> Result<ModuleNames, E> {
        Ok(ModuleNames::Regex(pattern.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<ModuleNames, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = sequence.next_element::<String>()? {
            names.push(name);
        }
        Ok(ModuleNames::List(names))
    }
}

fn names_schema(description: &str) -> Schema {
    json_schema!({
        "description": description,
        "oneOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "items": { "type": "string", "minLength": 1 } }
        ]
    })
}

impl JsonSchema for ModuleNames {
    fn schema_name() -> Cow<'static, str> {
        "ModuleNames".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        names_schema("A list of module names, or a regular expression over whole module paths.")
    }
}

impl JsonSchema for TargetModules {
    fn schema_name() -> Cow<'static, str> {
        "TargetModules".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        names_schema(
            "\"all-linear\", a list of module names, or a regular expression over whole module paths.",
        )
    }
}

/// Steps back that one match may take: a path is short, and an expression that takes a thousandth of this is rare.
const MOST_STEPS: usize = 100_000;
/// Bytes of a compiled expression; `\w{1,60}` takes some 1.5 MB, since it knows all of Unicode's letters.
const LARGEST_PROGRAM: usize = 4 << 20;

/// A regular expression of the user's, anchored, with the key it came from.
#[derive(Debug)]
pub(crate) struct Pattern {
    key: &'static str,
    given: String,
    regex: Regex,
}

impl Pattern {
    /// Compile `anchored`, made from what the user gave.
    fn new(key: &'static str, given: &str, anchored: &str) -> Result<Self> {
        let mut builder = RegexBuilder::new(anchored);
        builder.backtrack_limit(MOST_STEPS).delegate_size_limit(LARGEST_PROGRAM);
        let regex = builder.build().map_err(|e| Error::Pattern {
            key,
            pattern: given.into(),
            message: e.to_string(),
        })?;
        Ok(Self { key, given: given.into(), regex })
    }

    /// Python's `re.fullmatch`.
    pub(crate) fn full(key: &'static str, given: &str) -> Result<Self> {
        Self::new(key, given, &format!(r"\A(?:{given})\z"))
    }

    /// A key of `rank_pattern` or `alpha_pattern`: the whole path, or its end behind a dot.
    pub(crate) fn suffix(key: &'static str, given: &str) -> Result<Self> {
        Self::new(key, given, &format!(r"\A(.*\.)?({given})\z"))
    }

    pub(crate) fn matches(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|e| self.failed(&e))
    }

    fn number(&self, path: &str) -> Result<Option<usize>> {
        let captures = self.regex.captures(path).map_err(|e| self.failed(&e))?;
        Ok(captures.and_then(|c| c.get(c.len() - 1)).and_then(|m| m.as_str().parse().ok()))
    }

    fn failed(&self, error: &fancy_regex::Error) -> Error {
        Error::Pattern { key: self.key, pattern: self.given.clone(), message: error.to_string() }
    }
}

/// Whether `name` is the path or its end behind a dot.
pub(crate) fn names_module(name: &str, path: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// What a path is to the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It gets an adapter.
    Target,
    /// It would, were it not excluded or trained in full.
    Excluded,
    /// It would, were its layer among `layers_to_transform`.
    OtherLayer,
    /// Nothing wants it.
    None,
}

pub(crate) enum Names {
    List(Vec<String>),
    Regex(Pattern),
}

impl Names {
    pub(crate) fn new(key: &'static str, names: ModuleNames) -> Result<Self> {
        Ok(match names {
            ModuleNames::List(names) => Self::List(names),
            ModuleNames::Regex(pattern) => Self::Regex(Pattern::full(key, &pattern)?),
        })
    }

    pub(crate) fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| names_module(name, path))),
            Self::Regex(pattern) => pattern.matches(path),
        }
    }

    fn names_exactly(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == path))
    }
}

/// The index of the layer that a path lies in.
pub(crate) struct LayerIndex {
    patterns: Vec<Pattern>,
}

impl LayerIndex {
    pub(crate) fn new(layers_pattern: &[String]) -> Result<Self> {
        const KEY: &str = "layers_pattern";
        // The lazy prefix takes the first numbered segment: an expert's index further down is no layer.
        let patterns = if layers_pattern.is_empty() {
            vec![Pattern::new(KEY, "", r"\A.*?\.[^.]*\.(\d+)\.")?]
        } else {
            layers_pattern
                .iter()
                .map(|p| Pattern::new(KEY, p, &format!(r"\A.*?\.{p}\.(\d+)\.")))
                .collect::<Result<_>>()?
        };
        Ok(Self { patterns })
    }

    pub(crate) fn of(&self, path: &str) -> Result<Option<usize>> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.number(path)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// The rules of one configuration, compiled.
pub(crate) struct Matcher {
    targets: Names,
    exclude: Option<Names>,
    saved: Vec<Pattern>,
    layers: Option<(Vec<usize>, LayerIndex)>,
}

impl Matcher {
    /// The rules of `config` with its targets resolved to `targets`.
    pub(crate) fn new(config: &AdapterConfig, targets: &TargetModules) -> Result<Self> {
        let saved = config.modules_to_save.iter();
        let saved = saved.map(|m| Pattern::new("modules_to_save", m, &format!(r"\A(^|.*\.){m}($|\..*)")));
        let indices = config.layers_to_transform.clone().filter(|indices| !indices.is_empty());
        let layers = match indices {
            Some(indices) => Some((indices, LayerIndex::new(&config.layers_pattern)?)),
            None => None,
        };
        Ok(Self {
            targets: Names::new("target_modules", targets.clone().into())?,
            exclude: match config.exclude_modules.clone() {
                Some(names) => Some(Names::new("exclude_modules", names)?),
                None => None,
            },
            saved: saved.collect::<Result<_>>()?,
            layers,
        })
    }

    pub(crate) fn role(&self, path: &str) -> Result<Role> {
        if !self.targets.matches(path)? {
            return Ok(Role::None);
        }
        let excluded = match &self.exclude {
            Some(exclude) => exclude.matches(path)?,
            None => false,
        };
        if excluded {
            return Ok(Role::Excluded);
        }
        for saved in &self.saved {
            if saved.matches(path)? {
                return Ok(Role::Excluded);
            }
        }
        match &self.layers {
            // As in PEFT, a module named by its whole path is not asked for its layer.
            Some((indices, layer)) if !self.targets.names_exactly(path) => {
                let inside = layer.of(path)?.is_some_and(|index| indices.contains(&index));
                Ok(if inside { Role::Target } else { Role::OtherLayer })
            }
            _ => Ok(Role::Target),
        }
    }
}

/// Linear layers that map to the vocabulary, by their names in the checkpoints of the Hub.
pub(crate) fn is_output_head(path: &str) -> bool {
    ["lm_head", "embed_out", "output_projection"].iter().any(|head| names_module(head, path))
}

/// Linear layers that send tokens to experts, by their names in the checkpoints of the Hub.
pub(crate) fn is_router(path: &str) -> bool {
    names_module("mlp.gate", path)
}

/// What PEFT adapts when `target_modules` is null (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`, decoders).
pub(crate) fn default_targets(model_type: &str) -> Option<TargetModules> {
    let names: &[&str] = match model_type {
        "llama" | "llama4" | "mistral" | "mixtral" | "stablelm" | "gemma" | "gemma2" | "gemma3_text"
        | "qwen2" | "qwen3" | "opt" | "gptj" | "gpt_neo" => &["q_proj", "v_proj"],
        "phi" => &["fc1", "fc2", "q_proj", "v_proj"],
        "nemotron_h" => &["q_proj", "k_proj", "v_proj", "o_proj"],
        "gpt2" | "gpt_bigcode" => &["c_attn"],
        "gpt_neox" | "bloom" | "falcon" => &["query_key_value"],
        "codegen" => &["qkv_proj"],
        "gemma4" => return Some(TargetModules::Regex(r".*language_model\..*\.(q_proj|v_proj)".into())),
        _ => return None,
    };
    Some(TargetModules::List(names.iter().map(|&n| n.to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(config: &AdapterConfig, path: &str) -> Role {
        let targets = config.target_modules.clone().unwrap();
        Matcher::new(config, &targets).unwrap().role(path).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn a_list_matches_whole_paths_and_whole_last_segments_only() {
        let target_modules = Some(TargetModules::List(names(&["q_proj", "model.layers.1.mlp.up_proj"])));
        let config = AdapterConfig { target_modules, ..AdapterConfig::default() };
        assert_eq!(role(&config, "model.layers.0.self_attn.q_proj"), Role::Target);
        assert_eq!(role(&config, "q_proj"), Role::Target);
        assert_eq!(role(&config, "model.layers.0.self_attn.qq_proj"), Role::None);
        assert_eq!(role(&config, "model.layers.1.mlp.up_proj"), Role::Target);
        assert_eq!(role(&config, "model.layers.0.mlp.up_proj"), Role::None);
    }

    #[test]
    fn a_pattern_must_match_the_whole_path() {
        let target_modules = Some(TargetModules::Regex("q_proj|.*v_proj".into()));
        let config = AdapterConfig { target_modules, ..AdapterConfig::default() };
        assert_eq!(role(&config, "model.layers.0.self_attn.q_proj"), Role::None);
        assert_eq!(role(&config, "model.layers.0.self_attn.v_proj"), Role::Target);
        assert_eq!(role(&config, "model.layers.0.self_attn.v_proj.inner"), Role::None);
    }

    #[test]
    fn the_first_numbered_segment_is_the_layer() {
        let index = LayerIndex::new(&[]).unwrap();
        assert_eq!(index.of("model.layers.3.mlp.experts.7.up_proj").unwrap(), Some(3));
        assert_eq!(index.of("lm_head").unwrap(), None);
        let named = LayerIndex::new(&names(&["experts"])).unwrap();
        assert_eq!(named.of("model.layers.3.mlp.experts.7.up_proj").unwrap(), Some(7));
    }

    #[test]
    fn layers_exclusions_and_fully_trained_modules_take_targets_away() {
        let config = AdapterConfig {
            target_modules: Some(TargetModules::List(names(&["q_proj", "lm_head"]))),
            exclude_modules: Some(ModuleNames::List(names(&["layers.1.self_attn.q_proj"]))),
            modules_to_save: names(&["lm_head"]),
            layers_to_transform: Some(vec![0, 1]),
            ..AdapterConfig::default()
        };
        assert_eq!(role(&config, "model.layers.0.self_attn.q_proj"), Role::Target);
        assert_eq!(role(&config, "model.layers.1.self_attn.q_proj"), Role::Excluded);
        assert_eq!(role(&config, "model.layers.2.self_attn.q_proj"), Role::OtherLayer);
        assert_eq!(role(&config, "lm_head"), Role::Excluded);
    }

    #[test]
    fn a_pattern_that_takes_forever_is_an_error() {
        let pattern = Pattern::full("target_modules", r"(?:(a|a|b)*)*(?=c)x").unwrap();
        let error = pattern.matches(&"a".repeat(60)).unwrap_err();
        assert!(matches!(error, Error::Pattern { key: "target_modules", .. }), "{error}");
        assert!(Pattern::full("target_modules", r"((\w{1,200}){1,200}){1,200}").is_err());
        assert!(
            Pattern::full("target_modules", r".*\w{1,60}_proj").unwrap().matches("model.q_proj").unwrap()
        );
    }

    #[test]
    fn a_broken_pattern_names_its_key() {
        let error = Pattern::full("exclude_modules", "(q_proj").unwrap_err();
        assert!(matches!(error, Error::Pattern { key: "exclude_modules", .. }), "{error}");
    }
}
