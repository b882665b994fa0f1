//! `taper serve`: what is trained here is what is served.

use crate::desk::Desk;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::time::Duration;

/// A server in a process of its own.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn new(desk: &Desk, args: &[&str]) -> Self {
        let args = [&["serve"], args, &["--port", "0", "--json"]].concat();
        let mut child = desk.start(&args);
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let Ok(told) = serde_json::from_str::<Value>(&first) else {
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            panic!("no server: {err}");
        };
        Self { child, url: told["url"].as_str().unwrap().to_owned() }
    }

    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .proxy(None)
            .build();
        config.into()
    }

    fn get(&self, path: &str) -> Value {
        Self::agent().get(format!("{}{path}", self.url)).call().unwrap().body_mut().read_json().unwrap()
    }

    fn chat(&self, model: &str, text: &str) -> Value {
        let body = json!({
            "model": model, "messages": [{ "role": "user", "content": text }], "temperature": 0, "max_tokens": 8,
        });
        let url = format!("{}/v1/chat/completions", self.url);
        let answer: Value = Self::agent().post(url).send_json(&body).unwrap().body_mut().read_json().unwrap();
        answer["choices"][0]["message"]["content"].clone()
    }

    /// SIGTERM; the exit code and what was said.
    fn end(mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), err)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn a_recipes_adapter_is_served_under_its_name_and_answers_as_generate_does() {
    let desk = Desk::trained();
    let served = Served::new(&desk, &["recipe.toml", "--served-model-name", "tiny"]);
    let models = served.get("/v1/models");
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "colours"]);
    assert_eq!(models["data"][1]["parent"], "tiny");
    assert!(!models.to_string().contains(desk.path("").to_str().unwrap()), "no path is told");
    let flags = ["generate", "--model", "base", "--adapter", "runs/colours/adapter", "--max-new-tokens", "8"];
    for text in ["item 900 R", "item 901 G", "item 902 B"] {
        let alone = desk.taper(&[&flags[..], &["--prompt", text]].concat()).exits(0);
        assert_eq!(format!("{}\n", served.chat("colours", text).as_str().unwrap()), alone.out);
        assert_ne!(served.chat("tiny", text), served.chat("colours", text));
    }
    let (code, err) = served.end();
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("try: curl http://127.0.0.1:") && err.contains("ended; every request"), "{err}");
    assert!(!err.contains("item 900"), "prompts stay out of the log: {err}");
}

#[test]
fn prompts_are_logged_only_where_that_was_asked_for_and_the_log_can_be_json() {
    let desk = Desk::new();
    let served = Served::new(&desk, &["--model", "base", "--log-prompts", "--log-format", "json"]);
    served.chat("base", "a secret word");
    let (_, err) = served.end();
    let lines: Vec<Value> = err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let id_of = |message: &str| {
        let line = lines
            .iter()
            .find(|line| line["message"] == message)
            .unwrap_or_else(|| panic!("{message}: {err}"));
        line["request_id"].clone()
    };
    assert!(
        lines.iter().any(|line| line["prompt"].as_str().is_some_and(|p| p.contains("a secret word"))),
        "{err}"
    );
    assert_eq!(id_of("prompt"), id_of("request"));
    assert_eq!(id_of("generation ended"), id_of("request"));
}

#[test]
fn what_cannot_be_served_ends_with_2_and_says_why() {
    let desk = Desk::new();
    let serve = |args: &[&str]| desk.taper(&[&["serve"], args].concat()).exits(2);
    serve(&[]).tells(&["--model"]);
    serve(&["recipe.toml"]).tells(&["nothing has been trained yet", "taper train recipe.toml"]);
    serve(&["--model", "base", "--host", "0.0.0.0"])
        .tells(&["can be reached from other machines", "--api-key-file"]);
    serve(&["--model", "base", "--host", "nowhere"]).tells(&["`nowhere`", "--host"]);
    serve(&["--model", "base", "--max-batch", "0"]).tells(&["`max_batch` is 0", "--max-batch"]);
    serve(&["--model", "base", "--cache-memory", "much"]).tells(&["\"much\"", "2GiB"]);
    serve(&["--model", "base", "--max-model-len", "99999"]).tells(&["this model's is 2048"]);
    serve(&["--model", "base", "--port", "0", "--adapter", "a=absent"])
        .tells(&["cannot serve the adapter `a`"]);
    serve(&["--model", "base", "--adapter", "../a=x"]).tells(&["expected a name of letters"]);
    serve(&["--model", "base", "--adapter", "base=x", "--port", "0"]).tells(&["the base is named so"]);
    serve(&["--model", "base", "--api-key-file", "absent"]).tells(&["absent"]);
    serve(&["--model", "base", "--cors-origin", "app.example"])
        .tells(&["is no origin", "https://app.example"]);
    serve(&["--model", "base", "--tls-cert", "x"]).tells(&["--tls-key"]);
    serve(&["--model", "base", "--allow-adapter-loading"]).tells(&["--adapter-root"]);
    serve(&["recipe.toml", "--quantize", "q8_0"]).tells(&["`--quantize` is for `--model`", "model.quantize"]);
}

#[test]
fn an_adapter_of_another_base_is_not_served_unless_forced() {
    let desk = Desk::trained();
    taper_testkit::tiny_checkpoint(
        &desk.path("other"),
        &taper_testkit::TinySpec { seed: 9, ..crate::desk::spec() },
    );
    let adapter = "colours=runs/colours/adapter";
    desk.taper(&["serve", "--model", "other", "--adapter", adapter, "--port", "0"])
        .exits(2)
        .tells(&["cannot serve the adapter `colours`", "was not trained over"]);
    let served = Served::new(&desk, &["--model", "other", "--adapter", adapter, "--force"]);
    assert!(served.chat("colours", "x").is_string());
    assert_eq!(served.end().0, Some(0));
}
