//! One request, one streamed answer, and when each piece of it came.

use super::events::Events;
use crate::cli::Api;
use serde_json::{Value, json};
use std::error::Error as _;
use std::io::BufReader;
use std::time::{Duration, Instant};

/// Most of an error's body that is read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Servers close a connection that has been idle for some seconds; a request on one that is just being closed would fail.
const MAX_IDLE: Duration = Duration::from_secs(1);

/// A server.
pub(super) struct Client {
    agent: ureq::Agent,
    /// Without a slash at the end and without `/v1`.
    base: String,
    authorization: Option<String>,
    api: Api,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// Plain text; in a chat it is the user's message.
    Text(String),
    /// The messages of a chat.
    Messages(Value),
}

/// How a request ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(Answer),
    /// The server said that it has too much to do: 429 or 503.
    Refused {
        status: u16,
    },
    /// Anything else, by kind, with what was said first.
    Failed {
        kind: String,
        message: String,
    },
}

/// An answer that came whole.
#[derive(Debug)]
pub(super) struct Answer {
    /// When each chunk with text came. None where no token was text, as with random weights it happens.
    pub(super) chunks: Vec<Instant>,
    /// When the stream ended.
    pub(super) ended: Instant,
    /// Tokens of the prompt and of the answer, where the server counts them.
    pub(super) usage: Option<Usage>,
}

/// Tokens, as the server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Client {
    /// A client of the server at `url`, with or without `/v1`, that keeps up to `connections` open.
    pub(super) fn new(url: &str, api: Api, connections: usize, timeout: Duration) -> Self {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The server is measured, not a proxy on the way to it.
            .proxy(None)
            .timeout_global(Some(timeout))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .max_idle_age(MAX_IDLE)
            .user_agent(concat!("taper/", env!("CARGO_PKG_VERSION")))
            .build();
        let key = std::env::var("TAPER_API_KEY").ok().filter(|key| !key.is_empty());
        Self { agent: config.into(), base, authorization: key.map(|key| format!("Bearer {key}")), api }
    }

    /// The server's address.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The ids that the server lists, or why it does not.
    pub(super) fn models(&self) -> Result<Vec<String>, String> {
        let mut request = self.agent.get(format!("{}/v1/models", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(|error| described(&error))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| described(&error))?;
        if status != 200 {
            return Err(format!("status {status}: {}", error_message(&text)));
        }
        let listed: Value = serde_json::from_str(&text).map_err(|error| format!("no JSON: {error}"))?;
        let ids = listed["data"].as_array().into_iter().flatten();
        Ok(ids.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
    }

    /// Ask, and read the answer to its end.
    pub(super) fn ask(&self, model: &str, prompt: &Prompt, tokens: usize) -> Outcome {
        let body = request_body(self.api, model, prompt, tokens).to_string();
        let path = match self.api {
            Api::Chat => "chat/completions",
            Api::Completions => "completions",
        };
        let mut request =
            self.agent.post(format!("{}/v1/{path}", self.base)).header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = match request.send(body.as_bytes()) {
            Ok(response) => response,
            Err(error) => return failed(kind_of(&error, "connection"), described(&error)),
        };
        let status = response.status().as_u16();
        if status != 200 {
            let text = response.body_mut().with_config().limit(MAX_ERROR_BYTES).read_to_string();
            return match status {
                429 | 503 => Outcome::Refused { status },
                _ => failed(&format!("status {status}"), error_message(&text.unwrap_or_default())),
            };
        }
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return failed("no event stream", format!("content type {}", kind.unwrap_or("not given")));
        }
        read_answer(Events::new(BufReader::new(response.body_mut().as_reader())))
    }
}

/// Lengths are fixed by `max_tokens` and `ignore_eos`, words by temperature 0.
fn request_body(api: Api, model: &str, prompt: &Prompt, tokens: usize) -> Value {
    let mut body = json!({
        "model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true},
    });
    match (api, prompt) {
        (Api::Chat, Prompt::Text(text)) => body["messages"] = json!([{"role": "user", "content": text}]),
        (Api::Chat, Prompt::Messages(messages)) => body["messages"] = messages.clone(),
        (Api::Completions, Prompt::Text(text)) => body["prompt"] = json!(text),
        // Refused where the prompts are read.
        (Api::Completions, Prompt::Messages(messages)) => body["prompt"] = messages.clone(),
    }
    body
}

fn read_answer<R: std::io::BufRead>(mut events: Events<R>) -> Outcome {
    let mut chunks = Vec::new();
    let mut usage = None;
    loop {
        let data = match events.next_data() {
            Ok(Some(data)) => data,
            Ok(None) => return failed("stream cut off", "it ended without [DONE]".to_owned()),
            Err(error) => return failed(io_kind(&error), error.to_string()),
        };
        let now = Instant::now();
        if data == "[DONE]" {
            let counted = usage.is_some_and(|usage: Usage| usage.completion_tokens > 0);
            return match chunks.is_empty() && !counted {
                true => failed("no text", "the answer had no chunk with text".to_owned()),
                false => Outcome::Answered(Answer { chunks, ended: now, usage }),
            };
        }
        let chunk: Value = match serde_json::from_str(&data) {
            Ok(chunk) => chunk,
            Err(error) => return failed("malformed event", error.to_string()),
        };
        if !chunk["error"].is_null() {
            return failed("error in the stream", error_message(&data));
        }
        if has_text(&chunk) {
            chunks.push(now);
        }
        usage = usage_of(&chunk).or(usage);
    }
}

/// The chunk that tells the role has no text yet, and the last one has none either.
fn has_text(chunk: &Value) -> bool {
    let written = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    chunk["choices"].as_array().into_iter().flatten().any(|choice| {
        let delta = &choice["delta"];
        written(&choice["text"])
            || written(&delta["content"])
            || written(&delta["reasoning_content"])
            || delta["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
    })
}

fn usage_of(chunk: &Value) -> Option<Usage> {
    let count = |name: &str| chunk["usage"][name].as_u64();
    Some(Usage { prompt_tokens: count("prompt_tokens")?, completion_tokens: count("completion_tokens")? })
}

fn failed(kind: &str, message: String) -> Outcome {
    Outcome::Failed { kind: kind.to_owned(), message }
}

/// What an error's body says: OpenAI's `error.message`, other servers' `error`, or the text as it is.
fn error_message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let message = body["error"]["message"].as_str().or(body["error"].as_str()).unwrap_or(text.trim());
    message.chars().take(300).collect()
}

fn described(error: &ureq::Error) -> String {
    match error.source() {
        Some(source) if !error.to_string().contains(&source.to_string()) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

fn kind_of(error: &ureq::Error, other: &'static str) -> &'static str {
    match error {
        ureq::Error::Timeout(_) => "timeout",
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "bad address",
        _ => other,
    }
}

fn io_kind(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    match (error.kind(), inner) {
        (_, Some(inner)) => kind_of(inner, "stream cut off"),
        (std::io::ErrorKind::InvalidData, _) => "malformed event",
        (std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock, _) => "timeout",
        _ => "stream cut off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &str) -> Outcome {
        read_answer(Events::new(events.as_bytes()))
    }

    fn kind(events: &str) -> String {
        match read(events) {
            Outcome::Failed { kind, .. } => kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chunks_with_text_are_counted_and_usage_is_read() {
        let stream = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}

data: {"choices":[{"delta":{"content":"a"}}],"usage":null}

data: {"choices":[{"delta":{"content":"b"}}]}

data: {"choices":[{"delta":{},"finish_reason":"length"}]}

data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}

data: [DONE]

"#;
        match read(stream) {
            Outcome::Answered(answer) => {
                assert_eq!(answer.chunks.len(), 2);
                assert_eq!(answer.usage, Some(Usage { prompt_tokens: 7, completion_tokens: 3 }));
            }
            other => panic!("{other:?}"),
        }
        let tokens_without_text = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
        match read(&format!("data: {tokens_without_text}\n\ndata: [DONE]\n\n")) {
            Outcome::Answered(answer) => assert_eq!(answer.chunks.len(), 0),
            other => panic!("{other:?}"),
        }
        match read("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n") {
            Outcome::Answered(answer) => assert_eq!((answer.chunks.len(), answer.usage), (1, None)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_way_to_break_a_stream_has_its_name() {
        let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        assert_eq!(kind(text), "stream cut off");
        assert_eq!(
            kind(&format!("{text}data: {{\"error\":{{\"message\":\"m\"}}}}\n\n")),
            "error in the stream"
        );
        assert_eq!(kind(&format!("{text}data: {{\n\n")), "malformed event");
        assert_eq!(kind("data: [DONE]\n\n"), "no text");
    }

    #[test]
    fn errors_say_what_the_body_says() {
        assert_eq!(error_message(r#"{"error":{"message":"too long","type":"x"}}"#), "too long");
        assert_eq!(error_message(r#"{"error":"Unauthorized"}"#), "Unauthorized");
        assert_eq!(error_message("<html>"), "<html>");
    }

    #[test]
    fn the_body_fixes_the_length_and_asks_for_usage() {
        let text = Prompt::Text("hello".into());
        let chat = request_body(Api::Chat, "m", &text, 5);
        assert_eq!(chat["messages"], json!([{"role": "user", "content": "hello"}]));
        assert_eq!((&chat["max_tokens"], &chat["ignore_eos"]), (&json!(5), &json!(true)));
        assert_eq!(chat["stream_options"]["include_usage"], json!(true));
        assert_eq!(request_body(Api::Completions, "m", &text, 5)["prompt"], json!("hello"));
    }

    #[test]
    fn an_address_is_taken_with_and_without_v1() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(Client::new(url, Api::Chat, 1, Duration::from_secs(1)).base(), "http://h:1");
        }
    }
}
