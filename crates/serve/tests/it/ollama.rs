//! Ollama's API.

use crate::support::{Desk, Reply, merged, tools_template};
use serde_json::{Value, json};

fn generate(desk: &Desk, with: &Value) -> Reply {
    let body =
        json!({ "model": "tiny", "prompt": "Hello", "options": { "temperature": 0, "num_predict": 8 } });
    desk.post("/api/generate", &merged(&body, with))
}

fn chat(desk: &Desk, with: &Value) -> Reply {
    let body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "Hello" }], "options": { "temperature": 0, "num_predict": 8 },
    });
    desk.post("/api/chat", &merged(&body, with))
}

#[test]
fn generate_streams_lines_unless_told_not_to() {
    let desk = Desk::new();
    let whole = generate(&desk, &json!({ "stream": false })).ok().json();
    assert_eq!(
        (&whole["model"], &whole["done"], &whole["done_reason"]),
        (&json!("tiny"), &json!(true), &json!("length"))
    );
    assert_eq!(whole["eval_count"], 8);
    for key in
        ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"]
    {
        assert!(whole[key].is_u64(), "{key}");
    }
    assert!(whole["created_at"].as_str().unwrap().ends_with('Z'));
    let prompt = whole["prompt_eval_count"].as_u64().unwrap() as usize;
    assert_eq!(whole["context"].as_array().unwrap().len(), prompt + 8);
    let reply = generate(&desk, &json!({})).ok();
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    let lines = reply.lines();
    let (last, rest) = lines.split_last().unwrap();
    let text: String = rest.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(text, whole["response"].as_str().unwrap());
    assert!(rest.iter().all(|line| line["done"] == false));
    assert_eq!(
        (&last["done"], &last["response"], &last["eval_count"]),
        (&json!(true), &json!(""), &json!(8))
    );
    // The same words as OpenAI's clients get.
    let openai = desk.chat(&json!({ "max_tokens": 8 })).ok().json();
    assert_eq!(openai["choices"][0]["message"]["content"], whole["response"]);
}

#[test]
fn chat_is_generate_with_messages() {
    let desk = Desk::new();
    let whole = chat(&desk, &json!({ "stream": false })).ok().json();
    assert_eq!(whole["message"]["role"], "assistant");
    assert_eq!(whole["message"]["content"], generate(&desk, &json!({ "stream": false })).json()["response"]);
    let lines = chat(&desk, &json!({})).ok().lines();
    let text: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, whole["message"]["content"].as_str().unwrap());
    assert_eq!(
        chat(&desk, &json!({ "model": "tiny:latest", "stream": false })).ok().json()["message"],
        whole["message"]
    );
}

#[test]
fn a_context_goes_on_where_the_last_answer_ended() {
    let desk = Desk::new();
    let first = generate(&desk, &json!({ "stream": false })).ok().json();
    let next = generate(&desk, &json!({ "stream": false, "context": first["context"] })).ok().json();
    let before = first["context"].as_array().unwrap().len() as u64;
    assert_eq!(
        next["prompt_eval_count"].as_u64().unwrap(),
        before + first["prompt_eval_count"].as_u64().unwrap()
    );
    let raw = generate(&desk, &json!({ "stream": false, "raw": true })).ok().json();
    assert!(raw["prompt_eval_count"].as_u64() < first["prompt_eval_count"].as_u64());
}

#[test]
fn answers_are_held_to_json_and_without_a_prompt_the_model_is_there() {
    let desk = Desk::new();
    let schema = json!({ "type": "object", "properties": { "a": { "const": 1 } }, "required": ["a"], "additionalProperties": false });
    let with =
        json!({ "stream": false, "format": schema, "options": { "temperature": 0, "num_predict": 200 } });
    let text = chat(&desk, &with).ok().json()["message"]["content"].clone();
    let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    assert_eq!(value, json!({ "a": 1 }));
    let load = generate(&desk, &json!({ "prompt": null })).ok().json();
    assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")));
    assert_eq!(chat(&desk, &json!({ "messages": [] })).ok().json()["done_reason"], "load");
    assert_eq!(generate(&desk, &json!({ "prompt": null, "keep_alive": 0 })).status, 400);
}

#[test]
fn clients_that_look_around_find_the_models() {
    let desk = Desk::with(|setup| setup.template = Some(tools_template()));
    let tags = desk.get("/api/tags").ok().json();
    let model = &tags["models"][0];
    for key in ["name", "model", "modified_at", "size", "digest", "details"] {
        assert!(!model[key].is_null(), "{key}");
    }
    assert_eq!(model["details"]["family"], "llama");
    let show = desk.post("/api/show", &json!({ "model": "tiny" })).ok().json();
    assert_eq!(show["capabilities"], json!(["completion", "tools"]));
    assert_eq!(show["model_info"]["llama.context_length"], 2048);
    assert_eq!(desk.get("/api/ps").ok().json()["models"][0]["name"], "tiny");
    assert!(desk.get("/api/version").ok().json()["version"].is_string());
    assert_eq!(desk.post("/api/show", &json!({ "model": "nobody" })).status, 404);
    assert_eq!(desk.post("/api/show", &json!({})).status, 400);
}

#[test]
fn errors_are_ollamas() {
    let desk = Desk::new();
    for (with, status) in [
        (json!({ "model": "nobody" }), 404),
        (json!({ "model": null }), 400),
        (json!({ "options": { "temperature": "hot" } }), 400),
        (json!({ "options": { "mirostat": 2 } }), 400),
        (json!({ "options": { "num_predict": 0 } }), 400),
        (json!({ "format": "xml" }), 400),
        (json!({ "template": "x" }), 400),
        (json!({ "suffix": "x" }), 400),
        (json!({ "images": ["x"] }), 400),
        (json!({ "think": true }), 400),
        (json!({ "context": [99999] }), 400),
        (json!({ "prompt": 3 }), 400),
    ] {
        let reply = generate(&desk, &with);
        assert_eq!(reply.status, status, "{with}: {}", reply.body);
        assert!(reply.json()["error"].is_string(), "{}", reply.body);
    }
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    let reply = chat(&desk, &json!({ "tools": [tool] }));
    assert!(reply.status == 400 && reply.body.contains("does not support tools"));
    let call = json!([{ "role": "user", "content": "x" }, { "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "{}" } }] }]);
    assert_eq!(chat(&desk, &json!({ "messages": call })).status, 400);
}
