//! A server that speaks as much of OpenAI's API as a load generator hears, and remembers what it was asked.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Tokens that the mock counts beside the words of a prompt, as a chat template adds some.
pub(crate) const TEMPLATE_TOKENS: usize = 10;

/// How it answers. Some names of models stand for ways to fail: see [`MockServer::url`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Before the first token.
    pub(crate) first: Duration,
    /// Before each other token.
    pub(crate) token: Duration,
    /// One request after the other.
    pub(crate) serial: bool,
    pub(crate) usage: bool,
    /// The key it wants.
    pub(crate) key: Option<&'static str>,
}

impl Default for Manner {
    fn default() -> Self {
        Self { first: Duration::ZERO, token: Duration::ZERO, serial: false, usage: true, key: None }
    }
}

#[derive(Debug, Default)]
struct Seen {
    bodies: Vec<Value>,
    in_flight: usize,
    most_in_flight: usize,
}

pub(crate) struct MockServer {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

impl MockServer {
    /// Listen on a free port until the process ends.
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, turn) = (seen.clone(), Arc::new(Mutex::new(())));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, turn) = (shared.clone(), turn.clone());
                // A client that goes away ends its connection, no more.
                std::thread::spawn(move || serve_connection(stream.unwrap(), manner, &seen, &turn));
            }
        });
        Self { url, seen }
    }

    /// Listen on a free port until the process ends, and answer chat requests whole: with a text, or with a status that refuses them.
    pub(crate) fn answering(
        key: Option<&'static str>,
        answer: impl Fn(&Value) -> Result<String, u16> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (shared.clone(), answer.clone());
                std::thread::spawn(move || answer_connection(stream.unwrap(), key, &seen, answer.as_ref()));
            }
        });
        Self { url, seen }
    }

    /// The address. Its models: `steady` and others are answered; `busy` is refused with 429, `loading` with 503, `wrong` with 400; `cut`
    /// ends in the middle, `ill` with an error in the stream.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The bodies of requests for text, in the order in which they came.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.seen.lock().unwrap().bodies.clone()
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.seen.lock().unwrap().most_in_flight
    }
}

fn serve_connection(mut stream: TcpStream, manner: Manner, seen: &Mutex<Seen>, turn: &Mutex<()>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((line, headers, body)) = read_request(&mut reader) {
        let authorized = manner.key.is_none_or(|key| {
            headers.iter().any(|header| header.eq_ignore_ascii_case(&format!("authorization: bearer {key}")))
        });
        let done = match line.as_str() {
            _ if !authorized => stream.write_all(&reply(401, r#"{"error":{"message":"wrong key"}}"#)),
            "GET /v1/models HTTP/1.1" => {
                stream.write_all(&reply(200, r#"{"data":[{"id":"steady"},{"id":"x"}]}"#))
            }
            "POST /v1/chat/completions HTTP/1.1" | "POST /v1/completions HTTP/1.1" => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                {
                    let mut seen = seen.lock().unwrap();
                    seen.bodies.push(body.clone());
                    seen.in_flight += 1;
                    seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
                }
                let guard = manner.serial.then(|| turn.lock().unwrap());
                let last = answer(&mut stream, manner, &body, line.contains("chat"));
                drop(guard);
                // Before the client can know that it has ended, and ask again.
                seen.lock().unwrap().in_flight -= 1;
                last.and_then(|last| stream.write_all(&last))
            }
            _ => stream.write_all(&reply(404, r#"{"error":{"message":"no such path"}}"#)),
        };
        if done.is_err() {
            return;
        }
    }
}

fn answer_connection(
    mut stream: TcpStream,
    key: Option<&'static str>,
    seen: &Mutex<Seen>,
    answer: &dyn Fn(&Value) -> Result<String, u16>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((_, headers, body)) = read_request(&mut reader) {
        let body: Value = serde_json::from_slice(&body).unwrap();
        seen.lock().unwrap().bodies.push(body.clone());
        let authorized = key.is_none_or(|key| {
            headers.iter().any(|header| header.eq_ignore_ascii_case(&format!("authorization: bearer {key}")))
        });
        let answered = match answer(&body) {
            _ if !authorized => reply(401, r#"{"error":{"message":"wrong key"}}"#),
            Err(status) => reply(status, r#"{"error":{"message":"not so"}}"#),
            Ok(text) => {
                let choice =
                    json!({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"});
                let usage = json!({"prompt_tokens": 20, "completion_tokens": 2});
                reply(200, &json!({"model": body["model"], "choices": [choice], "usage": usage}).to_string())
            }
        };
        if stream.write_all(&answered).is_err() {
            return;
        }
    }
}

/// Request line, headers and body; none at the end.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<String>, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let length = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let line = lines.remove(0);
    Some((line, lines, body))
}

fn reply(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {length}");
    format!("{head}\r\n\r\n{body}").into_bytes()
}

/// Answer but for the last bytes, which are returned.
fn answer(stream: &mut TcpStream, manner: Manner, body: &Value, chat: bool) -> std::io::Result<Vec<u8>> {
    let model = body["model"].as_str().unwrap();
    // The load generator sizes its prompts by answers of one token; ways to fail are for the load.
    let tokens = body["max_tokens"].as_u64().unwrap();
    match model {
        "busy" if tokens > 1 => return Ok(reply(429, r#"{"error":{"message":"too many"}}"#)),
        "loading" if tokens > 1 => return Ok(reply(503, r#"{"error":{"message":"loading"}}"#)),
        "wrong" if tokens > 1 => return Ok(reply(400, r#"{"error":{"message":"not so"}}"#)),
        _ => {}
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )?;
    if chat {
        let role = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]});
        stream.write_all(&event(&role.to_string()))?;
    }
    for token in 0..tokens {
        std::thread::sleep(if token == 0 { manner.first } else { manner.token });
        if token > 0 && model == "cut" {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        if token > 0 && model == "ill" {
            stream.write_all(&event(r#"{"error":{"message":"out of memory"}}"#))?;
            break;
        }
        let choice = if chat { json!({"delta": {"content": "w "}}) } else { json!({"text": "w "}) };
        stream.write_all(&event(&json!({"choices": [choice]}).to_string()))?;
    }
    let mut last = Vec::new();
    if manner.usage {
        let prompt = body["prompt"].as_str().or(body["messages"][0]["content"].as_str()).unwrap();
        let prompt_tokens = prompt.split(' ').count() + TEMPLATE_TOKENS;
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens});
        last.extend(event(&json!({"choices": [], "usage": usage}).to_string()));
    }
    last.extend(event("[DONE]"));
    last.extend(b"0\r\n\r\n");
    Ok(last)
}

/// An event as a chunk of its own.
fn event(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}
