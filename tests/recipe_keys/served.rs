//! A server that is started, asked, and told to end: what it answered.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Run `taper serve ... --json`; in place of what it prints stands what it answered, when it began to serve at all.
pub(crate) fn output(command: &mut Command) -> Output {
    let mut child = command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let mut answers = Vec::new();
    if let Ok(told) = serde_json::from_str::<Value>(&first) {
        answers = asked(&told).to_string().into_bytes();
        // Ctrl-C's gentler sister.
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }
    let mut err = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut err).unwrap();
    Output { status: child.wait().unwrap(), stdout: answers, stderr: err }
}

fn asked(told: &Value) -> Value {
    let url = told["url"].as_str().unwrap();
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .proxy(None)
        .build();
    let agent: ureq::Agent = config.into();
    let models: Value = agent.get(format!("{url}/v1/models")).call().unwrap().body_mut().read_json().unwrap();
    let model = &models["data"][0]["id"];
    let four = json!({ "model": model, "prompt": "Hello", "n": 4, "max_tokens": 100, "ignore_eos": true });
    let completed = agent.post(format!("{url}/v1/completions")).send_json(&four).unwrap();
    json!({ "url": url, "models": models["data"], "status": completed.status().as_u16() })
}
