//! OpenAI's API, with vLLM's extras.

mod chat;
mod chat_answer;
mod chat_wire;
mod completion_wire;
mod completions;
mod logprobs;
mod messages;
mod models;
mod tokenize;
mod unserved;

pub(crate) use chat::{chat, render_prompt, unreadable};
pub(crate) use completions::completions;
pub(crate) use messages::{MessageStyle, messages};
pub(crate) use models::{list_models, lora_adapters, one_model};
pub(crate) use tokenize::{detokenize, tokenize};

use crate::app::{App, unix_seconds};
use crate::request_id;
use crate::run::Usage;
use axum::body::Bytes;
use serde_json::{Value, json};

/// What all answers and chunks of one request begin with.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    fn new(prefix: &str, model: &str) -> Self {
        let id = format!("{prefix}-{}", request_id::random(28));
        Self { id, created: unix_seconds(), model: model.to_owned() }
    }

    /// An answer or chunk of that kind.
    fn object(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}

/// A server-sent event.
fn sse(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// The last event of every stream that did not fail.
fn sse_done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// A comment, which clients pass over.
fn sse_keep_alive() -> Bytes {
    Bytes::from_static(b": keep-alive\n\n")
}

/// Say what a prompt was, where the one who runs the server asked for that.
pub(crate) fn log_prompt(app: &App, request_id: &str, prompt: &str) {
    if app.options.log_prompts {
        tracing::info!(request_id, prompt, "prompt");
    }
}
