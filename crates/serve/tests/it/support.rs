//! A server in this process, and clients for it.

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use taper_hub::ModelFiles;
use taper_infer::{AdapterPoolOptions, EngineOptions, Service, ServiceOptions, longest_sequence};
use taper_models::{LoadOptions, load};
use taper_serve::{App, AppOptions, Drained, Model, ModelFacts, Server, ServerOptions, Shutdown};
use taper_testkit::{TinySpec, golden, tiny_checkpoint};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};
use tempfile::TempDir;

/// How a desk's server is made.
pub(crate) struct Setup {
    pub(crate) app: AppOptions,
    pub(crate) server: ServerOptions,
    pub(crate) service: ServiceOptions,
    /// Another chat template than ChatML's.
    pub(crate) template: Option<String>,
    pub(crate) has_template: bool,
}

/// A running server. Dropped, it is asked to end and must.
pub(crate) struct Desk {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) folder: TempDir,
    thread: Option<JoinHandle<Drained>>,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{self:?}");
        self
    }

    /// The objects of a stream of server-sent events, and whether it ended with `[DONE]`.
    #[track_caller]
    pub(crate) fn events(&self) -> (Vec<Value>, bool) {
        let mut events = Vec::new();
        let mut is_done = false;
        for event in self.body.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')) {
            assert!(!is_done, "something follows [DONE]: {}", self.body);
            match event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")) {
                "[DONE]" => is_done = true,
                data => events.push(serde_json::from_str(data).unwrap()),
            }
        }
        (events, is_done)
    }

    /// The objects of a stream of lines.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = Setup {
            app: AppOptions { page: true, ..AppOptions::default() },
            server: ServerOptions {
                address: "127.0.0.1:0".parse().unwrap(),
                tls: None,
                has_keys: false,
                insecure_no_auth: false,
                drain_timeout: Duration::from_secs(20),
            },
            service: ServiceOptions {
                engine: EngineOptions { batch_size: 4, tokens_per_pass: 256 },
                max_waiting: 32,
                cache_bytes: 64 << 20,
                adapters: AdapterPoolOptions { max_bytes: 64 << 20, max_adapters: 64 },
            },
            template: None,
            has_template: true,
        };
        change(&mut setup);
        let spec = TinySpec { tie_word_embeddings: false, initializer_range: 0.3, ..TinySpec::default() };
        let files = tiny_checkpoint(&folder.path().join("base"), &spec);
        setup.server.has_keys = !setup.app.keys.is_empty();
        let server = Server::bind(&setup.server).unwrap();
        let app = App::new(model(&files, &setup), setup.app).unwrap();
        let (address, shutdown) = (server.local_addr(), Shutdown::default());
        let asked = shutdown.clone();
        let thread = std::thread::spawn(move || server.run(app, &asked, false).unwrap());
        Self { address, shutdown, folder, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        sent(agent().get(self.url(path)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        sent(agent().post(self.url(path)).send(body.to_string()))
    }

    /// One user's message to the base, greedy, with these fields besides.
    pub(crate) fn chat(&self, with: &Value) -> Reply {
        self.post("/v1/chat/completions", &chat_body(with))
    }

    pub(crate) fn complete(&self, with: &Value) -> Reply {
        let body = json!({ "model": "tiny", "prompt": "red blue", "max_tokens": 6, "temperature": 0 });
        self.post("/v1/completions", &merged(&body, with))
    }

    /// Bytes as they are, and all that comes back until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have heard enough.
        let _ = stream.write_all(bytes);
        read_all(&mut stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        metric_in(&self.get("/metrics").ok().body, name)
    }

    /// Ask the server to end, and wait.
    pub(crate) fn end(mut self) -> Drained {
        self.shutdown.ask();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Wait for a server that was asked to end.
    pub(crate) fn ended(mut self) -> Drained {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Twice: whatever still runs is cut off.
            self.shutdown.ask();
            self.shutdown.ask();
            let _ = thread.join();
        }
    }
}

fn model(files: &ModelFiles, setup: &Setup) -> Model {
    let texts = TokenizerFiles::in_folder(files.tokenizer.as_ref().unwrap().path().parent().unwrap());
    let tokenizer = Arc::new(Tokenizer::load(&texts).unwrap());
    let template = match &setup.template {
        Some(source) => Some(ChatTemplate::from_source(source, &tokenizer).unwrap()),
        None => ChatTemplate::load(&texts, &tokenizer).unwrap(),
    };
    let model = load(files, LoadOptions::default()).unwrap();
    let (vocab_size, max_model_len) = (model.config().vocab_size, longest_sequence(model.config()));
    let service = Service::start(model, tokenizer.clone(), setup.service, Box::new(|_| Ok(()))).unwrap();
    Model {
        names: vec!["tiny".into(), "owner/tiny".into()],
        service,
        options: setup.service,
        template: template.filter(|_| setup.has_template),
        vocab_size,
        max_model_len,
        facts: ModelFacts {
            family: "llama".into(),
            parameter_size: "30K".into(),
            quantization_level: "unknown".into(),
            size: 1,
            sha256: "abc".into(),
        },
        own_template: {
            let tokenizer = tokenizer.clone();
            Box::new(move |folder: &Path| {
                let path = folder.join("chat_template.jinja");
                let template = path.is_file().then(|| ChatTemplate::from_file(&path, &tokenizer));
                template.transpose().map_err(|error| error.to_string())
            })
        },
        tokenizer,
    }
}

/// Write an adapter for the tiny base, as PEFT would; `seed` tells them apart, and its delta is large enough to be seen.
pub(crate) fn write_adapter(folder: &Path, base: &Path, seed: u64) -> PathBuf {
    let files = ModelFiles::of_folder(base).unwrap();
    let mut model = load(&files, LoadOptions::default()).unwrap();
    let section: taper_peft::AdapterSection =
        serde_json::from_value(json!({ "r": 4, "lora_alpha": 32, "init_lora_weights": "gaussian" })).unwrap();
    let adapter = taper_peft::attach(model.as_mut(), &section.to_config("base"), "llama", seed).unwrap();
    adapter.save(folder).unwrap();
    fill_b(&folder.join(taper_peft::WEIGHTS_FILE), seed);
    folder.to_owned()
}

/// A new adapter's B is zero: fill it, so that the adapter moves the logits.
fn fill_b(path: &Path, seed: u64) {
    let tensors = taper_testkit::read_safetensors(path);
    let filled = tensors.into_iter().map(|(name, tensor)| {
        if !name.contains("lora_B") {
            return (name, tensor);
        }
        let count = tensor.elem_count() as u64;
        let value = |i: u64| ((i * 7919 + seed * 104_729) % 997) as f32 / 997.0 - 0.5;
        let values: Vec<f32> = (0..count).map(value).collect();
        let filled = candle_core::Tensor::from_vec(values, tensor.dims(), tensor.device()).unwrap();
        (name, filled)
    });
    let filled: std::collections::HashMap<_, _> = filled.collect();
    candle_core::safetensors::save(&filled, path).unwrap();
}

pub(crate) fn tools_template() -> String {
    fs_err::read_to_string(golden("chat/templates/chatml_tools.jinja")).unwrap()
}

pub(crate) fn chat_body(with: &Value) -> Value {
    let body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 6, "temperature": 0,
    });
    merged(&body, with)
}

/// An object with the keys of another; those that are null there are taken out.
pub(crate) fn merged(body: &Value, with: &Value) -> Value {
    let mut body = body.as_object().unwrap().clone();
    for (key, value) in with.as_object().unwrap() {
        match value {
            Value::Null => drop(body.shift_remove(key)),
            value => drop(body.insert(key.clone(), value.clone())),
        }
    }
    body.into()
}

pub(crate) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .proxy(None)
        .build();
    config.into()
}

pub(crate) fn sent(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = response.unwrap();
    let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
        (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
    };
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().iter().map(header).collect(),
        body: response.body_mut().read_to_string().unwrap(),
    }
}

pub(crate) fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn metric_in(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Hold numbers to others: what is in the cache or in the batch beside it changes the last bits of a logit.
#[track_caller]
pub(crate) fn assert_near(left: &[Value], right: &[Value]) {
    assert_eq!(left.len(), right.len());
    for (a, b) in left.iter().zip(right) {
        match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-4, "{a} and {b}"),
            _ => assert_eq!(a, b),
        }
    }
}
