//! What is refused, with what, in OpenAI's shape.

use crate::support::{Desk, Reply};
use serde_json::{Value, json};

/// An error's status, param and code.
fn told(reply: &Reply) -> (u16, Value, Value) {
    let error = reply.json()["error"].clone();
    let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{reply:?}");
    assert!(error["message"].as_str().unwrap().len() > 5);
    (reply.status, error["param"].clone(), error["code"].clone())
}

#[test]
fn every_field_of_a_conversation_has_its_type_and_range() {
    let desk = Desk::new();
    let long = "x".repeat(600);
    let biases: serde_json::Map<String, Value> = (0..1100).map(|i| (i.to_string(), json!(0))).collect();
    let table = [
        ("model", json!(3)),
        ("model", Value::Null),
        ("messages", json!([])),
        ("messages", json!("Hello")),
        ("messages", json!([3])),
        ("messages", json!([{ "content": "x" }])),
        ("messages", json!([{ "role": "user" }])),
        ("messages", json!([{ "role": "wizard", "content": "x" }])),
        ("messages", json!([{ "role": "user", "content": 3 }])),
        ("messages", json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }])),
        ("messages", json!([{ "role": "user", "content": "x", "name": 3 }])),
        (
            "messages",
            json!([{ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "{" } }] }]),
        ),
        ("messages", json!(vec![json!({ "role": "user", "content": "x" }); 1100])),
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("logit_bias", json!({ "99999": 1 })),
        ("logit_bias", json!({ "5": 101 })),
        ("logit_bias", json!({ "five": 1 })),
        ("logit_bias", json!([1])),
        ("logit_bias", Value::Object(biases)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("n", json!(1.5)),
        ("seed", json!("x")),
        ("stop", json!([""])),
        ("stop", json!(3)),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!(long)),
        ("stop_token_ids", json!([99999])),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!(vec![5; 65])),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_completion_tokens", json!("many")),
        ("min_tokens", json!(7)),
        ("min_tokens", json!(-1)),
        ("ignore_eos", json!("yes")),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(2)),
        ("top_logprobs", json!(21)),
        ("stream", json!("yes")),
        ("stream_options", json!({ "include_usage": true })),
        ("response_format.type", json!({ "type": "xml" })),
        ("response_format.json_schema", json!({ "type": "json_schema" })),
        ("tools", json!([{ "type": "function" }])),
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("tool_choice", json!("perhaps")),
        ("parallel_tool_calls", json!(1)),
        ("chat_template_kwargs", json!({ "messages": [] })),
        ("chat_template_kwargs", json!({ "x": "y".repeat(20_000) })),
        ("chat_template_kwargs", json!([])),
        ("continue_final_message", json!("x")),
        ("cache_salt", json!(3)),
        ("user", json!(3)),
        ("adapter_scale", json!(0.5)),
        ("adapters", json!([{ "scale": 1 }])),
        ("adapters", json!("x")),
        ("reasoning_effort", json!("high")),
        // Known, and not served.
        ("functions", json!([{ "name": "f" }])),
        ("function_call", json!({ "name": "f" })),
        ("modalities", json!(["audio"])),
        ("audio", json!({ "voice": "x" })),
        ("best_of", json!(2)),
        ("use_beam_search", json!(true)),
        ("prompt_logprobs", json!(1)),
        ("logits_processors", json!(["x"])),
        ("store", json!(true)),
        ("echo", json!(true)),
        ("chat_template", json!("x")),
        ("documents", json!([{}])),
        ("guided_grammar", json!("root ::= x")),
        ("priority", json!(1)),
    ];
    for (field, value) in table {
        let param = field;
        let key = field.split('.').next().unwrap();
        let reply = desk.chat(&json!({ key: value }));
        let (status, told, _) = told(&reply);
        assert_eq!((status, told), (400, json!(param)), "{key}: {value}: {}", reply.body);
    }
}

#[test]
fn fields_of_completions_too() {
    let desk = Desk::new();
    for (key, value) in [
        ("prompt", Value::Null),
        ("prompt", json!([])),
        ("prompt", json!(3)),
        ("prompt", json!([[]])),
        ("prompt", json!(["x", 3])),
        ("prompt", json!([5, "x"])),
        ("prompt", json!([99999])),
        ("prompt", json!([-1])),
        ("prompt", json!([[5], [1.5]])),
        ("prompt", json!("")),
        ("prompt", json!(vec!["x"; 200])),
        ("max_tokens", json!(0)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("suffix", json!("x")),
        ("best_of", json!(3)),
        ("messages", json!([{}])),
    ] {
        let reply = desk.complete(&json!({ key: value }));
        let (status, param, _) = told(&reply);
        assert_eq!((status, param), (400, json!(key)), "{key}: {value}: {}", reply.body);
    }
}

#[test]
fn what_is_neutral_or_unknown_or_null_is_no_fault() {
    let desk = Desk::new();
    desk.chat(&json!({
        "best_of": 1, "functions": [], "function_call": "auto", "modalities": ["text"], "store": false, "metadata": {"a": "b"},
        "tools": [], "tool_choice": "auto", "stop": [], "logit_bias": {}, "use_beam_search": false, "user": "someone",
        "never_heard_of": [1, 2], "service_tier": "auto", "skip_special_tokens": true, "adapters": [],
    }))
    .ok();
}

#[test]
fn a_model_that_is_not_there_is_404_and_never_the_base() {
    let desk = Desk::new();
    for model in ["nobody", "tiny:nobody", "tiny::nobody", "TINY", "tiny:", " tiny"] {
        let (status, param, code) = told(&desk.chat(&json!({ "model": model })));
        assert_eq!((status, param, code), (404, json!("model"), json!("model_not_found")), "{model}");
    }
    let adapters = json!([{ "name": "nobody" }]);
    let (status, param, _) = told(&desk.chat(&json!({ "adapters": adapters })));
    assert_eq!((status, param), (404, json!("adapters")));
    for model in ["tiny", "owner/tiny"] {
        desk.chat(&json!({ "model": model })).ok();
        assert_eq!(desk.get(&format!("/v1/models/{model}")).ok().json()["id"], model);
    }
    assert_eq!(desk.get("/v1/models/nobody").status, 404);
}

#[test]
fn prompts_and_answers_that_do_not_fit_the_model_are_told_with_numbers() {
    let desk = Desk::new();
    let (status, param, code) = told(&desk.complete(&json!({ "prompt": vec![5; 2048] })));
    assert_eq!((status, param, code), (400, json!("prompt"), json!("context_length_exceeded")));
    let reply = desk.chat(&json!({ "max_tokens": 2048 }));
    assert_eq!(told(&reply).2, "context_length_exceeded");
    assert!(reply.body.contains("2048 are asked for"), "{}", reply.body);
    desk.complete(&json!({ "prompt": vec![5; 2047], "max_tokens": 1 })).ok();
}

#[test]
fn bodies_that_are_no_json_object_are_told_where() {
    let desk = Desk::new();
    let post = |body: &str| {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        desk.raw(request.as_bytes())
    };
    for (body, says) in [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing"),
        ("{\"model\": \"tiny\",}", "line 1 column 18"),
        ("[]", "must be a JSON object, not a list of 0"),
        ("\"x\"", "must be a JSON object"),
    ] {
        let answer = post(body);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(says), "{answer}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(post(&format!("{{\"messages\": {deep}}}")).contains("recursion limit"), "deep JSON");
}

#[test]
fn a_schema_that_cannot_be_held_to_is_the_clients_fault() {
    let desk = Desk::new();
    for (schema, says) in [
        (json!({ "type": "object", "properties": { "a": { "type": "nothing" } } }), "JSON schema"),
        (json!({ "type": "string", "pattern": "(" }), "JSON schema"),
    ] {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        let reply = desk.chat(&json!({ "response_format": format }));
        assert_eq!(told(&reply).0, 400);
        assert!(reply.body.contains(says), "{}", reply.body);
    }
    let reply = desk.chat(&json!({ "guided_regex": "(((" }));
    assert_eq!(told(&reply).0, 400);
}

#[test]
fn a_template_that_refuses_says_so() {
    let source = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }}{% endfor %}";
    let desk = Desk::with(|setup| setup.template = Some(source.into()));
    let messages = json!([{ "role": "tool", "content": "x" }]);
    let reply = desk.chat(&json!({ "messages": messages }));
    assert_eq!(told(&reply).1, "messages");
    assert!(reply.body.contains("no tools here"), "{}", reply.body);
    let desk = Desk::with(|setup| setup.has_template = false);
    let reply = desk.chat(&json!({}));
    assert_eq!(told(&reply).0, 400);
    assert!(reply.body.contains("no chat template"));
    desk.complete(&json!({})).ok();
}

#[test]
fn addresses_and_methods_that_are_not_there() {
    let desk = Desk::new();
    for (path, says) in
        [("/v1/embeddings", "no embeddings"), ("/v1/responses", "Responses"), ("/nothing", "nothing at this")]
    {
        let reply = desk.post(path, &json!({}));
        assert_eq!(told(&reply).0, 404);
        assert!(reply.body.contains(says));
    }
    assert_eq!(told(&desk.get("/v1/chat/completions")).0, 405);
    let reply = desk.post("/api/pull", &json!({}));
    assert_eq!((reply.status, reply.json()["error"].is_string()), (404, true));
}
