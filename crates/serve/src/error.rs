//! What a client is told when a request cannot be served: the status, and OpenAI's error object (Ollama's on its routes).

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use taper_infer::{AdapterError, Error as InferError, GrammarError, SubmitError};

/// Seconds after which a client that was turned away may try again.
const RETRY_AFTER: u64 = 1;
/// The same while the server is shutting down: another one has to take over first.
const RETRY_AFTER_DRAINING: u64 = 10;

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// OpenAI's `type`.
    pub(crate) kind: &'static str,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<u64>,
    /// Whether OpenAI's clients are told not to send it again by themselves.
    pub(crate) is_final: bool,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message, kind, param: None, code: None, retry_after: None, is_final: false }
    }

    fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The request says something that cannot be.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self { param: Some(param.into()), ..error }
    }

    /// The request as a whole is wrong.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field that is known and that this server does not serve.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code("unsupported_value")
    }

    /// The prompt and what is asked for do not fit the model.
    pub(crate) fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code("context_length_exceeded")
    }

    pub(crate) fn model_not_found(name: &str) -> Self {
        let shown: String = name.chars().take(128).collect();
        let error = Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!("the model `{shown}` does not exist; GET /v1/models lists those that do"),
        );
        Self { param: Some("model".into()), ..error.code("model_not_found") }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("not_found")
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "this address does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message).code("method_not_allowed")
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "an API key is needed: send `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message).code(code)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("request_too_large")
    }

    pub(crate) fn encoded(encoding: &str) -> Self {
        let message = format!("bodies are not taken with `content-encoding: {encoding}`");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
            .code("unsupported_encoding")
    }

    /// The client was too slow with its request.
    pub(crate) fn slow_body() -> Self {
        let message = "the request's body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message).code("timeout")
    }

    /// The answer took longer than a request may.
    pub(crate) fn timed_out() -> Self {
        let message = "the request took longer than this server allows (`--request-timeout`)";
        let error = Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message).code("request_timeout");
        // Sent again it would take as long.
        Self { is_final: true, ..error }
    }

    pub(crate) fn busy(waiting: usize) -> Self {
        let message = format!("{waiting} requests are waiting, and no more may: try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { retry_after: Some(RETRY_AFTER), ..error.code("queue_full") }
    }

    pub(crate) fn draining() -> Self {
        let message = "the server is shutting down";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message);
        Self { retry_after: Some(RETRY_AFTER_DRAINING), ..error.code("shutting_down") }
    }

    /// A form that an answer cannot be held to.
    pub(crate) fn of_grammar(error: &GrammarError, param: &str) -> Self {
        match error {
            GrammarError::Busy { .. } => Self { message: error.to_string(), ..Self::busy(0) },
            GrammarError::Tokenizer(_) => Self::unsupported(param, error.to_string()),
            _ => Self::invalid(param, error.to_string()),
        }
    }

    /// A fault of ours; what it was is in the server's log.
    pub(crate) fn internal() -> Self {
        let message = "the server failed over this request; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).code("internal_error")
    }

    /// OpenAI's error object.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "error": self.object() })
    }

    fn object(&self) -> Value {
        json!({ "message": self.message, "type": self.kind, "param": self.param, "code": self.code })
    }

    /// The answer on Ollama's routes.
    pub(crate) fn into_ollama(self) -> Response<Body> {
        let body = json!({ "error": self.message });
        self.respond(&body)
    }

    fn respond(&self, body: &Value) -> Response<Body> {
        let mut response = json_response(self.status, body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.is_final {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE || self.status == StatusCode::REQUEST_TIMEOUT {
            // What is left of the body will not be read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        self.respond(&self.to_json())
    }
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Busy { waiting } => Self::busy(waiting),
            SubmitError::Draining => Self::draining(),
            SubmitError::Refused(error) => error.into(),
            other => {
                tracing::error!(error = %other, "the service turned a request away");
                Self::internal()
            }
        }
    }
}

impl From<InferError> for ApiError {
    fn from(error: InferError) -> Self {
        match error {
            InferError::PromptTooLong { tokens, limit, .. } => Self::too_long(
                "prompt",
                format!(
                    "the prompt has {tokens} tokens, the model's longest sequence is {limit}, answer included"
                ),
            ),
            InferError::DeadlineExceeded => Self::timed_out(),
            InferError::NotAdditive { .. } => Self::unsupported("adapters", error.to_string()),
            InferError::Grammar(error) => Self::of_grammar(&error, "response_format"),
            InferError::EmptyPrompt { .. } => Self::invalid("prompt", "the prompt has no token"),
            InferError::Config(problems) => {
                let all: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
                let first = problems.iter().next().and_then(|p| p.location.as_ref()?.key.clone());
                Self { param: first, ..Self::malformed(all.join("; ")) }
            }
            other => {
                tracing::error!(error = %taper_diagnostics::with_cause(other.to_string(), &other), "generation failed");
                Self::internal()
            }
        }
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        match error {
            AdapterError::Unknown(name) => Self::model_not_found(&name),
            AdapterError::Taken(name) => {
                Self::invalid("lora_name", format!("an adapter is named `{name}` already"))
            }
            AdapterError::Full(_) => Self { message: error.to_string(), ..Self::busy(0) },
            AdapterError::Refused { .. } | AdapterError::TooMany(_) | AdapterError::TooLarge { .. } => {
                Self::malformed(without_paths(&error.to_string()))
            }
            other => {
                tracing::error!(error = %other, "an adapter cannot be had");
                Self::internal()
            }
        }
    }
}

/// A text with absolute paths cut to their last part: where files lie is nobody's business but the server's log's.
pub(crate) fn without_paths(text: &str) -> String {
    let opens = |c: char| c.is_whitespace() || matches!(c, '`' | '"' | '\'' | '(' | '=' | ':' | ',' | '[');
    let closes = |c: char| c.is_whitespace() || matches!(c, '`' | '"' | '\'' | ')' | ',' | ';' | ']');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        out.push_str(before);
        let end = path.find(closes).unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        // A path stands at the start or behind something that is no part of a word: `a/b` and `https://` stay.
        let absolute = out.chars().next_back().is_none_or(opens) && !path.starts_with("//");
        match absolute {
            true => out.push_str(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()),
            false => out.push_str(path),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_to_their_last_part_and_other_slashes_stay() {
        for (given, expected) in [
            ("failed to open `/srv/models/a/x.json`: no", "failed to open `x.json`: no"),
            ("/a/b is no folder", "b is no folder"),
            ("needs owner/name or https://host/x", "needs owner/name or https://host/x"),
            ("in (/etc/passwd), /tmp/", "in (passwd), tmp"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(without_paths(given), expected);
        }
    }

    #[test]
    fn the_error_object_has_all_four_keys() {
        let error = ApiError::invalid("n", "no").to_json();
        assert_eq!(
            error.to_string(),
            r#"{"error":{"message":"no","type":"invalid_request_error","param":"n","code":null}}"#
        );
    }
}
