//! A message of a conversation, with all that its author wrote: the template decides what it reads.

use crate::{Error, Result};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Content {
    /// The message has no `content` key, as an assistant's message that only calls tools.
    #[default]
    Absent,
    /// `content` is null.
    Null,
    /// A string, the usual case.
    Text(String),
    /// A list of parts such as `{"type": "text", "text": "..."}`, handed to the template as it is.
    Parts(Vec<Value>),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// One message as the chat template sees it.
///
/// Read from and written to JSON as an object with `role`, `content` and any other keys (`name`, `tool_calls`,
/// `tool_call_id`, `reasoning_content`, ...), which are kept in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What it says.
    pub content: Content,
    /// Every other key.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with a text and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<Content>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// A message from its JSON object.
    ///
    /// # Errors
    /// When it is no object, `role` is no string, or `content` is neither a string, a list, null nor absent.
    pub fn from_value(value: Value) -> Result<Self> {
        let Value::Object(mut object) = value else {
            return Err(bad("an object", &value));
        };
        let role = match object.shift_remove("role") {
            Some(Value::String(role)) => role,
            Some(other) => return Err(bad("an object whose `role` is a string", &other)),
            None => return Err(bad("an object with a `role`", &Value::Object(object))),
        };
        let content = match object.shift_remove("content") {
            None => Content::Absent,
            Some(Value::Null) => Content::Null,
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(parts)) => Content::Parts(parts),
            Some(other) => {
                return Err(bad("an object whose `content` is a string or a list of parts", &other));
            }
        };
        Ok(Self { role, content, extra: object })
    }

    /// The text of the message: the string, or its text parts one after the other. `None` when there is none.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match &self.content {
            Content::Absent | Content::Null => None,
            Content::Text(text) => Some(Cow::Borrowed(text)),
            Content::Parts(parts) => {
                Some(Cow::Owned(parts.iter().filter_map(|p| p.get("text")?.as_str()).collect()))
            }
        }
    }

    /// Whether it is the assistant's, the one that training is about.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Whether it calls a tool.
    pub fn has_tool_calls(&self) -> bool {
        match self.extra.get("tool_calls") {
            Some(Value::Array(calls)) => !calls.is_empty(),
            Some(Value::Null) | None => false,
            Some(_) => true,
        }
    }
}

impl Message {
    /// The names of the tools it calls, in the layout of OpenAI or flat.
    pub(crate) fn tool_names(&self) -> impl Iterator<Item = &str> {
        let calls = self.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        calls.filter_map(|call| call.get("function").unwrap_or(call).get("name")?.as_str())
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.role)?;
        match &self.content {
            Content::Absent => {}
            Content::Null => map.serialize_entry("content", &())?,
            Content::Text(text) => map.serialize_entry("content", text)?,
            Content::Parts(parts) => map.serialize_entry("content", parts)?,
        }
        for (key, value) in &self.extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn bad(expected: &'static str, given: &Value) -> Error {
    Error::BadMessage { expected, given: describe(given) }
}

/// A JSON value in a few words.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("`{n}`"),
        Value::String(s) if s.chars().count() <= 40 => format!("`{s}`"),
        Value::String(_) => "a long string".into(),
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(o) => format!("an object with {} keys", o.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_every_key_it_came_with() {
        let text =
            r#"{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f"}}],"weight":0}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert!(message.has_tool_calls() && message.text().is_none());
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        let absent: Message = serde_json::from_str(r#"{"role":"assistant"}"#).unwrap();
        assert_eq!(serde_json::to_string(&absent).unwrap(), r#"{"role":"assistant"}"#);
    }

    #[test]
    fn what_is_no_message_is_refused_with_what_it_is() {
        for (text, says) in [
            ("3", "must be an object, not `3`"),
            (r#"{"content":"x"}"#, "with a `role`"),
            (r#"{"role":1,"content":"x"}"#, "`role` is a string, not `1`"),
            (r#"{"role":"user","content":5}"#, "list of parts, not `5`"),
        ] {
            let error = serde_json::from_str::<Message>(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_text_of_parts_is_their_texts_in_order() {
        let message: Message = serde_json::from_str(
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"}]}"#,
        )
        .unwrap();
        assert_eq!(message.text().unwrap(), "ab");
    }
}
