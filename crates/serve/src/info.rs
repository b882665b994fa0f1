//! Whether the server lives, whether it takes requests, and what it is.

use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::metrics;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// The server lives.
pub(crate) fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({ "status": "ok" }))
}

/// The server takes requests; 503 while it is shutting down.
pub(crate) fn ready(app: &App) -> Response<Body> {
    match app.is_draining() {
        false => json_response(StatusCode::OK, &json!({ "status": "ready" })),
        true => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "shutting down" })),
    }
}

/// The server's version.
pub(crate) fn version() -> Response<Body> {
    json_response(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The numbers for Prometheus.
pub(crate) fn metrics(app: &App) -> Result<Response<Body>, ApiError> {
    let text = app.metrics.text().map_err(|error| {
        tracing::error!(%error, "the metrics cannot be written");
        ApiError::internal()
    })?;
    let mut response = Response::new(Body::from(text));
    let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
