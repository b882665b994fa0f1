//! `/v1/chat/completions`: from the request to the service.

use super::chat_answer::answer;
use super::chat_wire::ChatWire;
use super::unserved::refuse_in_chat;
use super::{Head, MessageStyle, log_prompt, messages};
use crate::app::App;
use crate::body;
use crate::catalogue::ChatFormat;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::grammar::{Form, form};
use crate::prompt::{self, Asked, Room};
use crate::run::{About, Run};
use crate::sampling;
use crate::tools::{Offer, ToolParser, offered};
use crate::wire::streamed;
use axum::body::{Body, Bytes};
use axum::http::Response;
use serde_json::Value;
use std::sync::Arc;
use taper_infer::{CompiledGrammar, GenerationConfig, Grammar, ServiceRequest};
use taper_text::{Message, RenderOptions};

/// A request that is ready for the service, and how it is answered.
pub(super) struct ChatJob {
    pub(super) head: Head,
    pub(super) about: About,
    pub(super) requests: Vec<ServiceRequest>,
    /// Reads tool calls out of each text.
    pub(super) parsers: Vec<Option<ToolParser>>,
    pub(super) logprobs: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Ids that the client stops at itself: told as `stop_reason`.
    pub(super) stop_ids: Vec<u32>,
}

/// Answer a conversation.
pub(crate) async fn chat(
    app: Arc<App>,
    request_id: String,
    bytes: Bytes,
) -> Result<Response<Body>, ApiError> {
    let job = app.blocking(move |app| prepare(app, request_id, &bytes)).await?;
    let ChatJob { about, requests, head, parsers, logprobs, stream, include_usage, stop_ids } = job;
    let run = Run::start(&app, about, requests)?;
    let wire = ChatWire::new(head, app.tokenizer.clone(), parsers, logprobs, include_usage, stop_ids);
    if stream { Ok(streamed(run, wire)) } else { answer(run, wire).await }
}

fn prepare(app: &Arc<App>, request_id: String, bytes: &[u8]) -> Result<ChatJob, ApiError> {
    let object = body::object(bytes)?;
    let mut fields = Fields::new(&object);
    let asked = prompt::asked(app, &mut fields)?;
    let format = app.catalogue.chat_format(asked.template_of())?;
    let limits = &app.options.limits;
    refuse_in_chat(&mut fields);
    let offer = offered(&mut fields, limits);
    let config = sampling::openai(app, &mut fields, &format.stop_ids);
    let conversation = messages(&mut fields, limits, &format, MessageStyle::OpenAi);
    let render = render_options(app, &mut fields, &format, offer.as_ref());
    let logprobs = fields.boolean("logprobs").unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=limits.top_logprobs);
    if top.is_some_and(|top| top > 0) && !logprobs {
        fields.refuse("top_logprobs", "`top_logprobs` needs `logprobs: true`");
    }
    let n = fields.count("n", 1..=limits.choices).unwrap_or(1);
    let form = form(&mut fields, limits.schema_bytes);
    let room = Room { asked: max_tokens(&mut fields, app.max_model_len), ..Room::default() };
    let cache_salt = fields.text("cache_salt", 256).map(str::to_owned);
    let (stream, include_usage) = stream_options(&mut fields);
    fields.text("user", 1024);
    check_minimum(&mut fields, &config, room);
    let stop_ids = user_stop_ids(&config, &format);
    fields.finish()?;
    let calls = Calls::new(app, &format, offer, form)?;
    let text = render_prompt(&format, &conversation, &render)? + calls.opening();
    let request = one_request(
        app,
        &asked,
        &text,
        config,
        room,
        Extras { logprobs, top, cache_salt, grammar: calls.grammar.clone() },
    )?;
    log_prompt(app, &request_id, &text);
    let model = asked.model.clone();
    Ok(ChatJob {
        head: Head::new("chatcmpl", &model),
        about: About { request_id, kind: "chat", model, adapters: asked.adapter_names() },
        requests: (0..n as u64).map(|number| ServiceRequest { number, ..request.clone() }).collect(),
        parsers: (0..n).map(|_| calls.parser()).collect(),
        logprobs,
        stream,
        include_usage,
        stop_ids,
    })
}

struct Extras {
    logprobs: bool,
    top: Option<usize>,
    cache_salt: Option<String>,
    grammar: Option<CompiledGrammar>,
}

fn one_request(
    app: &App,
    asked: &Asked,
    text: &str,
    mut config: GenerationConfig,
    room: Room,
    extras: Extras,
) -> Result<ServiceRequest, ApiError> {
    let ids = app.tokenizer.encode(text, false).map_err(unreadable)?;
    prompt::fit(app, &mut config, room, ids.len(), "messages")?;
    Ok(ServiceRequest {
        adapters: prompt::load(app, asked)?,
        logprobs: extras.logprobs.then(|| extras.top.unwrap_or(0)),
        cache_salt: extras.cache_salt,
        grammar: extras.grammar,
        ..ServiceRequest::new(ids, config)
    })
}

/// The tools of a request, what may, must or cannot be called, and the form of the answer.
struct Calls {
    offer: Option<Offer>,
    format: Option<crate::tools::ToolFormat>,
    forced: bool,
    grammar: Option<CompiledGrammar>,
}

impl Calls {
    fn new(
        app: &App,
        format: &ChatFormat,
        offer: Option<Offer>,
        form: Option<Form>,
    ) -> Result<Self, ApiError> {
        let Some(offer) = offer else {
            let grammar = form.map(|form| form.compile(app)).transpose()?;
            return Ok(Self { offer: None, format: None, forced: false, grammar });
        };
        let Some(tools) = format.tools else {
            let why = match format.prints_tools {
                true => "writes tool calls in a format that is not read here",
                false => "does not take tools",
            };
            return Err(ApiError::unsupported("tools", format!("this model's chat template {why}")));
        };
        if let Some(form) = form {
            let message = format!(
                "`{}` beside `tools` is not supported: a tool call has a form of its own",
                form.param
            );
            return Err(ApiError::unsupported(form.param, message));
        }
        let forced = offer
            .forced_schema(tools)
            .map(|schema| Form { grammar: Grammar::JsonSchema(schema), param: "tool_choice" });
        let grammar = forced.map(|form| form.compile(app)).transpose()?;
        Ok(Self { offer: Some(offer), format: Some(tools), forced: grammar.is_some(), grammar })
    }

    /// What stands behind the prompt where a call has to be made.
    fn opening(&self) -> &'static str {
        self.format.filter(|_| self.forced).map_or("", |format| format.opening())
    }

    fn parser(&self) -> Option<ToolParser> {
        let (offer, format) = (self.offer.as_ref()?, self.format?);
        let parser = ToolParser::new(format, offer.names(), offer.parallel);
        Some(if self.forced { parser.opened() } else { parser })
    }
}

fn render_options(
    app: &App,
    fields: &mut Fields<'_>,
    format: &ChatFormat,
    offer: Option<&Offer>,
) -> RenderOptions {
    let continues = fields.boolean("continue_final_message").unwrap_or(false);
    let opens = fields.boolean("add_generation_prompt").unwrap_or(!continues);
    if continues && opens {
        let message = "`continue_final_message` and `add_generation_prompt` exclude each other";
        fields.refuse("continue_final_message", message);
    }
    let mut kwargs = prompt::template_kwargs(app, fields);
    if let Some(effort) = fields.text("reasoning_effort", 32) {
        if format.template.has_text("reasoning_effort") {
            kwargs.insert("reasoning_effort".into(), effort.into());
        } else {
            let message = "`reasoning_effort` is not supported: this model's chat template does not know it";
            fields.refuse("reasoning_effort", message);
        }
    }
    RenderOptions {
        add_generation_prompt: opens,
        continue_final_message: continues,
        tools: offer.map(|offer| Value::Array(offer.tools.clone())),
        kwargs,
        ..RenderOptions::default()
    }
}

/// The text of a conversation; a template that refuses it is the client's to hear of.
pub(crate) fn render_prompt(
    format: &ChatFormat,
    conversation: &[Message],
    options: &RenderOptions,
) -> Result<String, ApiError> {
    format.template.render(conversation, options).map_err(|error| match error {
        taper_text::Error::Render { message, .. } => ApiError::invalid(
            "messages",
            format!("the chat template does not take this conversation: {message}"),
        ),
        taper_text::Error::ContinueFinalMessage { .. } => {
            ApiError::invalid("continue_final_message", error.to_string())
        }
        other => unreadable(other),
    })
}

/// The tokenizer has no tokens for it.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(crate) fn unreadable(error: taper_text::Error) -> ApiError {
    ApiError::malformed(crate::error::without_paths(&error.to_string()))
}

/// `max_completion_tokens`, or `max_tokens`, its old name.
fn max_tokens(fields: &mut Fields<'_>, most: usize) -> Option<usize> {
    // An answer as long as the context can fit no prompt; what is more is told as too long, not as out of range.
    let most = most.max(1 << 31);
    let old = fields.count("max_tokens", 1..=most);
    fields.count("max_completion_tokens", 1..=most).or(old)
}

/// `stream`, and whether a chunk with the usage ends it.
pub(super) fn stream_options(fields: &mut Fields<'_>) -> (bool, bool) {
    let stream = fields.boolean("stream").unwrap_or(false);
    let Some(options) = fields.object("stream_options") else { return (stream, false) };
    let mut inner = Fields::within(options, "stream_options");
    let include_usage = inner.boolean("include_usage").unwrap_or(false);
    inner.unserved("continuous_usage_stats", &[false.into()], "");
    fields.absorb(inner);
    if !stream {
        fields.refuse("stream_options", "`stream_options` needs `stream: true`");
    }
    (stream, include_usage)
}

pub(super) fn check_minimum(fields: &mut Fields<'_>, config: &GenerationConfig, room: Room) {
    if room.asked.is_some_and(|most| config.min_new_tokens > most) {
        fields.refuse("min_tokens", "`min_tokens` is more than `max_tokens`");
    }
}

fn user_stop_ids(config: &GenerationConfig, format: &ChatFormat) -> Vec<u32> {
    config.stop_token_ids.iter().copied().filter(|id| !format.stop_ids.contains(id)).collect()
}
