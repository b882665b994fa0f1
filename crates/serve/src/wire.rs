//! Events of a run as bytes: one wire format each for OpenAI's chat and completions and Ollama's two, whole or as a stream.

use crate::error::ApiError;
use crate::run::Run;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use std::collections::VecDeque;
use std::time::Duration;
use taper_infer::Event;

/// How long a stream may be silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A format of streams. What it gives is sent at once.
pub(crate) trait Wire: Send + 'static {
    /// Its content type.
    fn content_type(&self) -> &'static str;
    /// What comes first.
    fn open(&mut self) -> Vec<Bytes>;
    /// What an event of the text `index` is told as.
    fn event(&mut self, index: usize, event: Event) -> Vec<Bytes>;
    /// What comes last, when all texts have ended.
    fn close(&mut self) -> Vec<Bytes>;
    /// What a failure in the middle is told as.
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes>;
    /// What shows that the stream lives, where the format has something that clients pass over.
    fn keep_alive(&self) -> Option<Bytes> {
        None
    }
}

/// A stream of a run. It ends the run when it is dropped, as it is when the client has gone.
pub(crate) fn streamed(run: Run, mut wire: impl Wire) -> Response<Body> {
    let content_type = wire.content_type();
    let pending = wire.open().into();
    let state = Streaming { run: Some(run), wire, pending };
    let chunks = stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), state))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx holds streams back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Streaming<W> {
    run: Option<Run>,
    wire: W,
    pending: VecDeque<Bytes>,
}

impl<W: Wire> Streaming<W> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.pending.pop_front() {
                return Some(chunk);
            }
            let run = self.run.as_mut()?;
            let next = match tokio::time::timeout(KEEP_ALIVE, run.next()).await {
                Ok(next) => next,
                Err(_) => {
                    self.pending.extend(self.wire.keep_alive());
                    continue;
                }
            };
            match next {
                Ok(Some((index, event))) => self.pending.extend(self.wire.event(index, event)),
                Ok(None) => {
                    self.pending.extend(self.wire.close());
                    self.run = None;
                }
                Err(error) => {
                    self.pending.extend(self.wire.fail(&error));
                    self.run = None;
                }
            }
        }
    }
}
