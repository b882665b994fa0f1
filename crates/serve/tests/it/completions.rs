//! Prompts as they are: echo, log-probabilities, several prompts.

use crate::support::{Desk, assert_near};
use serde_json::{Value, json};

#[test]
fn an_answer_has_openais_shape_and_16_tokens_unless_said() {
    let desk = Desk::new();
    let body = desk.complete(&json!({ "max_tokens": null, "ignore_eos": true })).ok().json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["usage"]["completion_tokens"], 16);
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["logprobs"], &choice["finish_reason"]),
        (&json!(0), &Value::Null, &json!("length"))
    );
}

/// As lm-evaluation-harness asks: ids, echo, one token, greedy; it reads the log-probabilities behind the context and without the
/// last, and greedy is `token_logprob == max(top_logprobs)`.
#[test]
fn a_harness_can_score_texts() {
    let desk = Desk::new();
    let ids = desk.post("/tokenize", &json!({ "model": "tiny", "prompt": "red blue green" })).ok().json();
    let ids = ids["tokens"].as_array().unwrap().clone();
    let with = json!({ "prompt": [ids, ids], "echo": true, "max_tokens": 1, "logprobs": 1 });
    let body = desk.complete(&with).ok().json();
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    let numbers = |i: usize| choices[i]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_near(numbers(0), numbers(1));
    let logprobs = &choices[0]["logprobs"];
    let (own, top) =
        (logprobs["token_logprobs"].as_array().unwrap(), logprobs["top_logprobs"].as_array().unwrap());
    assert_eq!((own.len(), top.len()), (ids.len() + 1, ids.len() + 1));
    assert!(own[0].is_null() && top[0].is_null());
    for (own, top) in own.iter().zip(top).skip(1) {
        let best = top.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(own.as_f64().unwrap() <= best && best <= 0.0);
    }
    // The last was written greedily.
    let best =
        top[ids.len()].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
    assert_eq!(own[ids.len()].as_f64().unwrap(), best);
    let text = choices[0]["text"].as_str().unwrap();
    assert!(text.starts_with("red blue green"), "{text}");
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(tokens.starts_with("red blue green"), "{tokens}");
    // With 0 tokens the same prompt is told and nothing is written.
    let with = json!({ "prompt": ids, "echo": true, "max_tokens": 0, "logprobs": 1 });
    let none = desk.complete(&with).ok().json();
    let alone = none["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_near(alone, &own[..ids.len()]);
    assert_eq!(none["usage"]["completion_tokens"], 0);
    assert_eq!(none["choices"][0]["text"], "red blue green");
}

#[test]
fn prompts_are_strings_or_ids_one_or_several() {
    let desk = Desk::new();
    let ids = desk.post("/tokenize", &json!({ "model": "tiny", "prompt": "red blue" })).ok().json()["tokens"]
        .clone();
    let text = |prompt: Value| desk.complete(&json!({ "prompt": prompt })).ok().json()["choices"].clone();
    let one = text(json!("red blue"));
    assert_eq!(text(ids.clone()), one);
    assert_eq!(text(json!(["red blue"])), one);
    assert_eq!(text(json!([ids])), one);
    let two = text(json!(["red blue", "green"]));
    assert_eq!(two[0], one[0]);
    assert_eq!(two[1]["index"], 1);
    let several = desk.complete(&json!({ "prompt": ["red blue", "green"], "n": 2, "seed": 1 })).ok().json();
    let indices: Vec<u64> =
        several["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let desk = Desk::new();
    let whole = desk.complete(&json!({ "echo": true })).ok().json();
    let with = json!({ "echo": true, "stream": true, "stream_options": { "include_usage": true } });
    let (events, is_done) = desk.complete(&with).ok().events();
    assert!(is_done);
    let text: String = events.iter().filter_map(|event| event["choices"].get(0)?["text"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
}

#[test]
fn tokenising_and_back() {
    let desk = Desk::new();
    let body = json!({ "model": "tiny", "prompt": "red blue", "return_token_strs": true });
    let told = desk.post("/tokenize", &body).ok().json();
    assert_eq!(told["count"].as_u64().unwrap() as usize, told["tokens"].as_array().unwrap().len());
    assert_eq!(told["max_model_len"], 2048);
    assert_eq!(told["token_strs"].as_array().unwrap().len(), told["count"].as_u64().unwrap() as usize);
    let back = desk.post("/detokenize", &json!({ "model": "tiny", "tokens": told["tokens"] })).ok().json();
    assert_eq!(back["prompt"], "red blue");
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let chat = desk.post("/tokenize", &json!({ "model": "tiny", "messages": messages })).ok().json();
    let usage = desk.chat(&json!({ "messages": messages })).ok().json()["usage"].clone();
    assert_eq!(chat["count"], usage["prompt_tokens"]);
}
