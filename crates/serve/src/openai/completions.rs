//! `/v1/completions`: prompts as they are, with `echo` and `logprobs`, which is what evaluation harnesses score texts by.

use super::chat::{check_minimum, stream_options, unreadable};
use super::completion_wire::{CompletionWire, PromptText, answer};
use super::unserved::refuse_common;
use super::{Head, log_prompt};
use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::fields::{Fields, shown, token_ids};
use crate::grammar::form;
use crate::prompt::{self, Room};
use crate::run::{About, Run};
use crate::sampling;
use crate::wire::streamed;
use axum::body::{Body, Bytes};
use axum::http::Response;
use serde_json::Value;
use std::sync::Arc;
use taper_infer::ServiceRequest;

/// OpenAI's default.
const MAX_TOKENS: usize = 16;

struct CompletionJob {
    about: About,
    requests: Vec<ServiceRequest>,
    wire: CompletionWire,
    stream: bool,
}

/// Continue prompts.
pub(crate) async fn completions(
    app: Arc<App>,
    request_id: String,
    bytes: Bytes,
) -> Result<Response<Body>, ApiError> {
    let job = app.blocking(move |app| prepare(app, request_id, &bytes)).await?;
    let run = Run::start(&app, job.about, job.requests)?;
    if job.stream { Ok(streamed(run, job.wire)) } else { answer(run, job.wire).await }
}

/// What is asked beside the sampling.
struct Wanted {
    n: usize,
    echo: bool,
    logprobs: Option<usize>,
    add_special_tokens: bool,
    cache_salt: Option<String>,
}

fn wanted(app: &App, fields: &mut Fields<'_>) -> Wanted {
    let limits = &app.options.limits;
    refuse_common(fields);
    for (key, instead) in [
        ("suffix", ": no text is put between two others"),
        ("chat_template_kwargs", ": it is for conversations"),
        ("tools", ": use /v1/chat/completions"),
        ("messages", ": use /v1/chat/completions"),
    ] {
        let neutral: &[Value] = if key == "suffix" { &["".into()] } else { &[] };
        fields.unserved(key, neutral, instead);
    }
    fields.text("user", 1024);
    Wanted {
        n: fields.count("n", 1..=limits.choices).unwrap_or(1),
        echo: fields.boolean("echo").unwrap_or(false),
        logprobs: fields.count("logprobs", 0..=limits.top_logprobs),
        add_special_tokens: fields.boolean("add_special_tokens").unwrap_or(true),
        cache_salt: fields.text("cache_salt", 256).map(str::to_owned),
    }
}

fn prepare(app: &Arc<App>, request_id: String, bytes: &[u8]) -> Result<CompletionJob, ApiError> {
    let object = body::object(bytes)?;
    let mut fields = Fields::new(&object);
    let asked = prompt::asked(app, &mut fields)?;
    let wanted = wanted(app, &mut fields);
    let config = sampling::openai(app, &mut fields, &[]);
    let max_tokens = fields.count("max_tokens", 0..=app.max_model_len.max(1 << 31));
    let room = Room { asked: max_tokens, default: Some(MAX_TOKENS), ..Room::default() };
    let form = form(&mut fields, app.options.limits.schema_bytes);
    let (stream, include_usage) = stream_options(&mut fields);
    if max_tokens == Some(0) && !wanted.echo {
        fields.refuse("max_tokens", "`max_tokens` 0 needs `echo: true`: there would be nothing to tell");
    }
    check_minimum(&mut fields, &config, room);
    let stop_ids = config.stop_token_ids.clone();
    let prompts = prompts(app, &mut fields, wanted.n, wanted.add_special_tokens)?;
    fields.finish()?;
    let grammar = form.map(|form| form.compile(app)).transpose()?;
    let adapters = prompt::load(app, &asked)?;
    let mut requests = Vec::with_capacity(prompts.len() * wanted.n);
    for prompt in &prompts {
        let mut config = config.clone();
        prompt::fit(app, &mut config, room, prompt.ids.len(), "prompt")?;
        // Nothing is to be written; the engine writes one token, whose logits it has anyway, and it is not told.
        config.max_new_tokens = config.max_new_tokens.max(1);
        let request = ServiceRequest {
            adapters: adapters.clone(),
            grammar: grammar.clone(),
            logprobs: wanted.logprobs,
            prompt_logprobs: wanted.logprobs.filter(|_| wanted.echo),
            cache_salt: wanted.cache_salt.clone(),
            ..ServiceRequest::new(prompt.ids.clone(), config)
        };
        requests.extend((0..wanted.n as u64).map(|number| ServiceRequest { number, ..request.clone() }));
        log_prompt(app, &request_id, &prompt.text);
    }
    let wire = CompletionWire::new(
        Head::new("cmpl", &asked.model),
        app.tokenizer.clone(),
        &prompts,
        wanted.n,
        super::completion_wire::Told {
            echo: wanted.echo,
            logprobs: wanted.logprobs.is_some(),
            prompt_only: max_tokens == Some(0),
            include_usage,
            stop_ids,
        },
    );
    let about =
        About { request_id, kind: "completion", model: asked.model.clone(), adapters: asked.adapter_names() };
    Ok(CompletionJob { about, requests, wire, stream })
}

/// A string, token ids, or a list of either.
fn prompts(app: &App, fields: &mut Fields<'_>, n: usize, special: bool) -> Result<Vec<PromptText>, ApiError> {
    let expected = "a string, a list of token ids, or a list of either";
    let given =
        fields.get("prompt").ok_or_else(|| ApiError::invalid("prompt", "the request has no `prompt`"))?;
    let list = match given {
        Value::String(_) => std::slice::from_ref(given),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => std::slice::from_ref(given),
        Value::Array(list) if !list.is_empty() => list.as_slice(),
        other => {
            let message = format!("`prompt` must be {expected}, not {}", shown(other));
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let most = app.options.limits.texts;
    if list.len().saturating_mul(n) > most {
        let message =
            format!("{} prompts of {n} texts each are asked for, and {most} texts may be", list.len());
        return Err(ApiError::invalid("prompt", message));
    }
    list.iter().map(|value| one_prompt(app, value, special)).collect()
}

fn one_prompt(app: &App, value: &Value, special: bool) -> Result<PromptText, ApiError> {
    match value {
        Value::String(text) => {
            let ids = match special {
                true => taper_text::encode_prompt(&app.tokenizer, text),
                false => app.tokenizer.encode(text, false),
            };
            Ok(PromptText { text: text.clone(), ids: ids.map_err(unreadable)? })
        }
        Value::Array(list) => match token_ids(list, app.vocab_size) {
            Ok(ids) => Ok(PromptText { text: app.tokenizer.decode(&ids, false).map_err(unreadable)?, ids }),
            Err(other) => {
                let message = format!(
                    "`prompt` has {} where a token id below {} must be",
                    shown(other),
                    app.vocab_size
                );
                Err(ApiError::invalid("prompt", message))
            }
        },
        other => {
            let message =
                format!("`prompt` has {} where a string or a list of token ids must be", shown(other));
            Err(ApiError::invalid("prompt", message))
        }
    }
}
