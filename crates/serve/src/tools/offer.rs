//! The `tools` and `tool_choice` of a request.

use super::ToolFormat;
use crate::fields::{Fields, shown};
use crate::limits::Limits;
use serde_json::{Map, Value, json};

/// Whether the model may, must or must not call a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    /// It has to call one.
    Required,
    /// It has to call this one.
    Named(String),
}

/// The tools of a request, as the template is given them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    pub(crate) tools: Vec<Value>,
    pub(crate) choice: ToolChoice,
    /// Whether several calls may stand in one answer.
    pub(crate) parallel: bool,
}

impl Offer {
    /// Each tool's name with the schema of its arguments.
    pub(crate) fn signatures(&self) -> Vec<(&str, Value)> {
        self.tools
            .iter()
            .filter_map(|tool| {
                let function = tool.get("function")?;
                // OpenAI: without parameters, a function takes none.
                let none = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
                let parameters = function.get("parameters").filter(|parameters| !parameters.is_null());
                Some((function.get("name")?.as_str()?, parameters.cloned().unwrap_or_else(none)))
            })
            .collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.signatures().into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    /// The schema that the call has to have, where one has to be made.
    pub(crate) fn forced_schema(&self, format: ToolFormat) -> Option<Value> {
        let mut tools = self.signatures();
        match &self.choice {
            ToolChoice::None | ToolChoice::Auto => return None,
            ToolChoice::Required => {}
            ToolChoice::Named(name) => tools.retain(|(known, _)| known == name),
        }
        Some(format.call_schema(&tools))
    }
}

/// The tools of a request; `None` where there are none, or none may be called.
pub(crate) fn offered(fields: &mut Fields<'_>, limits: &Limits) -> Option<Offer> {
    let tools = fields.list("tools", limits.tools).unwrap_or_default().to_vec();
    if Value::Array(tools.clone()).to_string().len() > limits.tools_bytes {
        fields.refuse("tools", format!("`tools` are larger than {} bytes", limits.tools_bytes));
        return None;
    }
    for (i, tool) in tools.iter().enumerate() {
        if let Err(what) = check(tool) {
            fields.refuse("tools", format!("`tools[{i}]` {what}"));
        }
    }
    let parallel = fields.boolean("parallel_tool_calls").unwrap_or(true);
    let choice = choice(fields, tools.is_empty());
    let offer = Offer { tools, choice, parallel };
    if let ToolChoice::Named(name) = &offer.choice
        && !offer.names().contains(name)
    {
        fields.refuse("tool_choice", format!("`tool_choice` names `{name}`, which is none of `tools`"));
    }
    (!offer.tools.is_empty() && offer.choice != ToolChoice::None).then_some(offer)
}

fn choice(fields: &mut Fields<'_>, without_tools: bool) -> ToolChoice {
    let choice = match fields.get("tool_choice") {
        None => return if without_tools { ToolChoice::None } else { ToolChoice::Auto },
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return bad_choice(fields),
        },
        Some(named) => match named.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => return bad_choice(fields),
        },
    };
    if without_tools && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        fields.refuse("tool_choice", "`tool_choice` asks for a call, and there are no `tools`");
    }
    choice
}

fn bad_choice(fields: &mut Fields<'_>) -> ToolChoice {
    let message = "`tool_choice` must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}";
    fields.refuse("tool_choice", message);
    ToolChoice::None
}

fn check(tool: &Value) -> Result<(), String> {
    let Some(object) = tool.as_object() else {
        return Err(format!("must be an object, not {}", shown(tool)));
    };
    if object.get("type").is_some_and(|kind| kind != "function") {
        return Err("must have the type `function`".into());
    }
    let Some(function) = object.get("function").and_then(Value::as_object) else {
        return Err("must have a `function`".into());
    };
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
        return Err("must have a `function.name` of 1 to 64 letters, digits, `_`, `-` or `.`".into());
    }
    if function.get("description").is_some_and(|text| !text.is_string() && !text.is_null()) {
        return Err("has a `function.description` that is no string".into());
    }
    match function.get("parameters") {
        None | Some(Value::Object(Map { .. }) | Value::Null) => Ok(()),
        Some(other) => Err(format!("has `function.parameters` that are no object: {}", shown(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<Option<Offer>, String> {
        let mut fields = Fields::new(body.as_object().unwrap());
        let offer = offered(&mut fields, &Limits::default());
        fields.finish().map(|()| offer).map_err(|e| e.message)
    }

    fn tool(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object" } } })
    }

    #[test]
    fn tools_are_offered_unless_none_may_be_called() {
        assert_eq!(read(&json!({})), Ok(None));
        assert_eq!(read(&json!({ "tools": [], "tool_choice": "auto" })), Ok(None));
        assert_eq!(read(&json!({ "tools": [tool("f")], "tool_choice": "none" })), Ok(None));
        let offer = read(&json!({ "tools": [tool("f"), tool("g")] })).unwrap().unwrap();
        assert_eq!((offer.choice.clone(), offer.parallel), (ToolChoice::Auto, true));
        assert_eq!(offer.names(), ["f", "g"]);
        assert_eq!(offer.forced_schema(ToolFormat::Hermes), None);
        let named = json!({ "type": "function", "function": { "name": "g" } });
        let offer = read(&json!({ "tools": [tool("f"), tool("g")], "tool_choice": named })).unwrap().unwrap();
        let schema = offer.forced_schema(ToolFormat::Hermes).unwrap();
        assert_eq!(schema["properties"]["name"], json!({ "const": "g" }));
    }

    #[test]
    fn a_tool_without_parameters_takes_none() {
        for function in [json!({ "name": "f" }), json!({ "name": "f", "parameters": null })] {
            let tools = json!([{ "type": "function", "function": function }]);
            let offer = read(&json!({ "tools": tools })).unwrap().unwrap();
            assert_eq!(offer.signatures()[0].1["additionalProperties"], json!(false));
        }
    }

    #[test]
    fn what_is_no_tool_is_refused() {
        for (body, says) in [
            (json!({ "tools": "f" }), "`tools` must be a list"),
            (json!({ "tools": [3] }), "`tools[0]` must be an object"),
            (json!({ "tools": [{ "type": "retrieval" }] }), "the type `function`"),
            (json!({ "tools": [{ "type": "function" }] }), "must have a `function`"),
            (json!({ "tools": [tool("a b")] }), "1 to 64 letters"),
            (json!({ "tools": [tool("f")], "tool_choice": "maybe" }), "`tool_choice` must be"),
            (json!({ "tools": [tool("f")], "tool_choice": {} }), "`tool_choice` must be"),
            (json!({ "tool_choice": "required" }), "there are no `tools`"),
            (
                json!({ "tools": [tool("f")], "tool_choice": { "function": { "name": "g" } } }),
                "which is none of `tools`",
            ),
        ] {
            let message = read(&body).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
