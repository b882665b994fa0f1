//! An attempt that failed: what to say, and whether to try again.

use super::Error;
use super::key::Key;
use serde_json::Value;
use std::time::Duration;

/// Most characters of a server's message that are told.
const MAX_MESSAGE_CHARS: usize = 300;

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) retry: Retry,
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Retry {
    /// It will not.
    Never,
    /// After some time.
    Later,
    /// Not before this time, which the server asked for.
    After(Duration),
}

impl Failed {
    pub(super) fn for_good(error: Error) -> Self {
        Self { error, retry: Retry::Never }
    }

    /// There was no answer, or it broke off.
    pub(super) fn transport(endpoint: &str, error: &ureq::Error, limit: u64, key: Option<&Key>) -> Self {
        use ureq::Error as E;
        let endpoint = endpoint.to_owned();
        let reason = told(&error.to_string(), key);
        match error {
            E::BodyExceedsLimit(_) => Self::for_good(Error::TooLarge { endpoint, limit }),
            E::Io(io) if body_limit(io) => Self::for_good(Error::TooLarge { endpoint, limit }),
            E::LargeResponseHeader(..) => {
                Self::for_good(Error::Unreadable { endpoint, what: "its header is too long".into() })
            }
            // A certificate that is not believed comes as invalid data.
            E::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
                Self::for_good(Error::Unreachable { endpoint, reason, attempts: 1 })
            }
            E::Io(_)
            | E::Timeout(_)
            | E::HostNotFound
            | E::ConnectionFailed
            | E::ConnectProxyFailed(_)
            | E::Protocol(_)
            | E::BodyStalled => {
                Self { error: Error::Unreachable { endpoint, reason, attempts: 1 }, retry: Retry::Later }
            }
            _ => Self::for_good(Error::Address { endpoint, reason }),
        }
    }

    /// The server said no, with this body.
    pub(super) fn status(
        endpoint: &str,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
        key: Option<&Key>,
    ) -> Self {
        let endpoint = endpoint.to_owned();
        let text = String::from_utf8_lossy(body);
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let message = told(message(&json).unwrap_or(&text), key);
        if matches!(status, 401 | 403) {
            let variable = key.map(|key| key.variable().to_owned());
            return Self::for_good(Error::Access { endpoint, status, message, variable });
        }
        let is_worth_it = matches!(status, 408 | 409 | 429 | 500..=599) && !is_out_of_money(&json);
        let retry = match (is_worth_it, retry_after) {
            (false, _) => Retry::Never,
            (true, None) => Retry::Later,
            (true, Some(time)) => Retry::After(time),
        };
        Self { error: Error::Status { endpoint, status, message, attempts: 1 }, retry }
    }
}

/// What an error's body says: OpenAI's `error.message`, others' `error`, `message` or `detail`.
pub(super) fn message(body: &Value) -> Option<&str> {
    let error = &body["error"];
    [&error["message"], error, &body["message"], &body["detail"]].into_iter().find_map(Value::as_str)
}

/// OpenAI says 429 as well where the account is empty; no waiting helps.
fn is_out_of_money(body: &Value) -> bool {
    let is_quota = |value: &Value| value.as_str() == Some("insufficient_quota");
    is_quota(&body["error"]["code"]) || is_quota(&body["error"]["type"])
}

/// Words of others as they can be told: without the key, on one line, not endless.
pub(super) fn told(text: &str, key: Option<&Key>) -> String {
    let text = key.map_or_else(|| text.to_owned(), |key| key.scrubbed(text));
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut told: String = plain.take(MAX_MESSAGE_CHARS + 1).collect();
    if told.is_empty() {
        return "no message".into();
    }
    if let Some((at, _)) = told.char_indices().nth(MAX_MESSAGE_CHARS) {
        told.truncate(at);
        told.push_str("...");
    }
    told
}

fn body_limit(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::BodyExceedsLimit(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(status: u16, body: &str) -> Failed {
        Failed::status("`m`", status, body.as_bytes(), None, None)
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for status in [408, 409, 429, 500, 502, 503, 529] {
            assert_eq!(failed(status, "").retry, Retry::Later, "{status}");
        }
        for status in [400, 401, 402, 403, 404, 405, 413, 422, 418] {
            assert_eq!(failed(status, "").retry, Retry::Never, "{status}");
        }
        let empty = r#"{"error":{"message":"You exceeded your quota","code":"insufficient_quota"}}"#;
        assert_eq!(failed(429, empty).retry, Retry::Never);
        let after = Failed::status("`m`", 503, b"", Some(Duration::from_secs(3)), None);
        assert_eq!(after.retry, Retry::After(Duration::from_secs(3)));
    }

    #[test]
    fn the_servers_words_are_told_in_any_shape() {
        for (body, expected) in [
            (r#"{"error":{"message":"too long","type":"x"}}"#, "too long"),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            (r#"{"object":"error","message":"old vLLM"}"#, "old vLLM"),
            ("<html>", "<html>"),
            ("a\u{1b}[31mb\n", "a [31mb"),
            ("", "no message"),
            ("[[1]]", "[[1]]"),
        ] {
            let Error::Status { message, .. } = failed(400, body).error else { panic!() };
            assert_eq!(message, expected);
        }
        let Error::Status { message, .. } = failed(400, &"é".repeat(1000)).error else { panic!() };
        assert_eq!(message, format!("{}...", "é".repeat(300)));
    }
}
