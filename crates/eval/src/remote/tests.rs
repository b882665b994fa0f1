//! The client against a server on this machine.

use super::server_for_tests::{Response, SECRET, Server};
use super::*;
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use taper_diagnostics::Diagnose as _;
use taper_text::Message;

fn request(text: &str) -> ChatRequest {
    ChatRequest::greedy(vec![Message::new("user", text)], 8)
}

fn status_of(error: &Error) -> (u16, u32) {
    match error {
        Error::Status { status, attempts, .. } => (*status, *attempts),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_is_answered() {
    let server = Server::start(|_, _| Response::text("42"));
    let (endpoint, clock) = server.endpoint("extra = { top_k = 3 }");
    let reply = endpoint.chat(&request("What?")).unwrap();
    assert_eq!((reply.text.as_str(), reply.finish_reason.as_deref()), ("42", Some("stop")));
    assert_eq!(
        (reply.prompt_tokens, reply.completion_tokens, reply.model.as_deref()),
        (Some(3), Some(1), Some("m"))
    );
    let received = server.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].path, "/v1/chat/completions");
    assert_eq!(received[0].header("authorization"), Some(format!("Bearer {SECRET}").as_str()));
    assert_eq!(received[0].header("content-type"), Some("application/json"));
    assert_eq!(
        received[0].body,
        json!({"model": "m", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 8,
               "temperature": 0.0, "stream": false, "top_k": 3})
    );
    assert!(clock.slept().is_empty());
}

#[test]
fn without_a_variable_no_key_is_sent_and_a_missing_one_is_told() {
    let server = Server::start(|_, _| Response::text("42"));
    let section = EndpointSection { api_key_env: None, ..server.section("") };
    Endpoint::open(&section).unwrap().chat(&request("What?")).unwrap();
    assert_eq!(server.received()[0].header("authorization"), None);
    let missing = EndpointSection { api_key_env: Some("TAPER_NO_SUCH_KEY".into()), ..section };
    let error = Endpoint::open(&missing).unwrap_err();
    assert!(error.to_string().contains("`TAPER_NO_SUCH_KEY`") && error.is_for_all_items(), "{error}");
    assert!(matches!(Endpoint::open(&EndpointSection::default()), Err(Error::Section(_))));
}

#[test]
fn the_server_says_how_long_to_wait() {
    let server = Server::start(|number, _| match number {
        0 => Response::new(429, r#"{"error":{"message":"slow"}}"#).with_header("Retry-After: 17"),
        // 40 seconds after the date of the clock of the tests.
        1 => Response::new(503, "").with_header("Retry-After: Sun, 09 Sep 2001 01:47:20 GMT"),
        2 => Response::new(429, "").with_header("Retry-After: 999999"),
        _ => Response::text("42"),
    });
    let (endpoint, clock) = server.endpoint("");
    assert_eq!(endpoint.chat(&request("What?")).unwrap().text, "42");
    assert_eq!(clock.slept(), [17.0, 40.0, 600.0]);
}

#[test]
fn a_failing_server_is_asked_until_the_retries_are_used_up() {
    let server = Server::start(|number, _| match number % 2 {
        0 => Response::new(500, r#"{"error":{"message":"out of order"}}"#),
        _ => Response::Closed,
    });
    let (endpoint, clock) = server.endpoint("max_retries = 4");
    let error = endpoint.chat(&request("What?")).unwrap_err();
    assert_eq!(status_of(&error), (500, 5));
    assert!(error.to_string().ends_with("answered with status 500 (5 times): out of order"), "{error}");
    assert_eq!(server.received().len(), 5);
    for (slept, most) in clock.slept().iter().zip([1.0, 2.0, 4.0, 8.0]) {
        assert!((most / 2.0..=most).contains(slept), "{:?}", clock.slept());
    }
    assert_eq!(clock.slept().len(), 4);
}

#[test]
fn a_wrong_request_is_sent_once() {
    let long = "no ".repeat(1000);
    let server =
        Server::start(move |_, _| Response::new(400, json!({"error": {"message": long}}).to_string()));
    let (endpoint, clock) = server.endpoint("");
    let error = endpoint.chat(&request("What?")).unwrap_err();
    assert_eq!(status_of(&error), (400, 1));
    assert!(error.to_string().len() < 500 && error.to_string().contains("no no"), "{error}");
    assert_eq!((server.received().len(), clock.slept().len()), (1, 0));
    assert!(!error.is_for_all_items());
}

#[test]
fn who_is_not_let_in_is_told_the_variable_and_never_the_key() {
    for status in [401, 403] {
        let server = Server::start(move |_, _| {
            let body = json!({"error": {"message": format!("Incorrect API key provided: {SECRET}.")}});
            Response::new(status, body.to_string())
        });
        let (endpoint, _) = server.endpoint("");
        let error = endpoint.chat(&request("What?")).unwrap_err();
        assert!(error.hint().unwrap().contains("`THE_KEY`") && error.is_for_all_items());
        for shown in [error.to_string(), format!("{error:?}"), format!("{endpoint:?}")] {
            assert!(!shown.contains(SECRET) && !shown.contains("very-secret"), "{shown}");
        }
        assert!(error.to_string().contains("provided: [key]."), "{error}");
    }
    let server = Server::start(|_, _| Response::new(500, format!("<p>{SECRET}</p>")));
    let error = server.endpoint("max_retries = 0").0.chat(&request("What?")).unwrap_err();
    assert!(error.to_string().contains("<p>[key]</p>"), "{error}");
}

#[test]
fn redirects_are_not_followed() {
    let other = Server::start(|_, _| Response::text("42"));
    let to = format!("Location: {}/chat/completions", other.url);
    let server = Server::start(move |_, _| Response::new(307, "").with_header(&to));
    let error = server.endpoint("").0.chat(&request("What?")).unwrap_err();
    assert!(matches!(&error, Error::Redirect { to, .. } if to.starts_with(&other.url)), "{error:?}");
    assert_eq!((server.received().len(), other.received().len()), (1, 0));
}

#[test]
fn silence_and_closed_connections_are_tried_again() {
    let server = Server::start(|number, _| match number {
        0 => Response::Silence,
        1 => Response::Closed,
        _ => Response::text("42"),
    });
    let (endpoint, clock) = server.endpoint_within("", Duration::from_millis(500));
    assert_eq!(endpoint.chat(&request("What?")).unwrap().text, "42");
    assert_eq!((server.received().len(), clock.slept().len()), (3, 2));
    let silent = Server::start(|_, _| Response::Silence);
    let (endpoint, _) = silent.endpoint_within("max_retries = 1", Duration::from_millis(200));
    let error = endpoint.chat(&request("What?")).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { attempts: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("timeout"), "{error}");
}

#[test]
fn nobody_at_the_address_is_an_error_after_the_retries() {
    let url = Server::start(|_, _| Response::Closed).url.clone();
    let server = Server::start(|_, _| Response::Closed);
    // The first one is gone; a port nobody listens at.
    let section = EndpointSection { url, max_retries: 2, ..server.section("") };
    let clock = Arc::new(server_for_tests::FakeClock::default());
    let key = |_: &str| Some(SECRET.to_owned());
    let endpoint = Endpoint::open_with(&section, Duration::from_secs(5), clock.clone(), key).unwrap();
    let error = endpoint.chat(&request("What?")).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error:?}");
    assert_eq!(clock.slept().len(), 2);
}

#[test]
fn bodies_are_not_trusted() {
    for body in ["", "<html>", "{\"choices\":", "\u{fffd}", "[1,2]", "{\"choices\":[{\"message\":7}]}"] {
        let server = Server::start(move |_, _| Response::new(200, body));
        let error = server.endpoint("").0.chat(&request("What?")).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{body}: {error:?}");
        assert_eq!(server.received().len(), 1);
    }
    let deep = "[".repeat(100_000);
    let server = Server::start(move |_, _| Response::new(200, deep.clone()));
    assert!(matches!(server.endpoint("").0.chat(&request("What?")), Err(Error::Unreadable { .. })));
    let server = Server::start(|_, _| Response::new(200, vec![b' '; (16 << 20) + 1]));
    let error = server.endpoint("").0.chat(&request("What?")).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 16_777_216, .. }), "{error:?}");
    // The body of an error is read as far as it is told.
    let server = Server::start(|_, _| Response::new(400, vec![b'x'; 20 << 20]));
    assert_eq!(status_of(&server.endpoint("").0.chat(&request("What?")).unwrap_err()), (400, 1));
}

#[test]
fn an_error_with_status_200_is_an_error() {
    let server = Server::start(|number, _| match number {
        0 => Response::new(200, r#"{"error":{"code":429,"message":"slow down"}}"#),
        _ => Response::new(200, r#"{"error":{"code":"x","message":"no such thing"}}"#),
    });
    let error = server.endpoint("").0.chat(&request("What?")).unwrap_err();
    assert_eq!(status_of(&error), (200, 2));
}

#[test]
fn the_limit_of_tokens_is_called_as_the_server_wants_it() {
    let server = Server::start(|_, received| {
        let message = "Unsupported parameter: 'max_tokens' is not supported with this model. \
                       Use 'max_completion_tokens' instead.";
        match received.body.get("max_tokens") {
            Some(_) => Response::new(400, json!({"error": {"message": message}}).to_string()),
            None => Response::text("42"),
        }
    });
    let (endpoint, _) = server.endpoint("");
    let kept = endpoint.cache_key(&request("What?"));
    for _ in 0..2 {
        assert_eq!(endpoint.chat(&request("What?")).unwrap().text, "42");
    }
    let keys = server.received();
    let sent: Vec<bool> =
        keys.iter().map(|r| r.body.get("max_completion_tokens") == Some(&json!(8))).collect();
    assert_eq!(sent, [false, true, true]);
    assert_eq!(endpoint.cache_key(&request("What?")), kept);
    assert_ne!(endpoint.cache_key(&request("Who?")), kept);
    // A server that takes neither is asked twice, then once for each request.
    let server = Server::start(|_, _| Response::new(400, "max_tokens, max_completion_tokens: unknown"));
    let (endpoint, _) = server.endpoint("");
    (0..2).for_each(|_| assert_eq!(status_of(&endpoint.chat(&request("x")).unwrap_err()), (400, 1)));
    assert_eq!(server.received().len(), 3);
}

#[test]
fn requests_keep_the_rate() {
    let server = Server::start(|_, _| Response::text("42"));
    let (endpoint, clock) = server.endpoint("requests_per_minute = 20\nconcurrency = 1");
    let mut count = 0;
    endpoint.run_all(vec![request("What?"); 4], |index, reply| {
        assert_eq!((index, reply.unwrap().text.as_str()), (count, "42"));
        count += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((count, clock.slept()), (4, vec![3.0, 3.0, 3.0]));
}

#[test]
fn a_list_is_asked_at_a_time_and_failures_are_of_their_items() {
    // Each of four waits until all four are there.
    let meeting = Arc::new((Mutex::new(0), Condvar::new()));
    let server = Server::start(move |_, received| {
        let (count, all) = &*meeting;
        let mut here = count.lock().unwrap();
        *here += 1;
        all.notify_all();
        let wait = Duration::from_secs(10);
        let (here, waited) = all.wait_timeout_while(here, wait, |here| *here < 4).unwrap();
        drop(here);
        match (waited.timed_out(), received.body["messages"][0]["content"].as_str().unwrap()) {
            (true, _) => Response::new(400, "alone"),
            (_, "2") => Response::new(400, "not this one"),
            (_, text) => Response::text(text),
        }
    });
    let (endpoint, _) = server.endpoint("");
    let mut texts = vec![None; 8];
    endpoint.run_all((0..8).map(|i| request(&i.to_string())).collect(), |index, reply| {
        assert!(texts[index].replace(reply.map(|reply| reply.text)).is_none());
        ControlFlow::Continue(())
    });
    for (index, text) in texts.into_iter().enumerate() {
        match (index, text.unwrap()) {
            (2, failed) => assert!(failed.unwrap_err().to_string().ends_with("not this one")),
            (_, text) => assert_eq!(text.unwrap(), index.to_string()),
        }
    }
    endpoint.run_all(Vec::new(), |_, _| panic!("nothing was asked"));
}

#[test]
fn a_break_ends_the_work() {
    let server =
        Server::start(|number, _| if number == 0 { Response::text("42") } else { Response::Silence });
    let (endpoint, _) = server.endpoint("concurrency = 3");
    let mut seen = 0;
    endpoint.run_all(vec![request("What?"); 50], |_, reply| {
        reply.unwrap();
        seen += 1;
        ControlFlow::Break(())
    });
    // It did not wait for those that are not answered, and the endpoint can still be asked.
    assert_eq!(seen, 1);
    assert!(server.received().len() <= 4, "{}", server.received().len());
    // Nothing comes here, but the person presses a key.
    let silent = Server::start(|_, _| Response::Silence);
    let (endpoint, _) = silent.endpoint("");
    let looked = AtomicUsize::new(0);
    let interrupted = || looked.fetch_add(1, Ordering::Relaxed) == 2;
    endpoint.run_each(vec![request("What?")], Endpoint::chat, interrupted, |_, _| panic!("no reply"));
    assert_eq!(looked.load(Ordering::Relaxed), 3);
}

#[test]
fn log_likelihoods_are_asked_of_completions() {
    let server = Server::start(|_, received| match received.body["prompt"].as_str() {
        Some("The sky is blue") => {
            let told = json!({"tokens": ["The", " sky", " is", " blue"], "token_logprobs": [null, -2.0, -1.0, -0.5],
                              "text_offset": [0, 3, 7, 10]});
            let body = json!({"choices": [{"text": "The sky is blue", "logprobs": told}]});
            Response::new(200, body.to_string())
        }
        _ => Response::new(404, r#"{"detail":"Not Found"}"#),
    });
    let (endpoint, _) = server.endpoint("");
    let likely = endpoint.log_likelihood("The sky", " is blue").unwrap();
    assert_eq!(likely, LogLikelihood { sum: -1.5, tokens: 2, shares_a_token: false });
    assert_eq!(server.received()[0].path, "/v1/completions");
    assert_eq!(
        server.received()[0].body,
        json!({"model": "m", "prompt": "The sky is blue", "echo": true, "logprobs": 1, "max_tokens": 0,
               "temperature": 0, "stream": false})
    );
    let error = endpoint.log_likelihood("The sea", " is blue").unwrap_err();
    assert!(matches!(&error, Error::NoLogProbabilities { .. }), "{error:?}");
    assert!(error.to_string().contains("404: Not Found"), "{error}");
    assert!(endpoint.log_likelihood("The sea", "").is_err());
}

#[test]
fn a_judge_is_asked_in_both_orders() {
    // Prefers "good"; of two others the one shown first; says nothing of "odd".
    let server = Server::start(|_, received| {
        let text = received.body["messages"][1]["content"].as_str().unwrap().to_owned();
        let place = |word: &str| text.find(&format!("\n{word}\n"));
        let verdict = match (place("good"), text.find("BEGIN ANSWER B")) {
            _ if text.contains("lost") => return Response::new(400, "no"),
            _ if text.contains("odd") => "I cannot say",
            (Some(good), Some(b)) if good > b => "{\"verdict\": \"B\"}",
            _ => "{\"verdict\": \"A\"}",
        };
        Response::text(verdict)
    });
    let section = JudgeSection { endpoint: server.section(""), ..JudgeSection::default() };
    let judge = Judge::with(server.endpoint("").0, &section);
    let pairs =
        [("good", "bad"), ("bad", "good"), ("bad", "worse"), ("odd", "bad"), ("same", "same"), ("lost", "x")];
    let items = pairs.map(|(first, second)| JudgeItem {
        question: "Which?".into(),
        reference: None,
        first: first.into(),
        second: second.into(),
    });
    let mut judged: Vec<Option<Result<Judged>>> = vec![None; items.len()];
    judge.judge_all(
        &items,
        || false,
        |index, pair| {
            assert!(judged[index].replace(pair).is_none());
            ControlFlow::Continue(())
        },
    );
    let judged: Vec<Result<Judged>> = judged.into_iter().map(Option::unwrap).collect();
    assert!(judged[5].is_err());
    let judged: Vec<Judged> = judged[..5].iter().map(|pair| pair.clone().unwrap()).collect();
    let outcomes: Vec<_> = judged.iter().map(|pair| pair.outcome()).collect();
    use Outcome::{Loss, Tie, Win};
    assert_eq!(outcomes, [Some(Win), Some(Loss), Some(Tie), None, Some(Tie)]);
    assert_eq!(position_bias(&judged), PositionBias { decided: 3, first_place: 1, second_place: 0 });
    // Equal answers were not sent.
    assert_eq!(server.received().len(), 10);
}
