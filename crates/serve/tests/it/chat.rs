//! Conversations: the shapes of answers and streams.

use crate::support::{Desk, assert_near, merged, tools_template};
use serde_json::{Value, json};

#[test]
fn an_answer_has_openais_shape_and_repeats_with_its_seed() {
    let desk = Desk::new();
    let reply = desk.chat(&json!({})).ok();
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-request-id").unwrap().len(), 24);
    let body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("tiny")));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &body["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["finish_reason"], "length");
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 6);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), prompt + 6);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() <= prompt);
    assert_eq!(desk.chat(&json!({})).json()["choices"], body["choices"], "greedy repeats");
    let sampled =
        |seed: i64| desk.chat(&json!({ "temperature": 1.5, "seed": seed })).ok().json()["choices"].clone();
    assert_eq!(sampled(3), sampled(3));
    assert!((4..10).any(|seed| sampled(seed) != sampled(3)));
}

#[test]
fn choices_are_drawn_apart() {
    let desk = Desk::new();
    let body = desk.chat(&json!({ "n": 4, "temperature": 2, "seed": 1 })).ok().json();
    let choices = body["choices"].as_array().unwrap();
    let texts: std::collections::BTreeSet<_> =
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    assert_eq!((choices.len(), choices[3]["index"].as_u64()), (4, Some(3)));
    assert!(texts.len() > 1);
    assert!(body["usage"]["completion_tokens"].as_u64().unwrap() <= 24);
}

#[test]
fn a_stream_is_the_answer_in_pieces_in_openais_order() {
    let desk = Desk::new();
    let whole = desk.chat(&json!({ "max_tokens": 12 })).ok().json();
    let options = json!({ "max_tokens": 12, "stream": true, "stream_options": { "include_usage": true } });
    let reply = desk.chat(&options).ok();
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    let (events, is_done) = reply.events();
    assert!(is_done);
    let first = &events[0];
    let expected = json!({ "index": 0, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null });
    assert_eq!(first["choices"], json!([expected]));
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&first["id"], &first["created"]));
        assert!(event.as_object().unwrap().contains_key("usage"));
    }
    let (usage, rest) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(rest.iter().all(|event| event["usage"].is_null()));
    let (last, rest) = rest.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let text: String =
        rest[1..].iter().map(|e| e["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let (plain, _) = desk.chat(&json!({ "stream": true })).ok().events();
    assert!(plain.iter().all(|event| !event.as_object().unwrap().contains_key("usage")));
}

#[test]
fn log_probabilities_are_told_for_each_token_whole_and_streamed() {
    let desk = Desk::new();
    let with = json!({ "logprobs": true, "top_logprobs": 3 });
    let body = desk.chat(&with).ok().json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 6);
    for entry in &content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy takes the likeliest.
        assert_eq!(top[0]["logprob"], entry["logprob"]);
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
    }
    let (events, _) = desk.chat(&merged(&with, &json!({ "stream": true }))).ok().events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    let of =
        |key: &str, entries: &[Value]| entries.iter().map(|entry| entry[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("token", &streamed), of("token", &content));
    assert_near(&of("logprob", &streamed), &of("logprob", &content));
}

#[test]
fn a_stop_string_ends_the_text_and_is_told() {
    let desk = Desk::new();
    let whole = desk.chat(&json!({ "max_tokens": 12 })).ok().json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(3).take(2).collect();
    let body = desk.chat(&json!({ "max_tokens": 12, "stop": [stop] })).ok().json();
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], stop);
    assert_eq!(choice["message"]["content"].as_str().unwrap(), text.split(&stop).next().unwrap());
}

#[test]
fn an_answer_is_held_to_a_form() {
    let desk = Desk::new();
    let schema = json!({
        "type": "object", "properties": { "colour": { "enum": ["red", "blue"] } }, "required": ["colour"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "colour", "schema": schema } });
    let body = desk.chat(&json!({ "response_format": format, "max_tokens": 200 })).ok().json();
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["colour"] == "red" || value["colour"] == "blue", "{value}");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let body = desk.chat(&json!({ "guided_choice": ["yes", "no"], "max_tokens": 50 })).ok().json();
    assert!(["yes", "no"].contains(&body["choices"][0]["message"]["content"].as_str().unwrap()), "{body}");
}

fn weather() -> Value {
    json!({ "type": "function", "function": {
        "name": "get_weather", "description": "The weather in a city",
        "parameters": {
            "type": "object", "properties": { "city": { "enum": ["Bern", "Rome"] } }, "required": ["city"],
            "additionalProperties": false,
        },
    } })
}

/// A call that has to be made is one, whatever the model would rather write: here it has random weights.
#[test]
fn a_call_that_is_required_is_made_whole_and_streamed() {
    let desk = Desk::with(|setup| setup.template = Some(tools_template()));
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "get_weather" } })] {
        let with = json!({ "tools": [weather()], "tool_choice": choice, "max_tokens": 300 });
        let body = desk.chat(&with).ok().json();
        let answer = &body["choices"][0];
        assert_eq!(answer["finish_reason"], "tool_calls", "{body}");
        assert_eq!(answer["message"]["content"], Value::Null);
        let call = &answer["message"]["tool_calls"][0];
        assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["city"] == "Bern" || arguments["city"] == "Rome");
        let (events, is_done) = desk.chat(&merged(&with, &json!({ "stream": true }))).ok().events();
        assert!(is_done);
        let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
        let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta.get("tool_calls")).collect();
        assert_eq!(calls.len(), 1, "{events:?}");
        assert_eq!(calls[0][0]["index"], 0);
        assert_eq!(calls[0][0]["function"]["name"], "get_weather");
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn tools_need_a_template_that_takes_them_and_are_in_the_prompt_where_it_does() {
    let desk = Desk::new();
    let reply = desk.chat(&json!({ "tools": [weather()] }));
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("tools")));
    let desk = Desk::with(|setup| setup.template = Some(tools_template()));
    let tokens = |with: &Value| desk.chat(with).ok().json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let without = tokens(&json!({}));
    assert!(tokens(&json!({ "tools": [weather()] })) > without + 20);
    assert_eq!(tokens(&json!({ "tools": [weather()], "tool_choice": "none" })), without);
}

#[test]
fn contents_are_strings_or_lists_of_texts() {
    let desk = Desk::new();
    let count = |content: Value| {
        let messages = json!([{ "role": "user", "content": content }]);
        desk.chat(&json!({ "messages": messages })).ok().json()["usage"]["prompt_tokens"].clone()
    };
    let part = |text: &str| json!({ "type": "text", "text": text });
    assert_eq!(count(json!([part("a"), part("b")])), count(json!("a\nb")));
}

#[test]
fn two_requests_at_once_get_what_each_gets_alone() {
    let desk = Desk::new();
    let ask = |text: &str| {
        let messages = json!([{ "role": "user", "content": text }]);
        desk.chat(&json!({ "messages": messages, "max_tokens": 40 })).ok().json()["choices"].clone()
    };
    let texts = ["Hello", "red or blue?", "a longer question about many things", "x"];
    let alone = texts.map(ask);
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads = texts.map(|text| scope.spawn(move || ask(text)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert_ne!(alone[0], alone[1]);
}
