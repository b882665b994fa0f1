//! Which address does what.

use crate::app::App;
use crate::around::{RequestId, around};
use crate::body::read;
use crate::error::{ApiError, json_response};
use crate::{adapters, info, ollama, openai, page};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

type Answer = Result<Response<Body>, ApiError>;
type AppState = State<Arc<App>>;

/// All routes, with what stands around them.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let router = openai_routes(Router::new());
    let router = ollama_routes(router);
    let mut router = about_routes(router);
    if app.options.page {
        router = router.route("/", get(|| async { page::page() }));
    }
    router
        .fallback(|uri: Uri| async move { unknown(uri.path()) })
        .method_not_allowed_fallback(
            |uri: Uri| async move { shaped(uri.path(), ApiError::method_not_allowed()) },
        )
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn_with_state(app.clone(), around))
        .with_state(app.clone())
}

fn openai_routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/v1/chat/completions", post(|state, request| openai(state, request, openai::chat)))
        .route("/v1/completions", post(|state, request| openai(state, request, openai::completions)))
        .route("/v1/models", get(|State(app): AppState| async move { ok(&openai::list_models(&app)) }))
        .route(
            "/v1/models/{*name}",
            get(|State(app): AppState, path: axum::extract::Path<String>| async move {
                openai::one_model(&app, &path).map(|model| ok(&model))
            }),
        )
        .route("/v1/load_lora_adapter", post(|state, request| text(state, request, adapters::load)))
        .route("/v1/unload_lora_adapter", post(|state, request| text(state, request, adapters::unload)))
        .route("/lora-adapters", get(|State(app): AppState| async move { ok(&openai::lora_adapters(&app)) }))
        .route("/tokenize", post(|state, request| value(state, request, openai::tokenize)))
        .route("/detokenize", post(|state, request| value(state, request, openai::detokenize)))
}

fn ollama_routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/api/generate", post(|state, request| ollama(state, request, ollama::generate)))
        .route("/api/chat", post(|state, request| ollama(state, request, ollama::chat)))
        .route("/api/tags", get(|State(app): AppState| async move { ok(&ollama::tags(&app)) }))
        .route("/api/ps", get(|State(app): AppState| async move { ok(&ollama::ps(&app)) }))
        .route("/api/version", get(|| async { info::version() }))
        .route("/api/show", post(show))
}

fn about_routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let health = || get(|| async { info::health() });
    router
        .route("/health", health())
        .route("/v1/health", health())
        .route("/ping", health().post(|| async { info::health() }))
        .route("/ready", get(|State(app): AppState| async move { info::ready(&app) }))
        .route("/version", get(|| async { info::version() }))
        .route("/metrics", get(|State(app): AppState| async move { info::metrics(&app) }))
}

/// Addresses that need no key: they say nothing of models or users.
pub(crate) fn is_public(path: &str) -> bool {
    is_probe(path) || path == "/"
}

/// Addresses for those who watch over the server, which may know it by any name.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/v1/health" | "/ping" | "/ready")
}

/// An error in the shape that the address's clients expect.
pub(crate) fn shaped(path: &str, error: ApiError) -> Response<Body> {
    if path.starts_with("/api/") { error.into_ollama() } else { error.into_response() }
}

fn ok(value: &serde_json::Value) -> Response<Body> {
    json_response(StatusCode::OK, value)
}

async fn openai<F: Future<Output = Answer>>(
    State(app): AppState,
    request: Request<Body>,
    handler: impl FnOnce(Arc<App>, String, Bytes) -> F,
) -> Answer {
    let id = request_id(&request);
    let bytes = read(&app, request).await?;
    handler(app, id, bytes).await
}

async fn ollama<F: Future<Output = Answer>>(
    state: AppState,
    request: Request<Body>,
    handler: impl FnOnce(Arc<App>, String, Bytes) -> F,
) -> Response<Body> {
    openai(state, request, handler).await.unwrap_or_else(ApiError::into_ollama)
}

async fn value<F: Future<Output = Result<serde_json::Value, ApiError>>>(
    State(app): AppState,
    request: Request<Body>,
    handler: impl FnOnce(Arc<App>, Bytes) -> F,
) -> Answer {
    let bytes = read(&app, request).await?;
    handler(app, bytes).await.map(|value| ok(&value))
}

async fn text<F: Future<Output = Result<String, ApiError>>>(
    State(app): AppState,
    request: Request<Body>,
    handler: impl FnOnce(Arc<App>, Bytes) -> F,
) -> Result<String, ApiError> {
    let bytes = read(&app, request).await?;
    handler(app, bytes).await
}

async fn show(State(app): AppState, request: Request<Body>) -> Response<Body> {
    let shown = async { ollama::show(&app, &read(&app, request).await?) };
    shown.await.map_or_else(ApiError::into_ollama, |value| ok(&value))
}

fn request_id(request: &Request<Body>) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

fn unknown(path: &str) -> Response<Body> {
    let error = match path {
        "/v1/embeddings" | "/api/embed" | "/api/embeddings" => {
            ApiError::not_found("this server generates text; it has no embeddings")
        }
        "/v1/responses" => ApiError::not_found("this server has /v1/chat/completions, not the Responses API"),
        "/api/pull" | "/api/push" | "/api/create" | "/api/copy" | "/api/delete" => ApiError::not_found(
            "models are not changed over the network: `taper serve --model` names what is served",
        ),
        _ => ApiError::not_found("there is nothing at this address"),
    };
    shaped(path, error)
}

/// A fault of ours in one request is that request's alone.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over by value")]
fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
    tracing::error!(panic = words, "a request panicked");
    ApiError::internal().into_response()
}
