//! Which names can be asked for, and with which chat template each is asked.

use crate::error::ApiError;
use crate::tools::ToolFormat;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use taper_text::{ChatTemplate, Message, RenderOptions, Tokenizer};

/// Reads the chat template that an adapter has of its own, when it was trained with another than the base's. The error is for the
/// client, and may name the folder: paths are cut from it.
pub type OwnTemplate = dyn Fn(&Path) -> Result<Option<ChatTemplate>, String> + Send + Sync;

/// A chat template and what is known of it.
#[derive(Debug)]
pub(crate) struct ChatFormat {
    pub(crate) template: ChatTemplate,
    /// Ids that end an answer.
    pub(crate) stop_ids: Vec<u32>,
    /// How its tool calls are written; `None` where it does not take tools, or writes calls in a way that is not read here.
    pub(crate) tools: Option<ToolFormat>,
    /// Whether it prints the tools it is given.
    pub(crate) prints_tools: bool,
}

impl ChatFormat {
    pub(crate) fn new(template: ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let prints_tools = prints_tools(&template);
        let tools = if prints_tools { ToolFormat::of_template(&template) } else { None };
        Self { stop_ids: template.stop_ids(tokenizer), tools, prints_tools, template }
    }
}

/// Templates are asked, since a text that names `tools` need not print them.
fn prints_tools(template: &ChatTemplate) -> bool {
    const PROBE: &str = "probe_of_tools";
    let tool = json!([{ "type": "function", "function": {
        "name": PROBE, "description": "", "parameters": { "type": "object", "properties": {} },
    } }]);
    let options =
        RenderOptions { add_generation_prompt: true, tools: Some(tool), ..RenderOptions::default() };
    let messages = [Message::new("user", "hello")];
    template.render(&messages, &options).is_ok_and(|text| text.contains(PROBE))
}

/// The names of the base and the templates of all.
pub(crate) struct Catalogue {
    /// The base's names; the first is the one it is listed by.
    pub(crate) base: Vec<String>,
    base_format: Option<Arc<ChatFormat>>,
    own_formats: RwLock<BTreeMap<String, Arc<ChatFormat>>>,
}

/// What a model's name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// The base, no adapter.
    Base,
    /// The adapter of that name, if there is one.
    Adapter(String),
}

impl Catalogue {
    pub(crate) fn new(base: Vec<String>, format: Option<ChatFormat>) -> Self {
        Self { base, base_format: format.map(Arc::new), own_formats: RwLock::default() }
    }

    /// The name that the base is listed by.
    pub(crate) fn base_name(&self) -> &str {
        self.base.first().map_or("", String::as_str)
    }

    /// `base`, `adapter`, `base:adapter` or `base::adapter`.
    pub(crate) fn named(&self, model: &str) -> Named {
        if self.base.iter().any(|base| base == model) {
            return Named::Base;
        }
        let behind = self.base.iter().find_map(|base| model.strip_prefix(base.as_str())?.strip_prefix(':'));
        match behind {
            Some(name) => Named::Adapter(name.strip_prefix(':').unwrap_or(name).to_owned()),
            None => Named::Adapter(model.to_owned()),
        }
    }

    /// Whether an adapter of that name could never be asked for, and why.
    pub(crate) fn clashes(&self, name: &str) -> Option<String> {
        self.base.iter().any(|base| base == name).then(|| "the base is named so".to_owned())
    }

    /// The template of an adapter, or of the base.
    pub(crate) fn format(&self, adapter: Option<&str>) -> Option<Arc<ChatFormat>> {
        let own = self.own_formats.read().unwrap_or_else(PoisonError::into_inner);
        adapter.and_then(|name| own.get(name).cloned()).or_else(|| self.base_format.clone())
    }

    /// The template for a conversation.
    pub(crate) fn chat_format(&self, adapter: Option<&str>) -> Result<Arc<ChatFormat>, ApiError> {
        self.format(adapter).ok_or_else(|| {
            ApiError::unsupported("messages", "this model has no chat template: use /v1/completions")
        })
    }

    /// An adapter has come, perhaps with a template of its own.
    pub(crate) fn set_format(&self, adapter: &str, format: Option<ChatFormat>) {
        let mut own = self.own_formats.write().unwrap_or_else(PoisonError::into_inner);
        match format {
            Some(format) => drop(own.insert(adapter.to_owned(), Arc::new(format))),
            None => drop(own.remove(adapter)),
        }
    }
}

/// Whether an adapter can have that name: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
pub fn is_adapter_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_base_or_one_adapter() {
        let catalogue = Catalogue::new(vec!["owner/tiny".into(), "t:1".into()], None);
        let adapter = |name: &str| Named::Adapter(name.into());
        for (model, named) in [
            ("owner/tiny", Named::Base),
            ("t:1", Named::Base),
            ("colours", adapter("colours")),
            ("owner/tiny:colours", adapter("colours")),
            ("owner/tiny::colours", adapter("colours")),
            ("t:1:colours", adapter("colours")),
            ("owner/tinycolours", adapter("owner/tinycolours")),
            ("owner/tiny:", adapter("")),
            ("other:colours", adapter("other:colours")),
        ] {
            assert_eq!(catalogue.named(model), named, "{model}");
        }
        assert!(catalogue.clashes("owner/tiny").is_some() && catalogue.clashes("x").is_none());
    }

    #[test]
    fn names_of_adapters_are_no_paths() {
        for name in ["a", "0", "my-adapter_v1.2", &"x".repeat(128)] {
            assert!(is_adapter_name(name), "{name}");
        }
        for name in ["", ".", "..", "../a", "a/b", "a\\b", "-a", "_a", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(!is_adapter_name(name), "{name}");
        }
    }
}
