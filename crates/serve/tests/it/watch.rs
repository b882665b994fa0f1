//! What those who run the server look at.

use crate::support::{Desk, metric_in};
use serde_json::json;

#[test]
fn the_metrics_have_vllms_names_and_count_what_was_done() {
    let desk = Desk::new();
    let usage = desk.chat(&json!({ "n": 2 })).ok().json()["usage"].clone();
    desk.chat(&json!({ "temperature": 9 }));
    let reply = desk.get("/metrics").ok();
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let value = |name: &str| metric_in(&reply.body, name);
    assert_eq!(value("vllm:generation_tokens_total"), usage["completion_tokens"].as_f64().unwrap());
    assert_eq!(value("vllm:prompt_tokens_total"), 2.0 * usage["prompt_tokens"].as_f64().unwrap());
    assert_eq!(value("vllm:request_success_total{finished_reason=\"length\"}"), 2.0);
    assert_eq!(value("vllm:request_success_total{finished_reason=\"error\"}"), 0.0);
    assert_eq!(value("vllm:num_requests_running"), 0.0);
    assert_eq!(value("vllm:num_requests_waiting"), 0.0);
    assert_eq!(value("vllm:time_to_first_token_seconds_count"), 2.0);
    assert_eq!(value("vllm:e2e_request_latency_seconds_count"), 2.0);
    assert!(value("vllm:inter_token_latency_seconds_count") >= 2.0);
    assert!(value("vllm:inter_token_latency_seconds_sum") < 30.0);
    assert_eq!(value("vllm:prefix_cache_queries_total"), value("vllm:prompt_tokens_total"));
    assert!(value("vllm:prefix_cache_hits_total") <= value("vllm:prefix_cache_queries_total"));
    assert!((0.0..=1.0).contains(&value("vllm:kv_cache_usage_perc")));
    assert_eq!(value("taper:batch_limit"), 4.0);
    assert_eq!(value("taper:queue_limit"), 32.0);
    assert_eq!(value("taper:http_responses_total{status=\"200\"}"), 1.0);
    assert_eq!(value("taper:http_responses_total{status=\"400\"}"), 1.0);
    assert!(reply.body.ends_with("# EOF\n"));
}

#[test]
fn health_and_version_say_what_they_are() {
    let desk = Desk::new();
    for path in ["/health", "/v1/health", "/ping"] {
        assert_eq!(desk.get(path).ok().json(), json!({ "status": "ok" }));
    }
    assert_eq!(desk.get("/ready").ok().json(), json!({ "status": "ready" }));
    assert_eq!(desk.get("/version").ok().json(), json!({ "version": env!("CARGO_PKG_VERSION") }));
}

#[test]
fn the_models_are_listed_as_openais_clients_need_them() {
    let desk = Desk::new();
    let list = desk.get("/v1/models").ok().json();
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!("tiny"), &json!("model"), &json!("taper"))
    );
    assert!(model["created"].is_u64() && model["parent"].is_null());
    assert_eq!(model["max_model_len"], 2048);
}
