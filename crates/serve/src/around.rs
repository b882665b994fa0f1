//! What stands around every request: its id, who may ask, how it is counted and logged.

use crate::app::{App, InFlight};
use crate::error::ApiError;
use crate::guard::tell_browser;
use crate::request_id;
use crate::routes::{is_probe, is_public, shaped};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use axum::middleware::Next;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Bytes of an address that the log shows.
const SHOWN_PATH: usize = 128;

/// The id of a request, for its handler.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Let a request in or turn it away, and see it off.
pub(crate) async fn around(
    State(app): State<Arc<App>>,
    mut request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let started = Instant::now();
    let in_flight = app.enter();
    let id = request_id::of_request(request.headers());
    let id_text = id.to_str().unwrap_or_default().to_owned();
    request.extensions_mut().insert(RequestId(id_text.clone()));
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let origin = app.guard.listed_origin(request.headers());
    let preflight = preflight(&request);
    let mut response = match (admit(&app, &request, &path), &preflight) {
        (Err(error), _) => shaped(&path, error),
        (Ok(()), Some(_)) => empty(StatusCode::NO_CONTENT),
        (Ok(()), None) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(request_id::HEADER, id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        tell_browser(headers, origin, preflight.as_ref());
    }
    app.metrics.responded(response.status().as_u16());
    let shown: String = path.chars().take(SHOWN_PATH).collect();
    let log = Log { id: id_text, method, path: shown, status: response.status(), started };
    response.map(|body| Body::new(SeenOff { body, _in_flight: in_flight, _log: log }))
}

fn admit(app: &App, request: &Request<Body>, path: &str) -> Result<(), ApiError> {
    if !is_probe(path) {
        app.guard.check(request)?;
    }
    // A browser's question before the request has no key with it.
    let needs_key = !is_public(path) && preflight(request).is_none();
    if needs_key && !app.options.keys.admit(request.headers()) {
        return Err(ApiError::unauthorized());
    }
    Ok(())
}

/// The headers that a browser asks to send, when this is its question before a request from another page.
fn preflight(request: &Request<Body>) -> Option<HeaderValue> {
    let headers = request.headers();
    let asks = request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        asked.unwrap_or(HeaderValue::from_static("content-type"))
    })
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A line of the log, written when the answer has been sent or the client has gone.
struct Log {
    id: String,
    method: Method,
    path: String,
    status: StatusCode,
    started: Instant,
}

impl Drop for Log {
    fn drop(&mut self) {
        // Who watches over the server asks every few seconds.
        let watching = is_probe(&self.path) || self.path == "/metrics";
        let (id, method, path) = (&self.id, self.method.as_str(), &self.path);
        let (status, seconds) = (self.status.as_u16(), self.started.elapsed().as_secs_f64());
        if watching {
            tracing::debug!(request_id = id, method, path, status, seconds, "request");
        } else {
            tracing::info!(request_id = id, method, path, status, seconds, "request");
        }
    }
}

/// A body that holds what has to last until it is sent.
struct SeenOff {
    body: Body,
    _in_flight: InFlight,
    _log: Log,
}

impl HttpBody for SeenOff {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
