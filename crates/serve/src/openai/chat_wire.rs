//! Chat's chunks.

use super::logprobs::TokenTexts;
use super::{Head, sse, sse_done, sse_keep_alive, usage_json};
use crate::error::ApiError;
use crate::run::{Usage, finish_reason};
use crate::tools::{Said, ToolCall, ToolParser};
use crate::wire::Wire;
use axum::body::Bytes;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use taper_infer::{Event, Finished, Piece, StopCause, WrittenToken};
use taper_text::Tokenizer;

const OBJECT: &str = "chat.completion.chunk";

/// What is known of the texts of a conversation's answer, and how it is told.
pub(super) struct ChatWire {
    pub(super) head: Head,
    tokenizer: Arc<Tokenizer>,
    pub(super) choices: Vec<Choice>,
    pub(super) logprobs: bool,
    include_usage: bool,
    stop_ids: Vec<u32>,
    pub(super) usage: Usage,
}

/// One text.
#[derive(Default)]
pub(super) struct Choice {
    parser: Option<ToolParser>,
    calls: usize,
    /// Tokens whose text has not been told.
    tokens: Vec<WrittenToken>,
}

/// What an event adds to a choice.
#[derive(Default)]
pub(super) struct News {
    pub(super) said: Vec<Said>,
    pub(super) tokens: Vec<WrittenToken>,
    /// The finish reason and what stopped it, at the end.
    pub(super) end: Option<(&'static str, Value)>,
}

impl ChatWire {
    pub(super) fn new(
        head: Head,
        tokenizer: Arc<Tokenizer>,
        parsers: Vec<Option<ToolParser>>,
        logprobs: bool,
        include_usage: bool,
        stop_ids: Vec<u32>,
    ) -> Self {
        let choices = parsers.into_iter().map(|parser| Choice { parser, ..Choice::default() }).collect();
        Self { head, tokenizer, choices, logprobs, include_usage, stop_ids, usage: Usage::default() }
    }

    /// Take an event in.
    pub(super) fn news(&mut self, index: usize, event: Event) -> News {
        match event {
            Event::Prompt(_) | Event::Failed(_) => News::default(),
            Event::Piece(piece) => self.piece(index, piece),
            Event::Finished(finished) => self.finished(index, &finished),
        }
    }

    fn piece(&mut self, index: usize, piece: Piece) -> News {
        let Some(choice) = self.choices.get_mut(index) else { return News::default() };
        let said = match &mut choice.parser {
            Some(parser) => parser.push(&piece.text),
            None if piece.text.is_empty() => Vec::new(),
            None => vec![Said::Text(piece.text)],
        };
        News { said, tokens: if self.logprobs { piece.tokens } else { Vec::new() }, end: None }
    }

    fn finished(&mut self, index: usize, finished: &Finished) -> News {
        let completion = &finished.completion;
        // All choices have the same prompt, which was read once.
        self.usage.prompt = completion.prompt_tokens;
        self.usage.cached = self.usage.cached.max(finished.cached_tokens.min(completion.prompt_tokens));
        self.usage.completion += completion.completion_tokens();
        let Some(choice) = self.choices.get_mut(index) else { return News::default() };
        let said = choice.parser.as_mut().map(ToolParser::finish).unwrap_or_default();
        let called = choice.parser.as_ref().is_some_and(ToolParser::has_calls);
        let reason = match finish_reason(finished) {
            "stop" if called => "tool_calls",
            reason => reason,
        };
        News { said, tokens: Vec::new(), end: Some((reason, stop_reason(finished, &self.stop_ids))) }
    }

    /// The log-probabilities of tokens; null where nobody asked.
    pub(super) fn logprobs_json(&self, tokens: &[WrittenToken]) -> Value {
        match self.logprobs {
            true => TokenTexts::new(&self.tokenizer).of_chat(tokens),
            false => Value::Null,
        }
    }

    fn chunk(&self, choices: &[Value], usage: Value) -> Bytes {
        let mut chunk = self.head.object(OBJECT, choices);
        if self.include_usage {
            chunk["usage"] = usage;
        }
        sse(&chunk)
    }

    fn delta(
        &self,
        index: usize,
        delta: &Value,
        logprobs: &Value,
        finish: Option<&str>,
        stop: Option<Value>,
    ) -> Bytes {
        let mut choice =
            json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        if let Some(stop) = stop {
            choice["stop_reason"] = stop;
        }
        self.chunk(&[choice], Value::Null)
    }
}

impl Wire for ChatWire {
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }

    fn open(&mut self) -> Vec<Bytes> {
        let role = json!({ "role": "assistant", "content": "" });
        (0..self.choices.len()).map(|i| self.delta(i, &role, &Value::Null, None, None)).collect()
    }

    fn event(&mut self, index: usize, event: Event) -> Vec<Bytes> {
        let News { said, tokens, end } = self.news(index, event);
        // Tokens are told with the text that they made certain, or with the end.
        let mut tokens = match self.choices.get_mut(index) {
            Some(choice) => {
                choice.tokens.extend(tokens);
                if said.is_empty() && end.is_none() { Vec::new() } else { std::mem::take(&mut choice.tokens) }
            }
            None => Vec::new(),
        };
        let mut chunks = Vec::new();
        for one in said {
            let logprobs = match tokens.is_empty() {
                true => Value::Null,
                false => self.logprobs_json(&std::mem::take(&mut tokens)),
            };
            let delta = match one {
                Said::Text(text) => json!({ "content": text }),
                Said::Call(call) => {
                    let place = self.choices[index].calls;
                    self.choices[index].calls += 1;
                    json!({ "tool_calls": [call_json(&call, Some(place))] })
                }
            };
            chunks.push(self.delta(index, &delta, &logprobs, None, None));
        }
        if let Some((reason, stop)) = end {
            let logprobs = if tokens.is_empty() { Value::Null } else { self.logprobs_json(&tokens) };
            chunks.push(self.delta(index, &json!({}), &logprobs, Some(reason), Some(stop)));
        }
        chunks
    }

    fn close(&mut self) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        if self.include_usage {
            chunks.push(self.chunk(&[], usage_json(self.usage)));
        }
        chunks.push(sse_done());
        chunks
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![sse(&error.to_json()), sse_done()]
    }

    fn keep_alive(&self) -> Option<Bytes> {
        Some(sse_keep_alive())
    }
}

/// A call in an answer, or with its place in a chunk.
pub(super) fn call_json(call: &ToolCall, place: Option<usize>) -> Value {
    let mut object = Map::new();
    if let Some(place) = place {
        object.insert("index".into(), place.into());
    }
    object.insert("id".into(), call.id.clone().into());
    object.insert("type".into(), "function".into());
    let arguments = Value::Object(call.arguments.clone()).to_string();
    object.insert("function".into(), json!({ "name": call.name, "arguments": arguments }));
    object.into()
}

/// What the client stopped at: its string or its token. Null for the model's own end.
pub(super) fn stop_reason(finished: &Finished, stop_ids: &[u32]) -> Value {
    match &finished.stop {
        Some(StopCause::Text(text)) => text.as_str().into(),
        Some(StopCause::Token(id)) if stop_ids.contains(id) => (*id).into(),
        _ => Value::Null,
    }
}
