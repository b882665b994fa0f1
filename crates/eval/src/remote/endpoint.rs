//! One server and one model on it.

use super::clock::{Clock, SystemClock};
use super::failure::{Failed, Retry, message, told};
use super::key::Key;
use super::pace::{Pace, retry_after};
use super::section::is_this_machine;
use super::{ChatRequest, EndpointSection, Error, Reply, Result};
use serde_json::Value;
use std::fmt;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use taper_text::ContentHash;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};

/// Most bytes of an answer.
const MAX_BODY_BYTES: u64 = 16 << 20;
/// Most bytes that are read of the body of an error.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Servers close a connection that has been idle for some seconds; a request on one that is just being closed would fail.
const MAX_IDLE: Duration = Duration::from_secs(1);
const LIMIT_KEY: &str = "max_tokens";
const NEW_LIMIT_KEY: &str = "max_completion_tokens";

/// A model behind an address. Clones ask through the same connections, at one pace.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    /// Set when nobody waits for the answers any more.
    stop: Arc<AtomicBool>,
}

struct Shared {
    section: EndpointSection,
    /// How errors name it.
    name: String,
    agent: ureq::Agent,
    key: Option<Key>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    /// The server has refused `max_tokens` and wants `max_completion_tokens`.
    wants_new_limit_key: AtomicBool,
}

/// The JSON of an answer and the time it took.
pub(super) struct Answered {
    pub(super) body: Value,
    pub(super) latency: Duration,
}

impl Endpoint {
    /// Read the key from the environment and make a client. Nothing is sent yet.
    ///
    /// # Errors
    /// When the section has faults, or the variable with the key is not set.
    pub fn open(section: &EndpointSection) -> Result<Self> {
        let timeout = Duration::from_secs(section.timeout_s);
        Self::open_with(section, timeout, Arc::new(SystemClock::start()), |name| std::env::var(name).ok())
    }

    pub(super) fn open_with(
        section: &EndpointSection,
        timeout: Duration,
        clock: Arc<dyn Clock>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        section.check().into_result().map_err(Error::Section)?;
        let key = section.api_key_env.as_deref().map(|name| Key::new(name, variable(name))).transpose()?;
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .max_idle_connections(section.concurrency)
            .max_idle_connections_per_host(section.concurrency)
            .max_idle_age(MAX_IDLE)
            .user_agent(concat!("taper/", env!("CARGO_PKG_VERSION")));
        if section.base().parse().is_ok_and(|uri| is_this_machine(&uri)) {
            config = config.proxy(None);
        }
        let shared = Shared {
            name: format!("`{}` at `{}`", section.model, section.base()),
            agent: config.build().into(),
            key,
            clock,
            pace: Pace::new(section.requests_per_minute),
            wants_new_limit_key: AtomicBool::new(false),
            section: section.clone(),
        };
        Ok(Self { shared: Arc::new(shared), stop: Arc::new(AtomicBool::new(false)) })
    }

    /// What it was made from.
    pub fn section(&self) -> &EndpointSection {
        &self.shared.section
    }

    /// Ask for an answer, again where that may help.
    ///
    /// # Errors
    /// When there is no answer that can be read.
    pub fn chat(&self, request: &ChatRequest) -> Result<Reply> {
        let extra = &self.section().extra;
        let wants_new = &self.shared.wants_new_limit_key;
        let ask =
            |limit_key| self.post("chat/completions", &request.body(&self.section().model, limit_key, extra));
        let is_new = wants_new.load(Ordering::Relaxed);
        let mut answered = ask(if is_new { NEW_LIMIT_KEY } else { LIMIT_KEY });
        if !is_new
            && let Err(Error::Status { status: 400 | 422, message, .. }) = &answered
            && is_refusal_of(LIMIT_KEY, message)
        {
            wants_new.store(true, Ordering::Relaxed);
            answered = ask(NEW_LIMIT_KEY);
        }
        let answered = answered?;
        Reply::read(&answered.body, answered.latency).map_err(|what| self.unreadable(what))
    }

    /// A name for an answer to be kept under: the same where server, model and request are the same, however the server wants
    /// the limit of tokens to be called. The key is no part of it.
    pub fn cache_key(&self, request: &ChatRequest) -> String {
        let body = request.body(&self.section().model, LIMIT_KEY, &self.section().extra);
        let mut hash = ContentHash::new("remote.chat");
        hash.add(self.section().base().as_bytes());
        hash.add(body.to_string().as_bytes());
        hash.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same endpoint with a stop of its own.
    pub(super) fn with_stop(&self) -> (Self, Arc<AtomicBool>) {
        let stop = Arc::new(AtomicBool::new(false));
        (Self { shared: Arc::clone(&self.shared), stop: Arc::clone(&stop) }, stop)
    }

    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(super) fn unreadable(&self, what: impl Into<String>) -> Error {
        Error::Unreadable { endpoint: self.shared.name.clone(), what: what.into() }
    }

    /// Send a body until it is answered, or there is no use in sending it again.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Answered> {
        let Shared { pace, clock, section, .. } = &*self.shared;
        let (url, body) = (format!("{}/{path}", section.base()), body.to_string());
        let mut tries = 0;
        loop {
            pace.wait_turn(&**clock, &self.stop);
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::GivenUp { endpoint: self.shared.name.clone() });
            }
            let began = clock.now();
            let failed = match self.attempt(&url, body.as_bytes()) {
                Ok(body) => return Ok(Answered { body, latency: clock.now().saturating_sub(began) }),
                Err(failed) => failed,
            };
            tries += 1;
            if failed.retry == Retry::Never || tries > section.max_retries {
                return Err(failed.error.after(tries));
            }
            let backoff = pace.backoff(tries);
            match failed.retry {
                Retry::After(time) => pace.hold(time.max(backoff), &**clock),
                _ => clock.sleep(backoff, &self.stop),
            }
        }
    }

    fn attempt(&self, url: &str, body: &[u8]) -> Result<Value, Failed> {
        let Shared { name, agent, key, clock, .. } = &*self.shared;
        let key = key.as_ref();
        let lost = |error: &ureq::Error| Failed::transport(name, error, MAX_BODY_BYTES, key);
        let mut request = agent.post(url).header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header(AUTHORIZATION, key.header());
        }
        let mut response = request.send(body).map_err(|error| lost(&error))?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let status = response.status().as_u16();
        let after = header(RETRY_AFTER).and_then(|value| retry_after(value, clock.date()));
        match status {
            200..=299 => {
                let bytes = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
                self.read(&bytes.map_err(|error| lost(&error))?)
            }
            300..=399 => {
                let to = told(header(LOCATION).unwrap_or("nowhere"), key);
                Err(Failed::for_good(Error::Redirect { endpoint: name.clone(), to }))
            }
            _ => {
                let mut bytes = Vec::new();
                // What cannot be read of an error's body is not told.
                let reader = response.body_mut().with_config().limit(u64::MAX).reader();
                let _ = reader.take(MAX_ERROR_BYTES).read_to_end(&mut bytes);
                Err(Failed::status(name, status, &bytes, after, key))
            }
        }
    }

    /// The JSON of a body. Some servers say no with status 200 and an `error`.
    fn read(&self, bytes: &[u8]) -> Result<Value, Failed> {
        let body: Value = serde_json::from_slice(bytes)
            .map_err(|error| Failed::for_good(self.unreadable(format!("it is no JSON: {error}"))))?;
        if body["choices"].is_null() && !body["error"].is_null() && message(&body).is_some() {
            let code = body["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            let status = code.filter(|code| (400..600).contains(code)).unwrap_or(200);
            return Err(Failed::status(self.name(), status, bytes, None, self.shared.key.as_ref()));
        }
        Ok(body)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { section, key, .. } = &*self.shared;
        f.debug_struct("Endpoint").field("section", section).field("key", key).finish_non_exhaustive()
    }
}

/// Whether a message says that the server does not know or want the key, rather than its value.
fn is_refusal_of(key: &str, message: &str) -> bool {
    let message = message.to_lowercase();
    let refusals = ["unsupported", "not support", "unrecognized", "unknown", "not permitted", "deprecated"];
    message.contains(key)
        && (message.contains(NEW_LIMIT_KEY) || refusals.iter().any(|refusal| message.contains(refusal)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_key_is_told_from_a_refused_value() {
        for message in [
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens: Extra inputs are not permitted",
            "Unrecognized request argument supplied: max_tokens",
        ] {
            assert!(is_refusal_of(LIMIT_KEY, message), "{message}");
        }
        for message in [
            "max_tokens is too large: 100000. This model supports at most 4096 completion tokens",
            "'max_completion_tokens' is not supported",
            "unsupported value: temperature",
        ] {
            assert!(!is_refusal_of(LIMIT_KEY, message), "{message}");
        }
    }
}
