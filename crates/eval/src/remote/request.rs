//! What a model is asked.

use serde::Serialize;
use serde_json::{Map, Value, json};
use taper_text::Message;

/// A conversation to be continued by one answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Most tokens of the answer; left out, what the server allows.
    pub max_tokens: Option<usize>,
    /// 0 asks for the likeliest answer; left out, the server's own.
    pub temperature: Option<f64>,
    /// Share of the likeliest tokens to draw from; left out, the server's own.
    pub top_p: Option<f64>,
    /// Seed of the draws. Servers promise little of it.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// The tools that may be called, as OpenAI's `tools`.
    pub tools: Option<Value>,
    /// What the answer must look like, as OpenAI's `response_format`.
    pub response_format: Option<Value>,
}

impl ChatRequest {
    /// Ask for the likeliest answer of at most so many tokens.
    pub fn greedy(messages: Vec<Message>, max_tokens: usize) -> Self {
        Self { messages, max_tokens: Some(max_tokens), temperature: Some(0.0), ..Self::default() }
    }

    /// The body, where the limit of tokens is called `limit_key`. `extra` takes the place of what stands there.
    pub(super) fn body(&self, model: &str, limit_key: &str, extra: &Map<String, Value>) -> Value {
        let mut body = Map::new();
        body.insert("model".into(), json!(model));
        body.insert("messages".into(), json!(self.messages));
        let optional = [
            (limit_key, self.max_tokens.map(|limit| json!(limit))),
            ("temperature", self.temperature.map(|temperature| json!(temperature))),
            ("top_p", self.top_p.map(|top_p| json!(top_p))),
            ("seed", self.seed.map(|seed| json!(seed))),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
            ("tools", self.tools.clone()),
            ("response_format", self.response_format.clone()),
        ];
        body.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        body.insert("stream".into(), json!(false));
        body.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        Value::Object(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_stands_in_the_body() {
        let request = ChatRequest::greedy(vec![Message::new("user", "Hi")], 5);
        let messages = json!([{"role": "user", "content": "Hi"}]);
        assert_eq!(
            request.body("m", "max_tokens", &Map::new()),
            json!({"model": "m", "messages": messages, "max_tokens": 5, "temperature": 0.0, "stream": false})
        );
        let full = ChatRequest {
            top_p: Some(0.5),
            seed: Some(7),
            stop: vec!["\n".into()],
            tools: Some(json!([])),
            response_format: Some(json!({"type": "json_object"})),
            ..request
        };
        let extra = json!({"temperature": 1, "reasoning_effort": "low"});
        assert_eq!(
            full.body("m", "max_completion_tokens", extra.as_object().unwrap()),
            json!({"model": "m", "messages": messages, "max_completion_tokens": 5, "temperature": 1, "top_p": 0.5,
                   "seed": 7, "stop": ["\n"], "tools": [], "response_format": {"type": "json_object"},
                   "stream": false, "reasoning_effort": "low"})
        );
    }
}
