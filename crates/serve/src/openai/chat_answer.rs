//! Chat's whole answer.

use super::chat_wire::{ChatWire, call_json};
use super::usage_json;
use crate::error::{ApiError, json_response};
use crate::run::Run;
use crate::tools::Said;
use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use taper_infer::WrittenToken;

/// What has been gathered of one text.
#[derive(Default)]
struct Gathered {
    text: String,
    calls: Vec<Value>,
    tokens: Vec<WrittenToken>,
    end: Option<(&'static str, Value)>,
}

/// Wait for all texts and tell them at once.
pub(super) async fn answer(mut run: Run, mut wire: ChatWire) -> Result<Response<Body>, ApiError> {
    let mut all: Vec<Gathered> = wire.choices.iter().map(|_| Gathered::default()).collect();
    while let Some((index, event)) = run.next().await? {
        let news = wire.news(index, event);
        let Some(gathered) = all.get_mut(index) else { continue };
        for one in news.said {
            match one {
                Said::Text(text) => gathered.text.push_str(&text),
                Said::Call(call) => gathered.calls.push(call_json(&call, None)),
            }
        }
        gathered.tokens.extend(news.tokens);
        gathered.end = news.end.or(gathered.end.take());
    }
    let choices: Vec<Value> =
        all.into_iter().enumerate().map(|(index, gathered)| choice(&wire, index, gathered)).collect();
    let mut body = wire.head.object("chat.completion", &choices);
    body["usage"] = usage_json(wire.usage);
    Ok(json_response(StatusCode::OK, &body))
}

fn choice(wire: &ChatWire, index: usize, gathered: Gathered) -> Value {
    let Gathered { text, calls, tokens, end } = gathered;
    let (reason, stop) = end.unwrap_or(("stop", Value::Null));
    // A message that is nothing but calls has no content.
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    let mut message = json!({ "role": "assistant", "content": content });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    json!({
        "index": index,
        "message": message,
        "logprobs": wire.logprobs_json(&tokens),
        "finish_reason": reason,
        "stop_reason": stop,
    })
}
