//! `/api/generate` and `/api/chat`: from the request to the service.

use super::wire::{Kind, OllamaWire, answer};
use super::without_latest;
use crate::app::App;
use crate::body;
use crate::catalogue::ChatFormat;
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use crate::grammar::{Form, checked_schema};
use crate::openai::{MessageStyle, log_prompt, messages, render_prompt, unreadable};
use crate::prompt::{self, Asked, Room};
use crate::run::{About, Run};
use crate::sampling;
use crate::tools::{ToolParser, offered};
use crate::wire::streamed;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use taper_infer::{GenerationConfig, Grammar, ServiceRequest};
use taper_text::{Message, RenderOptions};

enum Job {
    /// Nothing is asked: the model is in memory, and that is all there is to say.
    Load(Value),
    Run {
        about: About,
        request: Box<ServiceRequest>,
        wire: Box<OllamaWire>,
        stream: bool,
    },
}

/// Continue a prompt.
pub(crate) async fn generate(
    app: Arc<App>,
    request_id: String,
    bytes: Bytes,
) -> Result<Response<Body>, ApiError> {
    let job = app.blocking(move |app| prepare_generate(app, request_id, &bytes)).await?;
    serve(&app, job).await
}

/// Answer a conversation.
pub(crate) async fn chat(
    app: Arc<App>,
    request_id: String,
    bytes: Bytes,
) -> Result<Response<Body>, ApiError> {
    let job = app.blocking(move |app| prepare_chat(app, request_id, &bytes)).await?;
    serve(&app, job).await
}

async fn serve(app: &Arc<App>, job: Job) -> Result<Response<Body>, ApiError> {
    match job {
        Job::Load(told) => Ok(json_response(StatusCode::OK, &told)),
        Job::Run { about, request, wire, stream } => {
            let run = Run::start(app, about, vec![*request])?;
            if stream { Ok(streamed(run, *wire)) } else { answer(run, *wire).await }
        }
    }
}

/// The request with a model's name that has no `:latest`.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let mut object = body::object(bytes)?;
    if let Some(Value::String(model)) = object.get_mut("model") {
        *model = without_latest(model).to_owned();
    }
    Ok(object)
}

/// What both kinds ask alike.
struct Common {
    asked: Asked,
    config: GenerationConfig,
    room: Room,
    form: Option<Form>,
    stream: bool,
}

fn common(app: &App, fields: &mut Fields<'_>, asked: Asked, stop_ids: &[u32]) -> Common {
    let empty = Map::new();
    let options = fields.object("options").unwrap_or(&empty);
    let mut inner = Fields::within(options, "options");
    let config = sampling::ollama(app, &mut inner, stop_ids);
    let predict = inner.integer("num_predict", -2..=i64::from(i32::MAX));
    let context = inner.count("num_ctx", 1..=i32::MAX as usize);
    fields.absorb(inner);
    if predict == Some(0) {
        fields.refuse("options.num_predict", "`options.num_predict` must be above 0, or -1 for no limit");
    }
    for (key, instead) in [
        ("template", ": the checkpoint's own is used"),
        ("suffix", ": no text is put between two others"),
        ("images", ": this model takes text alone"),
        ("logprobs", ": use /v1/chat/completions"),
        ("top_logprobs", ": use /v1/chat/completions"),
    ] {
        fields.unserved(key, &["".into(), false.into(), 0.into()], instead);
    }
    let form = format(fields, app.options.limits.schema_bytes);
    let asked_tokens = predict.and_then(|n| usize::try_from(n).ok());
    let room = Room { asked: asked_tokens, default: None, context, cut: true };
    Common { asked, config, room, form, stream: fields.boolean("stream").unwrap_or(true) }
}

/// `"json"` or a schema.
fn format(fields: &mut Fields<'_>, most_bytes: usize) -> Option<Form> {
    let grammar = match fields.get("format")? {
        Value::String(format) if format.is_empty() => return None,
        Value::String(format) if format == "json" => Grammar::JsonObject,
        schema => match checked_schema(schema, most_bytes) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(_) => {
                let message = format!("`format` must be \"json\" or a schema of {most_bytes} bytes at most");
                fields.refuse("format", message);
                return None;
            }
        },
    };
    Some(Form { grammar, param: "format" })
}

/// `think`, for templates that can be told.
fn thinking(fields: &mut Fields<'_>, format: Option<&ChatFormat>) -> Map<String, Value> {
    let mut kwargs = Map::new();
    if let Some(think) = fields.boolean("think") {
        let knows = format.is_some_and(|format| format.template.has_text("enable_thinking"));
        if knows {
            kwargs.insert("enable_thinking".into(), think.into());
        } else if think {
            fields.refuse("think", "`think` is not supported: this model's chat template does not know it");
        }
    }
    kwargs
}

/// Without a prompt or messages it is only asked that the model be in memory, or out of it.
fn load(app: &App, fields: &mut Fields<'_>, asked: &Asked, kind: Kind) -> Result<Job, ApiError> {
    let out = fields.get("keep_alive").is_some_and(|keep| keep == 0 || keep == "0" || keep == "0s");
    if out {
        let message = "the model stays in memory for as long as the server runs";
        fields.refuse("keep_alive", message);
    }
    prompt::load(app, asked)?;
    let mut told = json!({ "model": asked.model, "created_at": super::now() });
    match kind {
        Kind::Generate => told["response"] = "".into(),
        Kind::Chat => told["message"] = json!({ "role": "assistant", "content": "" }),
    }
    told["done"] = true.into();
    told["done_reason"] = "load".into();
    Ok(Job::Load(told))
}

fn prepare_generate(app: &Arc<App>, request_id: String, bytes: &[u8]) -> Result<Job, ApiError> {
    let object = object(bytes)?;
    let mut fields = Fields::new(&object);
    let asked = prompt::asked(app, &mut fields)?;
    let raw = fields.boolean("raw").unwrap_or(false);
    let format = app.catalogue.format(asked.template_of()).filter(|_| !raw);
    let kwargs = thinking(&mut fields, format.as_deref());
    let text = fields.text("prompt", usize::MAX).unwrap_or_default();
    let system = fields.text("system", usize::MAX).filter(|system| !system.is_empty());
    if system.is_some() && format.is_none() {
        fields.refuse("system", "`system` needs a chat template, and none is used");
    }
    if text.is_empty() {
        let job = load(app, &mut fields, &asked, Kind::Generate)?;
        return fields.finish().map(|()| job);
    }
    let before = fields.token_ids("context", app.max_model_len, app.vocab_size);
    let stop_ids = format.as_ref().map(|format| format.stop_ids.clone()).unwrap_or_default();
    let common = common(app, &mut fields, asked, &stop_ids);
    fields.finish()?;
    let ids = match &format {
        Some(format) => {
            let system = system.map(|text| Message::new("system", text));
            let conversation: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
            let options = RenderOptions { add_generation_prompt: true, kwargs, ..RenderOptions::default() };
            let text = render_prompt(format, &conversation, &options)?;
            log_prompt(app, &request_id, &text);
            app.tokenizer.encode(&text, false)
        }
        None => {
            log_prompt(app, &request_id, text);
            taper_text::encode_prompt(&app.tokenizer, text)
        }
    };
    let ids = [before, ids.map_err(unreadable)?].concat();
    job(app, request_id, common, ids, Kind::Generate, None)
}

fn prepare_chat(app: &Arc<App>, request_id: String, bytes: &[u8]) -> Result<Job, ApiError> {
    let object = object(bytes)?;
    let mut fields = Fields::new(&object);
    let asked = prompt::asked(app, &mut fields)?;
    if fields.get("messages").is_none_or(|list| list.as_array().is_some_and(Vec::is_empty)) {
        let job = load(app, &mut fields, &asked, Kind::Chat)?;
        return fields.finish().map(|()| job);
    }
    let format = app.catalogue.chat_format(asked.template_of())?;
    let limits = &app.options.limits;
    let kwargs = thinking(&mut fields, Some(&format));
    let conversation = messages(&mut fields, limits, &format, MessageStyle::Ollama);
    let offer = offered(&mut fields, limits);
    let common = common(app, &mut fields, asked, &format.stop_ids);
    fields.finish()?;
    let parser = match (&offer, format.tools) {
        (None, _) => None,
        (Some(offer), Some(tools)) => Some(ToolParser::new(tools, offer.names(), true)),
        (Some(_), None) => {
            let message = format!("{} does not support tools", common.asked.model);
            return Err(ApiError::unsupported("tools", message));
        }
    };
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: offer.map(|offer| Value::Array(offer.tools)),
        kwargs,
        ..RenderOptions::default()
    };
    let text = render_prompt(&format, &conversation, &options)?;
    log_prompt(app, &request_id, &text);
    let ids = app.tokenizer.encode(&text, false).map_err(unreadable)?;
    job(app, request_id, common, ids, Kind::Chat, parser)
}

fn job(
    app: &App,
    request_id: String,
    common: Common,
    ids: Vec<u32>,
    kind: Kind,
    parser: Option<ToolParser>,
) -> Result<Job, ApiError> {
    let Common { asked, mut config, room, form, stream } = common;
    let grammar = form.map(|form| form.compile(app)).transpose()?;
    prompt::fit(app, &mut config, room, ids.len(), "prompt")?;
    let adapters = prompt::load(app, &asked)?;
    let about = About {
        request_id,
        kind: match kind {
            Kind::Generate => "ollama generate",
            Kind::Chat => "ollama chat",
        },
        model: asked.model.clone(),
        adapters: asked.adapter_names(),
    };
    let wire = Box::new(OllamaWire::new(kind, asked.model, ids.clone(), parser));
    let request = Box::new(ServiceRequest { adapters, grammar, ..ServiceRequest::new(ids, config) });
    Ok(Job::Run { about, request, wire, stream })
}
