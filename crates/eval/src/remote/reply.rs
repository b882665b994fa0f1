//! What a server answers to a conversation.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// Most characters of a name that the server gives.
const MAX_NAME_CHARS: usize = 200;

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text. Thoughts that the server tells apart (`reasoning_content`) are no part of it; a refusal is.
    pub text: String,
    /// The tool calls, as the server gives them.
    pub tool_calls: Option<Value>,
    /// Why the answer ended: `stop`, `length`, ...
    pub finish_reason: Option<String>,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Those of them that it had read before.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer, thoughts included.
    pub completion_tokens: Option<u64>,
    /// From sending the request that was answered to the end of the answer; waits and failed attempts are not in it.
    pub latency: Duration,
    /// The model, as the server names it.
    pub model: Option<String>,
}

impl Reply {
    /// Read the first choice, or say what is wrong.
    pub(super) fn read(body: &Value, latency: Duration) -> Result<Self, String> {
        let choice = first_choice(body)?;
        let message = choice.get("message").filter(|message| message.is_object());
        let message = message.ok_or("the first choice has no `message`")?;
        let tool_calls =
            message.get("tool_calls").filter(|calls| calls.as_array().is_some_and(|calls| !calls.is_empty()));
        let usage = &body["usage"];
        Ok(Self {
            text: text(message)?,
            tool_calls: tool_calls.cloned(),
            finish_reason: name(&choice["finish_reason"]),
            prompt_tokens: usage["prompt_tokens"].as_u64(),
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
            completion_tokens: usage["completion_tokens"].as_u64(),
            latency,
            model: name(&body["model"]),
        })
    }
}

/// The first of the choices.
pub(super) fn first_choice(body: &Value) -> Result<&Value, String> {
    let choices = body["choices"].as_array().ok_or("it has no list of `choices`")?;
    choices.first().ok_or_else(|| "its list of `choices` is empty".to_owned())
}

fn text(message: &Value) -> Result<String, String> {
    match &message["content"] {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        // Who calls a tool, or thought until the tokens were spent, says nothing.
        Value::Null => Ok(message["refusal"].as_str().unwrap_or_default().to_owned()),
        _ => Err("the `content` of its message is no text".to_owned()),
    }
}

fn name(value: &Value) -> Option<String> {
    Some(value.as_str()?.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(message: &Value) -> Result<Reply, String> {
        Reply::read(&json!({"choices": [{"message": message, "finish_reason": "stop"}]}), Duration::ZERO)
    }

    #[test]
    fn an_answer_is_read_whole() {
        let body = json!({
            "model": "m-2026", "choices": [{"message": {"role": "assistant", "content": "42", "reasoning_content": "hm"},
            "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 4}}
        });
        let expected = Reply {
            text: "42".into(),
            tool_calls: None,
            finish_reason: Some("stop".into()),
            prompt_tokens: Some(7),
            cached_tokens: Some(4),
            completion_tokens: Some(3),
            latency: Duration::from_secs(1),
            model: Some("m-2026".into()),
        };
        assert_eq!(Reply::read(&body, Duration::from_secs(1)), Ok(expected));
    }

    #[test]
    fn content_comes_in_several_shapes() {
        let text = |message: Value| read(&message).unwrap().text;
        assert_eq!(
            text(json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})),
            "ab"
        );
        assert_eq!(text(json!({"content": null, "reasoning_content": "thought to the limit"})), "");
        assert_eq!(text(json!({"content": null, "refusal": "I cannot"})), "I cannot");
        let called = read(&json!({"content": null, "tool_calls": [{"id": "1"}]})).unwrap();
        assert_eq!((called.text.as_str(), called.tool_calls), ("", Some(json!([{"id": "1"}]))));
    }

    #[test]
    fn any_json_is_an_answer_or_an_error() {
        for (body, what) in [
            (json!(null), "choices"),
            (json!([]), "choices"),
            (json!("choices"), "choices"),
            (json!({"choices": {}}), "choices"),
            (json!({"choices": []}), "empty"),
            (json!({"choices": [3]}), "message"),
            (json!({"choices": [{"message": "x"}]}), "message"),
            (json!({"choices": [{"message": {"content": 3}}]}), "content"),
            (json!({"choices": [{"message": {"content": {"text": "x"}}}]}), "content"),
        ] {
            let error = Reply::read(&body, Duration::ZERO).unwrap_err();
            assert!(error.contains(what), "{body}: {error}");
        }
        let odd = json!({"choices": [{"message": {"content": "x", "tool_calls": 3}, "finish_reason": {}}],
                         "usage": [1], "model": 9});
        let reply = Reply::read(&odd, Duration::ZERO).unwrap();
        assert_eq!((reply.prompt_tokens, reply.finish_reason, reply.model), (None, None, None));
        let negative = json!({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1}});
        assert_eq!(Reply::read(&negative, Duration::ZERO).unwrap().prompt_tokens, None);
    }
}
