//! How a server ends.

use crate::support::{Desk, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};
use taper_serve::Drained;

#[test]
fn an_idle_server_ends_at_once() {
    let desk = Desk::new();
    desk.chat(&json!({})).ok();
    let started = Instant::now();
    assert_eq!(desk.end(), Drained::Whole);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn requests_in_flight_get_their_whole_answer_and_new_ones_are_sent_elsewhere() {
    let desk = Desk::new();
    let long = json!({ "max_tokens": 1500, "ignore_eos": true });
    let streamed = json!({ "max_tokens": 1500, "ignore_eos": true, "stream": true });
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| desk.chat(&long));
        let stream = scope.spawn(|| desk.chat(&streamed));
        wait_until("two running requests", || desk.metric("vllm:num_requests_running") == 2.0);
        assert_eq!(desk.get("/ready").status, 200);
        desk.shutdown.ask();
        wait_until("not ready", || desk.get("/ready").status == 503);
        assert_eq!(desk.get("/health").status, 200, "it lives");
        let reply = desk.chat(&json!({}));
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("10")));
        assert_eq!(reply.json()["error"]["code"], "shutting_down");
        let whole = whole.join().unwrap().ok().json();
        assert_eq!(whole["usage"]["completion_tokens"], 1500);
        let (events, is_done) = stream.join().unwrap().ok().events();
        assert!(is_done && events.last().unwrap()["choices"][0]["finish_reason"] == "length");
    });
    let address = desk.address;
    assert_eq!(desk.ended(), Drained::Whole);
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn when_the_time_is_up_what_is_left_is_cut_off_and_told() {
    let desk = Desk::with(|setup| setup.server.drain_timeout = Duration::from_millis(100));
    let long = json!({ "max_tokens": 2000, "ignore_eos": true, "stream": true });
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| desk.chat(&long));
        wait_until("a running request", || desk.metric("vllm:num_requests_running") == 1.0);
        desk.shutdown.ask();
        let (events, _) = stream.join().unwrap().ok().events();
        assert_eq!(events.last().unwrap()["error"]["code"], "shutting_down");
    });
    assert_eq!(desk.ended(), Drained::Cut { requests: 1 });
}

#[test]
fn asked_twice_it_does_not_wait() {
    let desk = Desk::new();
    let long = json!({ "max_tokens": 2000, "ignore_eos": true });
    let started = Instant::now();
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| desk.chat(&long));
        wait_until("a running request", || desk.metric("vllm:num_requests_running") == 1.0);
        desk.shutdown.ask();
        desk.shutdown.ask();
        assert_eq!(whole.join().unwrap().status, 503);
    });
    assert_eq!(desk.ended(), Drained::Cut { requests: 1 });
    assert!(started.elapsed() < Duration::from_secs(10));
}
