//! Clients that mean no good, or do no better.

use crate::support::{Desk, chat_body, read_all};
use serde_json::json;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The server still answers.
fn lives(desk: &Desk) {
    desk.get("/health").ok();
    desk.chat(&json!({ "max_tokens": 2 })).ok();
}

#[test]
fn what_is_no_http_is_refused() {
    let desk = Desk::new();
    for bytes in [
        b"\0\0\0\0\r\n\r\n".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n bad: fold\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx\0y: 1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let answer = desk.raw(bytes);
        let shown = String::from_utf8_lossy(bytes).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
    }
    lives(&desk);
}

#[test]
fn heads_that_are_too_large_or_have_too_many_headers_are_refused() {
    let desk = Desk::new();
    let huge = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert!(desk.raw(huge.as_bytes()).starts_with("HTTP/1.1 431"));
    let many: String = (0..200).map(|i| format!("x{i}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n");
    assert!(desk.raw(many.as_bytes()).starts_with("HTTP/1.1 431"));
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(70_000));
    let answer = desk.raw(long.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    lives(&desk);
}

#[test]
fn bodies_over_the_limit_are_refused_told_or_not() {
    let desk = Desk::with(|setup| setup.app.limits.body_bytes = 10_000);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
    let told = format!("{head}content-length: 999999999999\r\n\r\n");
    assert!(desk.raw(told.as_bytes()).starts_with("HTTP/1.1 413"));
    let chunk = format!("2710\r\n{}\r\n", "x".repeat(10_000));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    assert!(desk.raw(chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    let zipped =
        format!("{head}content-encoding: gzip\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    assert!(desk.raw(zipped.as_bytes()).starts_with("HTTP/1.1 415"));
    lives(&desk);
}

#[test]
fn slow_heads_and_slow_bodies_are_given_up() {
    let desk = Desk::with(|setup| {
        setup.app.limits.head_timeout = Duration::from_millis(300);
        setup.app.limits.body_timeout = Duration::from_millis(300);
    });
    let started = Instant::now();
    let mut stream = desk.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: loc").unwrap();
    read_all(&mut stream);
    let mut stream = desk.connect();
    stream.write_all(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{").unwrap();
    assert!(read_all(&mut stream).starts_with("HTTP/1.1 408"));
    assert!(started.elapsed() < Duration::from_secs(10));
    lives(&desk);
}

#[test]
fn connections_beyond_the_limit_are_turned_away_and_room_comes_back() {
    let desk = Desk::with(|setup| setup.app.limits.connections = 2);
    let ask = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut held = [desk.connect(), desk.connect()];
    for stream in &mut held {
        stream.write_all(ask).unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
    let answer = desk.raw(ask);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    drop(held);
    crate::support::wait_until("room", || {
        desk.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 200")
    });
}

/// Who goes away in the middle of an answer frees his place at once.
#[test]
fn a_client_that_goes_away_ends_its_request() {
    let desk = Desk::with(|setup| {
        setup.service.engine.batch_size = 1;
        setup.service.max_waiting = 1;
    });
    for stream in [true, false] {
        let body =
            chat_body(&json!({ "stream": stream, "max_tokens": 2000, "ignore_eos": true })).to_string();
        let mut client = desk.connect();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(head.as_bytes()).unwrap();
        crate::support::wait_until("a running request", || desk.metric("vllm:num_requests_running") == 1.0);
        drop(client);
        let started = Instant::now();
        crate::support::wait_until("an idle engine", || desk.metric("vllm:num_requests_running") == 0.0);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    crate::support::wait_until("two broken off", || {
        desk.metric("vllm:request_success_total{finished_reason=\"abort\"}") == 2.0
    });
    lives(&desk);
}

#[test]
fn a_full_queue_is_told_and_empties() {
    let desk = Desk::with(|setup| {
        setup.service.engine.batch_size = 1;
        setup.service.max_waiting = 1;
    });
    let long = json!({ "max_tokens": 1500, "ignore_eos": true });
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| desk.chat(&long).ok());
        }
        crate::support::wait_until("a full queue", || desk.metric("vllm:num_requests_waiting") == 1.0);
        let reply = desk.chat(&json!({}));
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
        assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    });
    lives(&desk);
    // More at once than the server ever takes is no matter of waiting.
    assert_eq!(desk.chat(&json!({ "n": 3 })).status, 400);
}

#[test]
fn a_request_that_takes_too_long_is_ended_whole_and_streamed() {
    let desk = Desk::with(|setup| setup.app.limits.request_timeout = Duration::from_millis(150));
    let long = json!({ "max_tokens": 2000, "ignore_eos": true });
    let reply = desk.chat(&long);
    assert_eq!((reply.status, reply.header("x-should-retry")), (504, Some("false")));
    assert_eq!(reply.json()["error"]["code"], "request_timeout");
    let (events, is_done) =
        desk.chat(&crate::support::merged(&long, &json!({ "stream": true }))).ok().events();
    assert!(is_done);
    assert_eq!(events.last().unwrap()["error"]["code"], "request_timeout");
    crate::support::wait_until("an idle engine", || desk.metric("vllm:num_requests_running") == 0.0);
}
