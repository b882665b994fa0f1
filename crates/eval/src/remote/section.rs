//! Where a remote model is, as a recipe says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taper_diagnostics::{Location, Problem, Problems};
use ureq::http::Uri;

/// Keys of a request that `extra` must not have: they decide what is asked, or how the answer is read.
const RESERVED: [&str; 10] = [
    "messages",
    "model",
    "stream",
    "stream_options",
    "n",
    "prompt",
    "echo",
    "logprobs",
    "max_tokens",
    "max_completion_tokens",
];
/// How keys of known services begin.
const KEY_BEGINNINGS: [&str; 9] = ["sk-", "sk_", "gsk_", "hf_", "xai-", "AIza", "pplx-", "nvapi-", "ghp_"];
/// Most characters of a variable's name; keys are often longer.
const MAX_VARIABLE_CHARS: usize = 64;

/// A model behind an OpenAI-compatible address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSection {
    /// The base address, to which `/chat/completions` is added: `https://host/v1`, with or without a slash at the end.
    pub url: String,
    /// The model's name, as the server knows it.
    pub model: String,
    /// The name of the environment variable that holds the API key, such as "OPENAI_API_KEY"; never the key itself. Left out,
    /// no key is sent.
    pub api_key_env: Option<String>,
    /// Most requests in a minute, repeated ones included; they are sent at even distances. Left out, as many as `concurrency` makes.
    pub requests_per_minute: Option<u32>,
    /// Requests that are under way at a time (1 to 256).
    pub concurrency: usize,
    /// Seconds that a request may take, its answer included (1 to 3600).
    pub timeout_s: u64,
    /// How often a request is sent again that found no connection or no answer in time, or to which the server said 408, 409, 429 or
    /// 5xx (0 to 20).
    pub max_retries: u32,
    /// Further fields of the request's body, as the server names them, such as `reasoning_effort = "low"`. They take the place of
    /// `temperature`, `top_p` and `seed` where they name them; what is asked and how long the answer may be cannot be set here.
    pub extra: Map<String, Value>,
}

impl Default for EndpointSection {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            api_key_env: None,
            requests_per_minute: None,
            concurrency: 4,
            timeout_s: 120,
            max_retries: 5,
            extra: Map::new(),
        }
    }
}

impl EndpointSection {
    /// Everything about the section that can be known without asking the server. No message repeats what may be a key.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        problems.extend(self.check_url());
        if self.model.trim().is_empty() {
            problems.push(fault("model", "`model` is not set", "name the model as the server knows it"));
        }
        if let Some(name) = &self.api_key_env {
            problems.extend(check_variable(name));
        }
        let mut within = |key: &str, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                let message = format!("`{key}` is {value}, allowed is {low} to {high}");
                problems.push(Problem::error("out-of-range", message).at(Location::default().with_key(key)));
            }
        };
        if let Some(limit) = self.requests_per_minute {
            within("requests_per_minute", u64::from(limit), 1, 1_000_000);
        }
        within("concurrency", self.concurrency as u64, 1, 256);
        within("timeout_s", self.timeout_s, 1, 3600);
        within("max_retries", u64::from(self.max_retries), 0, 20);
        for key in self.extra.keys().filter(|key| RESERVED.contains(&key.as_str())) {
            let at = format!("extra.{key}");
            problems.push(fault(&at, format!("`{at}` cannot be set: taper sets it"), "leave it out"));
        }
        problems
    }

    fn check_url(&self) -> Problems {
        let mut problems = Problems::new();
        let example = "the base address looks like `https://host/v1`";
        if self.url.trim().is_empty() {
            problems.push(fault("url", "`url` is not set", example));
            return problems;
        }
        let uri = match self.url.parse::<Uri>() {
            Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => uri,
            _ => {
                problems.push(fault("url", "`url` is no address", example));
                return problems;
            }
        };
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            problems.push(fault("url", "`url` begins neither with `https://` nor with `http://`", example));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let hint = "name the variable with the key in `api_key_env`";
            problems.push(fault("url", "`url` has a name or a password before its host", hint));
        }
        if uri.query().is_some() || self.url.contains('#') {
            problems.push(fault("url", "`url` has a query or a fragment", example));
        }
        if let Some(base) = uri.path().trim_end_matches('/').strip_suffix("/completions") {
            let path = base.strip_suffix("/chat").unwrap_or(base);
            let message = "`url` is the address of completions, not the base address";
            problems.push(fault("url", message, format!("let its path end with `{path}`")));
        }
        if uri.scheme_str() == Some("http") && self.api_key_env.is_some() && !is_this_machine(&uri) {
            let message = "the API key goes unencrypted over the network: `url` begins with `http://`";
            problems.push(Problem::warning("key-in-clear", message).at(Location::default().with_key("url")));
        }
        problems
    }

    /// The base address without a slash at its end.
    pub(super) fn base(&self) -> &str {
        self.url.trim().trim_end_matches('/')
    }
}

/// Whether the host of an address is this machine.
pub(super) fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || host.eq_ignore_ascii_case("localhost")
}

/// What is said of a wrong `api_key_env` must not repeat it: it may be the key.
fn check_variable(name: &str) -> Problems {
    let mut problems = Problems::new();
    let hint = "put the key into an environment variable and write the variable's name here";
    let is_name = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    let looks_random = name.len() >= 24
        && name.bytes().any(|b| b.is_ascii_digit())
        && name.bytes().any(|b| b.is_ascii_lowercase());
    let is_key = KEY_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) || looks_random;
    if is_key || name.len() > MAX_VARIABLE_CHARS {
        let message = "`api_key_env` looks like a key, it must be the name of a variable";
        problems.push(
            Problem::error("key-in-recipe", message)
                .at(Location::default().with_key("api_key_env"))
                .hint(format!("{hint}; if it was a key, replace it: it has been written down")),
        );
    } else if !is_name {
        let message = "`api_key_env` is not the name of a variable (letters, digits and `_`)";
        problems.push(fault("api_key_env", message, hint));
    }
    problems
}

fn fault(key: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::error("bad-endpoint", message).at(Location::default().with_key(key)).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(section: &EndpointSection) -> Vec<String> {
        section.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect()
    }

    fn read(text: &str) -> EndpointSection {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_address_and_a_model_are_enough() {
        let section = read("url = 'https://host/v1/'\nmodel = 'm'");
        assert!(section.check().is_empty(), "{}", section.check());
        assert_eq!(section.base(), "https://host/v1");
        assert_eq!((section.concurrency, section.timeout_s, section.max_retries), (4, 120, 5));
        assert_eq!(keys(&EndpointSection::default()), ["url", "model"]);
        assert!(toml::from_str::<EndpointSection>("api_key = 'x'").is_err());
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let section = read(
            "url = 'ftp://h/v1'\nmodel = ' '\napi_key_env = 'a b'\nrequests_per_minute = 0\nconcurrency = 0
             timeout_s = 0\nmax_retries = 21\n[extra]\nstream = true\nmessages = []\nreasoning_effort = 'low'",
        );
        let expected = [
            "url",
            "model",
            "api_key_env",
            "requests_per_minute",
            "concurrency",
            "timeout_s",
            "max_retries",
            "extra.stream",
            "extra.messages",
        ];
        assert_eq!(keys(&section), expected);
    }

    #[test]
    fn secrets_in_the_recipe_are_refused_and_not_repeated() {
        let long = "A".repeat(65);
        for key in ["sk-abcdef0123", "hf_abcdefghijk", "gsk_1", "abcdefghijklmnop012345678", long.as_str()] {
            let section = EndpointSection {
                api_key_env: Some(key.into()),
                ..read("url = 'https://h/v1'\nmodel = 'm'")
            };
            let problems = section.check();
            assert_eq!(problems.iter().next().unwrap().code, "key-in-recipe", "{key}");
            assert!(!problems.to_string().contains(key));
        }
        let section = read("url = 'https://me:secret@h/v1?api_key=secret'\nmodel = 'm'");
        assert_eq!(keys(&section), ["url", "url"]);
        assert!(!section.check().to_string().contains("secret"));
        for name in ["OPENAI_API_KEY", "_key", "MY_KEY_2"] {
            assert!(check_variable(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn addresses_that_would_not_be_found_are_told() {
        for url in ["host/v1", "https://", "https:///v1", "http://a b/v1"] {
            assert_eq!(
                keys(&EndpointSection { url: url.into(), model: "m".into(), ..Default::default() }),
                ["url"]
            );
        }
        let hint = |url: &str| {
            let section = EndpointSection { url: url.into(), model: "m".into(), ..Default::default() };
            section.check().iter().next().unwrap().hint.clone().unwrap()
        };
        assert!(hint("https://h/v1/chat/completions").contains("`/v1`"));
        assert!(hint("https://h/openai/completions/").contains("`/openai`"));
        let warned = |url: &str| {
            let with_key = "model = 'm'\napi_key_env = 'KEY'";
            let problems = EndpointSection { url: url.into(), ..read(with_key) }.check();
            assert!(!problems.has_errors(), "{problems}");
            problems.len() == 1
        };
        assert!(warned("http://host/v1"));
        for url in ["https://host/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:1/v1"]
        {
            assert!(!warned(url), "{url}");
        }
    }

    #[test]
    fn every_key_is_described_in_the_schema() {
        let schema = serde_json::to_value(schemars::schema_for!(EndpointSection)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 8);
        assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
    }
}
