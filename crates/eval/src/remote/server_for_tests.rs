//! A small HTTP server and a clock that does not wait, for the tests of the client.

use super::clock::Clock;
use super::{Endpoint, EndpointSection};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// The key of the tests.
pub(super) const SECRET: &str = "sk-very-secret-0123456789";

/// A clock that moves on when somebody sleeps.
#[derive(Debug, Default)]
pub(super) struct FakeClock(Mutex<Vec<Duration>>);

impl FakeClock {
    /// Seconds of each sleep.
    pub(super) fn slept(&self) -> Vec<f64> {
        self.0.lock().unwrap().iter().map(Duration::as_secs_f64).collect()
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        self.0.lock().unwrap().iter().sum()
    }

    fn date(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    }

    fn sleep(&self, time: Duration, _: &AtomicBool) {
        self.0.lock().unwrap().push(time);
    }
}

/// What came.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) path: String,
    pub(super) headers: Vec<String>,
    pub(super) body: serde_json::Value,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What goes back.
#[derive(Debug, Clone)]
pub(super) enum Response {
    /// Status, further header lines, body.
    Plain(u16, Vec<String>, Vec<u8>),
    /// The connection is kept open without a word.
    Silence,
    /// The connection is closed without a word.
    Closed,
}

impl Response {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Plain(status, Vec::new(), body.into())
    }

    /// An answer of a chat.
    pub(super) fn text(text: &str) -> Self {
        let body = serde_json::json!({"model": "m", "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                                      "usage": {"prompt_tokens": 3, "completion_tokens": 1}});
        Self::new(200, body.to_string())
    }

    pub(super) fn with_header(self, line: &str) -> Self {
        match self {
            Self::Plain(status, mut lines, body) => {
                lines.push(line.to_owned());
                Self::Plain(status, lines, body)
            }
            other => other,
        }
    }
}

type Handler = dyn Fn(usize, &Received) -> Response + Send + Sync;

/// A server on this machine, which answers by a function of the number of the request and what it says.
pub(super) struct Server {
    pub(super) url: String,
    received: Arc<Mutex<Vec<Received>>>,
    is_over: Arc<AtomicBool>,
}

impl Server {
    pub(super) fn start(handler: impl Fn(usize, &Received) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let server = Self { url, received: Arc::clone(&received), is_over: Arc::clone(&is_over) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, received) = (Arc::clone(&handler), Arc::clone(&received));
                let is_over = Arc::clone(&is_over);
                std::thread::spawn(move || serve(stream, &*handler, &received, &is_over));
            }
        });
        server
    }

    /// All that came so far.
    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// A section for this server, with further lines.
    pub(super) fn section(&self, more: &str) -> EndpointSection {
        toml::from_str(&format!("url = '{}'\nmodel = 'm'\napi_key_env = 'THE_KEY'\n{more}", self.url))
            .unwrap()
    }

    /// An endpoint of it, with a clock that does not wait.
    pub(super) fn endpoint(&self, more: &str) -> (Endpoint, Arc<FakeClock>) {
        self.endpoint_within(more, Duration::from_secs(20))
    }

    pub(super) fn endpoint_within(&self, more: &str, timeout: Duration) -> (Endpoint, Arc<FakeClock>) {
        let clock = Arc::new(FakeClock::default());
        let variable = |name: &str| (name == "THE_KEY").then(|| SECRET.to_owned());
        let endpoint = Endpoint::open_with(&self.section(more), timeout, clock.clone(), variable);
        (endpoint.unwrap(), clock)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let _ = TcpStream::connect(address);
    }
}

/// One request on a connection.
fn serve(stream: TcpStream, handler: &Handler, received: &Mutex<Vec<Received>>, is_over: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let first = lines.remove(0);
    let mut request = Received {
        path: first.split(' ').nth(1).unwrap().to_owned(),
        headers: lines,
        body: serde_json::Value::Null,
    };
    let length: usize = request.header("content-length").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    request.body = serde_json::from_slice(&body).unwrap();
    let number = {
        let mut received = received.lock().unwrap();
        received.push(request.clone());
        received.len() - 1
    };
    match handler(number, &request) {
        Response::Plain(status, lines, body) => answer(stream, status, &lines, &body),
        Response::Closed => {}
        Response::Silence => {
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn answer(mut stream: TcpStream, status: u16, lines: &[String], body: &[u8]) {
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n");
    // A client that has had enough closes the connection.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}
