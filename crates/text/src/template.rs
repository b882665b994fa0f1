//! The checkpoint's own chat template.

use crate::contained::contained_deep;
use crate::files::{TokenizerFiles, field, read_config, read_template};
use crate::jinja::{self, Clock, is_space};
use crate::message::Content;
use crate::spans::{self, Stop};
use crate::{ContentHash, Error, Message, Result, Tokenizer};
use minijinja::Environment;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use taper_diagnostics::TextSource;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// What transformers writes behind the final message to find its place.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// What a rendering is given beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End with the words that open the assistant's turn.
    pub add_generation_prompt: bool,
    /// End in the middle of the last message, so that it can be continued.
    pub continue_final_message: bool,
    /// The tools the assistant may call, a list of JSON schemas.
    pub tools: Option<Value>,
    /// Documents for templates that know them.
    pub documents: Option<Value>,
    /// Any other variable of the template, for example `enable_thinking`.
    pub kwargs: Map<String, Value>,
}

/// A compiled chat template with the special tokens it may use.
///
/// The dialect is transformers' `apply_chat_template`: see [`crate`]. A template gets `messages`, `tools`, `documents`,
/// `add_generation_prompt`, the special tokens by name, and [`RenderOptions::kwargs`].
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    sources: Vec<(String, String)>,
    origin: String,
    path: Option<PathBuf>,
    plain: Environment<'static>,
    tracked: Option<Environment<'static>>,
    deep: bool,
    clock: Clock,
    specials: Map<String, Value>,
    stops: Vec<Stop>,
    turn_end: Option<Stop>,
}

impl ChatTemplate {
    /// The template of a tokenizer folder: chat_template.jinja, or `chat_template` in tokenizer_config.json (a string, or
    /// a list of named ones, of which `default` is taken, and `tool_use` where tools are given). `None` when it has none.
    ///
    /// # Errors
    /// When a file is unreadable or of another shape, or the template does not parse.
    pub fn load(files: &TokenizerFiles, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        if let Some(source) = &files.chat_template {
            return Self::of_its_own(source, tokenizer).map(Some);
        }
        let config = read_config(files.tokenizer_config.as_ref())?;
        let (Some(value), Some(source)) = (config.get("chat_template"), &files.tokenizer_config) else {
            return Ok(None);
        };
        let path = source.path();
        let sources = match value {
            Value::Null => return Ok(None),
            Value::String(source) => vec![(DEFAULT.to_owned(), source.clone())],
            Value::Array(list) => named_templates(list, path)?,
            other => return Err(field(path, "chat_template", "a string or a list of templates", other)),
        };
        let origin = format!("`chat_template` in `{}`", path.display());
        Self::compile(sources, origin, None, tokenizer, Clock::System).map(Some)
    }

    /// A template in a file of its own.
    ///
    /// # Errors
    /// When it is unreadable or does not parse.
    pub fn from_file(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        Self::of_its_own(&path.into(), tokenizer)
    }

    fn of_its_own(source: &TextSource, tokenizer: &Tokenizer) -> Result<Self> {
        let sources = vec![(DEFAULT.to_owned(), read_template(source)?)];
        let path = source.path();
        let origin = format!("`{}`", path.display());
        Self::compile(sources, origin, Some(path.to_owned()), tokenizer, Clock::System)
    }

    /// A template from its text.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn from_source(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let sources = vec![(DEFAULT.to_owned(), source.to_owned())];
        Self::compile(sources, "(from text)".into(), None, tokenizer, Clock::System)
    }

    /// The same template with a clock that stands still, for `strftime_now`: seconds since 1970 in UTC.
    ///
    /// # Errors
    /// None in practice: the template has been compiled before.
    pub fn with_fixed_clock(self, unix_seconds: u64, tokenizer: &Tokenizer) -> Result<Self> {
        Self::compile(self.sources, self.origin, self.path, tokenizer, Clock::Fixed(unix_seconds))
    }

    fn compile(
        sources: Vec<(String, String)>,
        origin: String,
        path: Option<PathBuf>,
        tokenizer: &Tokenizer,
        clock: Clock,
    ) -> Result<Self> {
        let build = |track: bool| -> Result<Environment<'static>> {
            let mut env = jinja::environment(clock, track);
            for (name, source) in &sources {
                let rewritten = jinja::rewrite_generation_tags(source).into_owned();
                let syntax = |line, message| Error::TemplateSyntax {
                    origin: origin.clone(),
                    path: path.clone(),
                    line,
                    message,
                };
                contained_deep(|| env.add_template_owned(name.clone(), rewritten))
                    .map_err(|panic| syntax(None, panic))?
                    .map_err(|e| syntax(e.line(), error_text(&e)))?;
            }
            Ok(env)
        };
        let tracks = sources.iter().any(|(_, source)| jinja::has_generation_tags(source));
        let plain = build(false)?;
        let tracked = if tracks { Some(build(true)?) } else { None };
        let deep = sources.iter().any(|(_, source)| jinja::nests_deeply(source));
        let specials = tokenizer.special_tokens().clone();
        let mut template = Self {
            sources,
            origin,
            path,
            plain,
            tracked,
            deep,
            clock,
            specials,
            stops: Vec::new(),
            turn_end: None,
        };
        template.turn_end = spans::find_turn_end(&template, tokenizer);
        template.stops = spans::stops(tokenizer, template.turn_end.as_ref());
        Ok(template)
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`) or fails over it, or when the final message is to
    /// be continued and cannot be found.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        if options.continue_final_message {
            return self.render_to_continue(messages, options);
        }
        self.render_with(&self.plain, messages, options)
    }

    /// The conversation as text, with [`jinja::GENERATION_START`] and its end around generation blocks.
    pub(crate) fn render_tracked(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        self.render_with(self.tracked.as_ref().unwrap_or(&self.plain), messages, options)
    }

    /// Whether the template says itself what the assistant generates, with `{% generation %}`.
    pub fn has_generation_tags(&self) -> bool {
        self.tracked.is_some()
    }

    /// The template's text (the one for conversations without tools, when there are two).
    pub fn source(&self) -> &str {
        self.sources.first().map_or("", |(_, source)| source)
    }

    /// Whether one of the templates has `text` in its own text.
    pub fn has_text(&self, text: &str) -> bool {
        self.sources.iter().any(|(_, source)| source.contains(text))
    }

    /// Where the template comes from, for people.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The token with which the template ends an assistant's turn, found by rendering a short conversation.
    pub fn turn_end_id(&self) -> Option<u32> {
        self.turn_end.as_ref().map(|stop| stop.id)
    }

    /// Every id at which a generation in this chat format should stop: the tokenizer's, and the end of a turn.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = tokenizer.eos_ids().to_vec();
        ids.extend(self.turn_end_id().filter(|id| !tokenizer.eos_ids().contains(id)));
        ids
    }

    /// A hash of everything that it was made from: equal ones render equal conversations to equal texts and turns. `None` with
    /// the machine's clock, which a template can print.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        let Clock::Fixed(seconds) = self.clock else { return None };
        let mut hash = ContentHash::new("chat template");
        hash.add_number(seconds);
        for (name, source) in &self.sources {
            hash.add(name.as_bytes());
            hash.add(source.as_bytes());
        }
        hash.add(Value::Object(self.specials.clone()).to_string().as_bytes());
        for stop in self.turn_end.iter().chain(&self.stops) {
            hash.add_number(u64::from(stop.id));
            hash.add(stop.text.as_bytes());
        }
        Some(hash.finish())
    }

    /// The tokens that can end a turn.
    pub(crate) fn stops(&self) -> &[Stop] {
        &self.stops
    }

    fn render_with(
        &self,
        env: &Environment<'static>,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String> {
        let failed = |e: &minijinja::Error| Error::Render {
            origin: self.origin.clone(),
            path: self.path.clone(),
            line: e.line(),
            message: error_text(e),
            raised: jinja::was_raised(e),
        };
        let template = env.get_template(self.template_name(options)).map_err(|e| failed(&e))?;
        jinja::render_bounded(&template, &self.context(messages, options), self.deep).map_err(|e| failed(&e))
    }

    /// transformers takes `tool_use` for a conversation with tools, when there is one.
    fn template_name(&self, options: &RenderOptions) -> &str {
        let with_tools = self.sources.iter().any(|(name, _)| name == TOOL_USE) && options.tools.is_some();
        if with_tools { TOOL_USE } else { self.sources.first().map_or(DEFAULT, |(name, _)| name) }
    }

    fn context(&self, messages: &[Message], options: &RenderOptions) -> minijinja::Value {
        let mut context: Vec<(&str, minijinja::Value)> = Vec::new();
        let given = self.specials.iter().chain(&options.kwargs);
        context.extend(given.map(|(key, value)| (key.as_str(), minijinja::Value::from_serialize(value))));
        let optional = |value: &Option<Value>| {
            value.as_ref().map_or_else(|| minijinja::Value::from(()), minijinja::Value::from_serialize)
        };
        context.push(("messages", minijinja::Value::from_serialize(messages)));
        context.push(("tools", optional(&options.tools)));
        context.push(("documents", optional(&options.documents)));
        context.push(("add_generation_prompt", options.add_generation_prompt.into()));
        context.into_iter().collect()
    }

    /// As transformers does it: a mark is written behind the final message, and the text is cut where it shows.
    fn render_to_continue(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let refuse = |reason| Error::ContinueFinalMessage { reason };
        let mut messages = messages.to_vec();
        let last = messages.last_mut().ok_or(refuse("there is no message"))?;
        let text = match &mut last.content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts
                .iter_mut()
                .rev()
                .find_map(|part| match part.get_mut("text") {
                    Some(Value::String(text)) => Some(text),
                    _ => None,
                })
                .ok_or(refuse("it has no text part"))?,
            Content::Absent | Content::Null => return Err(refuse("it has no content")),
        };
        let given = text.trim_matches(is_space).to_owned();
        text.push_str(CONTINUE_MARK);
        let mut rendered = self.render_with(&self.plain, &messages, options)?;
        let absent = refuse("the template does not print it as it is");
        if !rendered.contains(&given) {
            return Err(absent);
        }
        let at = rendered.rfind(CONTINUE_MARK.trim_end()).ok_or(absent)?;
        let keeps_spaces = rendered[at..].starts_with(CONTINUE_MARK);
        rendered.truncate(at);
        if !keeps_spaces {
            rendered.truncate(rendered.trim_end_matches(is_space).len());
        }
        Ok(rendered)
    }
}

/// tokenizer_config.json's list of `{"name", "template"}`, the default first.
fn named_templates(list: &[Value], path: &Path) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let key = format!("chat_template[{i}]");
        match (text("name"), text("template")) {
            (Some(name), Some(source)) => sources.push((name, source)),
            _ => return Err(field(path, &key, "an object with `name` and `template`", entry)),
        }
    }
    let default =
        sources.iter().position(|(name, _)| name == DEFAULT).ok_or_else(|| Error::NoTemplateNamed {
            name: DEFAULT.to_owned(),
            available: sources.iter().map(|(name, _)| name.clone()).collect(),
        })?;
    sources.swap(0, default);
    Ok(sources)
}

/// An error's words with those of its causes, without minijinja's kind where it says nothing.
fn error_text(error: &minijinja::Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line})"));
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(inner) = cause.downcast_ref::<minijinja::Error>() {
            text.push_str(": ");
            text.push_str(&inner.detail().map_or_else(|| inner.kind().to_string(), str::to_owned));
        }
        source = cause.source();
    }
    text
}
