//! Ollama's lines of JSON.

use super::now;
use crate::error::{ApiError, json_response};
use crate::run::{Run, finish_reason};
use crate::tools::{Said, ToolParser};
use crate::wire::Wire;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use taper_infer::{Event, Finished};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Generate,
    Chat,
}

/// One text.
pub(super) struct OllamaWire {
    kind: Kind,
    model: String,
    prompt_ids: Vec<u32>,
    parser: Option<ToolParser>,
    started: Instant,
    end: Option<Value>,
}

impl OllamaWire {
    pub(super) fn new(kind: Kind, model: String, prompt_ids: Vec<u32>, parser: Option<ToolParser>) -> Self {
        Self { kind, model, prompt_ids, parser, started: Instant::now(), end: None }
    }

    /// What an event says, and the end's numbers put aside.
    fn said(&mut self, event: Event) -> Vec<Said> {
        match event {
            Event::Prompt(_) | Event::Failed(_) => Vec::new(),
            Event::Piece(piece) => match &mut self.parser {
                Some(parser) => parser.push(&piece.text),
                None if piece.text.is_empty() => Vec::new(),
                None => vec![Said::Text(piece.text)],
            },
            Event::Finished(finished) => {
                self.end = Some(self.numbers(&finished));
                self.parser.as_mut().map(ToolParser::finish).unwrap_or_default()
            }
        }
    }

    /// An object with a text and perhaps calls.
    fn object(&self, text: &str, calls: Vec<Value>) -> Value {
        let mut object = json!({ "model": self.model, "created_at": now() });
        match self.kind {
            Kind::Generate => object["response"] = text.into(),
            Kind::Chat => {
                object["message"] = json!({ "role": "assistant", "content": text });
                if !calls.is_empty() {
                    object["message"]["tool_calls"] = calls.into();
                }
            }
        }
        object["done"] = false.into();
        object
    }

    /// The keys of the last object.
    fn numbers(&self, finished: &Finished) -> Value {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let completion = &finished.completion;
        let mut numbers = json!({
            "done": true,
            "done_reason": finish_reason(finished),
            "total_duration": nanos(self.started.elapsed()),
            "load_duration": 0,
            "prompt_eval_count": completion.prompt_tokens,
            "prompt_eval_duration": nanos(finished.times.prompt),
            "eval_count": completion.completion_tokens(),
            "eval_duration": nanos(finished.times.writing),
        });
        if self.kind == Kind::Generate {
            let context: Vec<u32> = self.prompt_ids.iter().chain(&completion.token_ids).copied().collect();
            numbers["context"] = json!(context);
        }
        numbers
    }

    /// The last object, behind `text` and `calls` where they have not been told yet.
    fn last(&mut self, text: &str, calls: Vec<Value>) -> Value {
        let mut object = self.object(text, calls);
        if let (Some(Value::Object(numbers)), Some(object)) = (self.end.take(), object.as_object_mut()) {
            object.extend(numbers);
        }
        object
    }
}

fn call(said: &crate::tools::ToolCall) -> Value {
    json!({ "function": { "name": said.name, "arguments": said.arguments } })
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

impl Wire for OllamaWire {
    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn event(&mut self, _: usize, event: Event) -> Vec<Bytes> {
        let said = self.said(event);
        said.into_iter()
            .map(|one| match one {
                Said::Text(text) => line(&self.object(&text, Vec::new())),
                Said::Call(made) => line(&self.object("", vec![call(&made)])),
            })
            .collect()
    }

    fn close(&mut self) -> Vec<Bytes> {
        vec![line(&self.last("", Vec::new()))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![line(&json!({ "error": error.message }))]
    }
}

/// Wait for the text and tell it as one object.
pub(super) async fn answer(mut run: Run, mut wire: OllamaWire) -> Result<Response<Body>, ApiError> {
    let (mut text, mut calls) = (String::new(), Vec::new());
    while let Some((_, event)) = run.next().await? {
        for one in wire.said(event) {
            match one {
                Said::Text(piece) => text.push_str(&piece),
                Said::Call(made) => calls.push(call(&made)),
            }
        }
    }
    Ok(json_response(StatusCode::OK, &wire.last(&text, calls)))
}
