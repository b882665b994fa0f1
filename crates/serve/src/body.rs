//! A request's body, within its limits.

use crate::app::App;
use crate::error::ApiError;
use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

/// The bytes of a request's body.
pub(crate) async fn read(app: &App, request: Request<Body>) -> Result<Bytes, ApiError> {
    let limits = &app.options.limits;
    let headers = request.headers();
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
    if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
        return Err(ApiError::encoded(&encoding.chars().take(32).collect::<String>()));
    }
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > limits.body_bytes as u64) {
        return Err(ApiError::too_large(limits.body_bytes));
    }
    let body = Limited::new(request.into_body(), limits.body_bytes).collect();
    match tokio::time::timeout(limits.body_timeout, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limits.body_bytes)),
        Ok(Err(_)) => Err(ApiError::malformed("the request's body broke off")),
        Err(_) => Err(ApiError::slow_body()),
    }
}

/// The JSON object of a body. It is nested 127 deep at most: serde_json refuses more.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(ApiError::malformed(format!(
            "the request's body must be a JSON object, not {}",
            crate::fields::shown(&other)
        ))),
        Err(error) => Err(ApiError::malformed(format!("the request's body is not valid JSON: {error}"))),
    }
}
