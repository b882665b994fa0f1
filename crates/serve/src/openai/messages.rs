//! The `messages` of a conversation as the chat template is given them.

use crate::catalogue::ChatFormat;
use crate::fields::{Fields, shown};
use crate::limits::Limits;
use serde_json::{Map, Value};
use taper_text::{Content, Message};

/// Whose layout of messages is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageStyle {
    /// Arguments of tool calls are a JSON string; contents may be lists of parts.
    OpenAi,
    /// Arguments are an object; pictures stand in `images`.
    Ollama,
}

/// Keys that templates read beside `role` and `content`.
const PASSED: [&str; 5] = ["name", "tool_call_id", "tool_name", "reasoning_content", "thinking"];

/// The conversation; what is wrong with it is told to `fields`.
pub(crate) fn messages(
    fields: &mut Fields<'_>,
    limits: &Limits,
    format: &ChatFormat,
    style: MessageStyle,
) -> Vec<Message> {
    let list = fields.list("messages", limits.messages).unwrap_or_default();
    if list.is_empty() {
        fields.refuse("messages", "`messages` must have at least one message");
        return Vec::new();
    }
    let mut messages = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        match message(value, format, style) {
            Ok(message) => messages.push(message),
            Err(what) => {
                fields.refuse("messages", format!("`messages[{i}]` {what}"));
                return Vec::new();
            }
        }
    }
    messages
}

fn message(value: &Value, format: &ChatFormat, style: MessageStyle) -> Result<Message, String> {
    let Some(object) = value.as_object() else {
        return Err(format!("must be an object, not {}", shown(value)));
    };
    let role = match object.get("role") {
        Some(Value::String(role)) => role.as_str(),
        Some(other) => return Err(format!("has a `role` that is no string: {}", shown(other))),
        None => return Err("has no `role`".into()),
    };
    let role = match role {
        "system" | "user" | "assistant" | "tool" => role,
        // What OpenAI calls the system's messages today.
        "developer" if !format.template.has_text("developer") => "system",
        "developer" => role,
        other => {
            let other: String = other.chars().take(32).collect();
            return Err(format!(
                "has the role `{other}`, known are system, developer, user, assistant and tool"
            ));
        }
    };
    let calls = tool_calls(object, style)?;
    let content = match object.get("content") {
        Some(Value::String(text)) => Content::Text(text.clone()),
        Some(Value::Array(parts)) => Content::Text(joined(parts)?),
        // Templates print null as a word, or fail over it.
        None | Some(Value::Null) if calls.is_some() => Content::Text(String::new()),
        None | Some(Value::Null) => return Err("has no `content`".into()),
        Some(other) => {
            return Err(format!("has a `content` that is neither text nor a list: {}", shown(other)));
        }
    };
    for (key, what) in [("images", "pictures"), ("audio", "sound"), ("function_call", "`function_call`")] {
        let given = object.get(key).filter(|given| !given.is_null());
        if given.is_some_and(|given| given.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(format!("has {what}, which this model does not take"));
        }
    }
    let mut message = Message::new(role, content);
    for key in PASSED {
        match object.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => drop(message.extra.insert(key.to_owned(), text.clone().into())),
            Some(other) => return Err(format!("has a `{key}` that is no string: {}", shown(other))),
        }
    }
    if let Some(calls) = calls {
        message.extra.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(message)
}

/// The texts of a list of parts, a line break between them, as vLLM and llama.cpp join them.
fn joined(parts: &[Value]) -> Result<String, String> {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some("text"), None) => return Err("has a text part without `text`".into()),
            (Some(kind), _) => {
                let kind: String = kind.chars().take(32).collect();
                return Err(format!("has a part of the type `{kind}`, and this model takes text alone"));
            }
            (None, _) => return Err("has a part without a `type`".into()),
        }
    }
    Ok(texts.join("\n"))
}

/// The calls of an assistant's message, their arguments as objects, which is what templates expect.
fn tool_calls(object: &Map<String, Value>, style: MessageStyle) -> Result<Option<Vec<Value>>, String> {
    let calls = match object.get("tool_calls") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(calls)) if calls.is_empty() => return Ok(None),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(format!("has `tool_calls` that are no list: {}", shown(other))),
    };
    let mut read = Vec::with_capacity(calls.len());
    for call in calls {
        let mut call = call.clone();
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let Some(function) = function.filter(|f| f.get("name").is_some_and(Value::is_string)) else {
            return Err("has a tool call without `function.name`".into());
        };
        let arguments = match (function.get("arguments"), style) {
            (None | Some(Value::Null), _) => Value::Object(Map::new()),
            (Some(Value::Object(arguments)), MessageStyle::Ollama) => arguments.clone().into(),
            (Some(Value::String(text)), MessageStyle::OpenAi) => serde_json::from_str(text)
                .ok()
                .filter(Value::is_object)
                .ok_or("has a tool call whose `function.arguments` are no JSON object in a string")?,
            (Some(other), _) => {
                return Err(format!(
                    "has a tool call with `function.arguments` of another type: {}",
                    shown(other)
                ));
            }
        };
        function.insert("arguments".to_owned(), arguments);
        read.push(call);
    }
    Ok(Some(read))
}
