//! How a model's tool calls are written.

use crate::request_id;
use serde_json::{Value, json};
use taper_text::ChatTemplate;

/// The ways that are read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, anywhere in the text: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// `{"name": ..., "parameters": {...}}` as the whole text: Llama 3.1 and later.
    Llama,
    /// `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]` as the whole text: Mistral up to its v3 tokenizer.
    Mistral,
}

impl ToolFormat {
    /// By what the template's text has; `None` for formats that are not read here.
    pub(crate) fn of_template(template: &ChatTemplate) -> Option<Self> {
        let has = |text: &str| template.has_text(text);
        // Qwen3-Coder's calls look like Hermes' from outside and are no JSON inside.
        if has("<function=") {
            None
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            if has("[ARGS]") { None } else { Some(Self::Mistral) }
        } else if has("\"parameters\"") && has("\"name\"") || has("<|python_tag|>") {
            Some(Self::Llama)
        } else {
            None
        }
    }

    /// A new id for a call. Mistral's templates take nine letters and digits and nothing else.
    pub(crate) fn call_id(self) -> String {
        match self {
            Self::Mistral => request_id::random(9),
            Self::Hermes | Self::Llama => format!("call_{}", request_id::random(24)),
        }
    }

    /// What opens a call, put behind the prompt where the model has to call something.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>\n",
            Self::Llama | Self::Mistral => "",
        }
    }

    /// The schema of a text that is one call of one of the tools.
    pub(crate) fn call_schema(self, tools: &[(&str, Value)]) -> Value {
        let arguments = self.arguments_key();
        let of_tool = |(name, parameters): &(&str, Value)| {
            json!({
                "type": "object",
                "properties": { "name": { "const": name }, arguments: parameters },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = tools.iter().map(of_tool).collect();
        let call = match <[Value; 1]>::try_from(calls) {
            Ok([one]) => one,
            Err(several) => json!({ "anyOf": several }),
        };
        match self {
            Self::Mistral => json!({ "type": "array", "items": call, "minItems": 1, "maxItems": 1 }),
            Self::Hermes | Self::Llama => call,
        }
    }

    fn arguments_key(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            Self::Hermes | Self::Mistral => "arguments",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_schema_of_its_tool() {
        let parameters = json!({ "type": "object" });
        let one = ToolFormat::Llama.call_schema(&[("f", parameters.clone())]);
        assert_eq!(one["properties"], json!({ "name": { "const": "f" }, "parameters": parameters }));
        let two = ToolFormat::Mistral.call_schema(&[("f", parameters.clone()), ("g", parameters)]);
        assert_eq!(two["items"]["anyOf"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn ids_are_what_templates_take() {
        assert_eq!(ToolFormat::Mistral.call_id().len(), 9);
        assert!(ToolFormat::Hermes.call_id().starts_with("call_"));
    }
}
