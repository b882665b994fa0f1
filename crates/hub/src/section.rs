//! The `[model]` section of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use taper_diagnostics::{Location, Problem, Problems};

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
    /// A Jinja chat template to use instead of the checkpoint's own (relative to the recipe file). For bases that have none; a template other
    /// than the one a model was tuned with usually costs quality.
    pub chat_template: Option<PathBuf>,
    /// "pretrained" loads the weights; "random" draws new ones for the shape in config.json, to train a model from nothing
    /// (`train.method = "full"`).
    pub init: InitChoice,
}

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
        problems
    }
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
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<ModelSection>(r#"{"base":"a/b","dtyp":"f32"}"#).unwrap_err();
        assert!(error.to_string().contains("dtyp"), "{error}");
    }
}
