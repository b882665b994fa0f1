//! `taper bench serve`: a load on a server whose pace is known.

use crate::desk::{Desk, Said, said};
use crate::mock_server::{Manner, MockServer, TEMPLATE_TOKENS};
use serde_json::{Value, json};
use std::time::Duration;

fn bench(server: &MockServer, flags: &[&str]) -> Said {
    Desk::empty().taper(&[&["bench", "serve", "--url", server.url()], flags].concat())
}

fn number(figures: &Value, path: &[&str]) -> f64 {
    path.iter().fold(figures, |at, key| &at[key]).as_f64().unwrap_or_else(|| panic!("{path:?} in {figures}"))
}

#[test]
fn a_closed_loop_keeps_its_clients_busy_and_times_what_the_server_does() {
    let (first, token) = (Duration::from_millis(60), Duration::from_millis(20));
    let server = MockServer::start(Manner { first, token, ..Manner::default() });
    let flags = ["--concurrency", "3", "--requests", "9", "--tokens", "4", "--prompt-tokens", "40", "--json"];
    let figures = bench(&server, &flags).exits(0).json();
    assert_eq!((&figures["answered"], &figures["models"]), (&json!(9), &json!(["steady"])));
    assert_eq!((&figures["refused"], &figures["failed"]), (&json!({}), &json!({})));
    assert_eq!(server.most_in_flight(), 3);
    // The server's template is taken off the words of the prompt: it counts 40 tokens for each.
    assert_eq!((&figures["input_tokens"], &figures["output_tokens"]), (&json!(9 * 40), &json!(9 * 4)));
    let bodies = server.bodies();
    // Two sizes, three before the measured ones.
    assert_eq!(bodies.len(), 2 + 3 + 9);
    let last = bodies[13]["messages"][0]["content"].as_str().unwrap();
    assert_eq!(last.split(' ').count() + TEMPLATE_TOKENS, 40);
    // No token comes earlier than it was sent; how much later, a busy machine decides.
    assert!(number(&figures, &["time_to_first_token_ms", "p50"]) >= 60.0, "{figures}");
    assert!(number(&figures, &["inter_token_latency_ms", "mean"]) >= 15.0, "{figures}");
    let whole = number(&figures, &["end_to_end_ms", "p50"]);
    assert!(
        whole >= 120.0 && number(&figures, &["time_to_first_token_ms", "p50"]) <= whole - 40.0,
        "{figures}"
    );
    // Three rounds of 120 ms at least.
    assert!(number(&figures, &["seconds"]) >= 0.36, "{figures}");
}

#[test]
fn an_open_loop_charges_the_server_for_requests_that_had_to_wait() {
    let manner = Manner { first: Duration::from_millis(50), serial: true, ..Manner::default() };
    let server = MockServer::start(manner);
    // 100 arrivals a second, 20 answers a second at most: the last of 40 is answered after 2 s and was due after 0.4 s.
    let flags = ["--rate", "100", "--max-in-flight", "2", "--requests", "40", "--tokens", "1", "--json"];
    let figures = bench(&server, &flags).exits(0).json();
    assert_eq!((&figures["answered"], &figures["loop"]), (&json!(40), &json!("open")));
    assert!(number(&figures, &["sent_late"]) >= 20.0, "{figures}");
    // From the sending it would be 0.1 s: two in flight.
    assert!(number(&figures, &["time_to_first_token_ms", "max"]) > 900.0, "{figures}");
}

#[test]
fn refusals_and_failures_are_counted_apart_and_told() {
    let server = MockServer::start(Manner::default());
    let models = ["--model", "steady", "--model", "busy", "--model", "loading"];
    let more = ["--model", "wrong", "--model", "cut", "--model", "ill"];
    let flags = ["--requests", "12", "--tokens", "3", "--warmup", "0"];
    let told = bench(&server, &[&models[..], &more, &flags].concat()).exits(0);
    for line in [
        "2 answered, 4 (429: 2, 503: 2) refused, 6 (error in the stream: 2, status 400: 2, stream cut off: 2) failed",
        "first \"error in the stream\": out of memory",
        "first \"status 400\": not so",
        "6 tokens, ",
    ] {
        assert!(told.out.contains(line), "{line} in {}", told.out);
    }
    let json = bench(&server, &[&models[..], &more, &flags, &["--json"]].concat()).exits(0).json();
    assert_eq!(json["refused"], json!({"429": 2, "503": 2}));
    assert_eq!(json["failed"], json!({"error in the stream": 2, "status 400": 2, "stream cut off": 2}));
    // Nothing answered is no measurement.
    let none = bench(&server, &["--model", "busy", "--requests", "2", "--tokens", "3"]).exits(4);
    assert!(none.out.contains("0 answered, 2 (429: 2) refused"), "{}", none.out);
}

#[test]
fn models_are_asked_as_they_were_spread() {
    let server = MockServer::start(Manner { usage: false, ..Manner::default() });
    let models = ["--model", "a", "--model", "b", "--model", "c", "--api", "completions"];
    let flags =
        ["--adapters", "skewed", "--requests", "110", "--tokens", "2", "--concurrency", "4", "--json"];
    let figures = bench(&server, &[&models[..], &flags].concat()).exits(0).json();
    let answered = |i: usize| figures["per_model"][i]["answered"].as_u64().unwrap();
    // 60, 30 and 20 are expected.
    assert!(answered(0) > answered(1) && answered(1) > 10 && answered(2) > 5, "{figures}");
    assert_eq!(answered(0) + answered(1) + answered(2), 110);
    assert_eq!(figures["output_tokens_counted_by"], json!("chunks"));
    let asked = server.bodies()[2 + 4..].iter().filter(|body| body["model"] == "b").count() as u64;
    assert_eq!(asked, answered(1));
}

#[test]
fn prompts_of_a_file_are_sent_as_they_are_and_the_key_goes_with_them() {
    let server = MockServer::start(Manner { key: Some("secret"), ..Manner::default() });
    let desk = Desk::empty();
    desk.write("p.jsonl", "{\"prompt\":\"one\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"two\"}]}\n");
    let args =
        ["bench", "serve", "--url", server.url(), "--prompts", "p.jsonl", "--requests", "2", "--tokens", "2"];
    desk.taper(&args).exits(2).tells(&["does not tell its models", "status 401: wrong key", "TAPER_API_KEY"]);
    let output = desk.command(&args).env("TAPER_API_KEY", "secret").output().unwrap();
    said(output, &args).exits(0);
    // Each is asked: to see that the server is there, before the measured ones, and twice in these.
    let asked: Vec<Value> =
        server.bodies().iter().map(|body| body["messages"][0]["content"].clone()).collect();
    assert_eq!(asked, ["one", "one", "two", "one"]);
}

#[test]
fn what_cannot_be_measured_is_an_error_with_a_remedy() {
    let desk = Desk::empty();
    let refused = |flags: &[&str], told: &[&str]| {
        desk.taper(&[&["bench", "serve"], flags].concat()).exits(2).tells(told);
    };
    refused(&["--requests", "0"], &["`--requests` is 0", "it takes 1 or more"]);
    refused(&["--concurrency", "0"], &["`--concurrency` is 0"]);
    refused(&["--rate", "0"], &["`--rate 0` is out of range"]);
    refused(&["--rate", "inf"], &["`--rate inf` is out of range"]);
    refused(&["--rate", "1", "--concurrency", "2"], &["cannot be used with"]);
    refused(&["--url", "localhost:8080"], &["`--url localhost:8080` is no address", "http://"]);
    refused(&["--shared-prefix", "200"], &["`--shared-prefix 200` is more than `--prompt-tokens 128`"]);
    // Nothing listens there.
    refused(
        &["--url", "http://127.0.0.1:9"],
        &["http://127.0.0.1:9 does not tell its models", "start the server"],
    );
    refused(&["--url", "http://127.0.0.1:9", "--model", "m"], &["the first request", "failed (connection)"]);
}
