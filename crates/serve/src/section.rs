//! The recipe's `[serve]`: how `taper serve RECIPE` serves what the run trained.

use crate::Limits;
use crate::catalogue::is_adapter_name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use taper_diagnostics::{Location, Problem, Problems};

/// How `taper serve RECIPE` serves the base and the adapter of the run. Its flags win over these keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSection {
    /// The address to listen on. Any but a loopback address needs API keys.
    pub host: String,
    /// The port; 0 takes a free one, which is printed.
    pub port: u16,
    /// The base's name in the API; the default is the name of its folder, or its hub id.
    pub served_model_name: Option<String>,
    /// More adapters over the same base, each by its name: `support = "../support/adapter"`. The run's own has the recipe's name.
    pub adapters: BTreeMap<String, PathBuf>,
    /// Most requests in the batch. More of them give more tokens a second together, and fewer to each.
    pub max_batch: usize,
    /// Most requests that wait for a place in the batch; the next one gets a 429.
    pub max_queue: usize,
    /// Longest sequence, answer included, in tokens; the default is the model's own.
    pub max_model_len: Option<usize>,
    /// Memory for keys and values, prefixes that are kept for later requests included, for example "2GiB".
    pub cache_memory: String,
    /// Memory for adapters; those used longest ago go first, and are read again when they are asked for.
    pub adapter_memory: String,
    /// Seconds from a request to the end of its answer, at most.
    pub request_timeout: f64,
}

impl Default for ServeSection {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            served_model_name: None,
            adapters: BTreeMap::new(),
            max_batch: 16,
            max_queue: 64,
            max_model_len: None,
            cache_memory: "2GiB".into(),
            adapter_memory: "1GiB".into(),
            request_timeout: Limits::default().request_timeout.as_secs_f64(),
        }
    }
}

impl ServeSection {
    /// Every value that is out of its range.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut refuse = |key: &str, message: String, hint: &str| {
            let at = Location::default().with_key(key);
            problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
        };
        if self.host != "localhost" && self.host.parse::<IpAddr>().is_err() {
            let message = format!("`host` is `{}`, which is no IP address", self.host);
            refuse("host", message, "use 127.0.0.1, ::1, 0.0.0.0 or the address of one interface");
        }
        if let Some(name) = self.served_model_name.as_deref().filter(|name| !is_model_name(name)) {
            let message = format!("`served_model_name` is {name:?}, which no client could ask for");
            refuse("served_model_name", message, "use a name without spaces, up to 256 bytes");
        }
        for (name, folder) in &self.adapters {
            if !is_adapter_name(name) {
                let message = format!("`adapters` has {name:?}, which cannot be an adapter's name");
                refuse("adapters", message, "use letters, digits, `.`, `_` and `-`, 128 at most");
            }
            if folder.as_os_str().is_empty() {
                let message = format!("`adapters` names no folder for `{name}`");
                refuse("adapters", message, "name the folder that has its adapter_config.json");
            }
        }
        for (key, given, least) in [
            ("max_batch", Some(self.max_batch), 1),
            ("max_queue", Some(self.max_queue), 1),
            ("max_model_len", self.max_model_len, 2),
        ] {
            if let Some(given) = given.filter(|given| !(least..=MOST).contains(given)) {
                let message = format!("`{key}` is {given}, allowed is {least} to {MOST}");
                refuse(key, message, "leave it out to take the default");
            }
        }
        for (key, given) in [("cache_memory", &self.cache_memory), ("adapter_memory", &self.adapter_memory)] {
            if let Err(why) = parse_bytes(given) {
                refuse(
                    key,
                    format!("`{key}` is {given:?}: {why}"),
                    "write for example \"512MiB\" or \"2GiB\"",
                );
            }
        }
        if !(self.request_timeout > 0.0 && self.request_timeout <= LONGEST_SECONDS) {
            let message = format!(
                "`request_timeout` is {}, allowed is above 0 to {LONGEST_SECONDS}",
                self.request_timeout
            );
            refuse("request_timeout", message, "it is in seconds");
        }
        problems
    }
}

/// More of anything is a slip of the hand.
const MOST: usize = 10_000_000;
/// A week.
const LONGEST_SECONDS: f64 = 604_800.0;

/// Whether a base can go by that name.
pub fn is_model_name(name: &str) -> bool {
    (1..=256).contains(&name.len()) && name.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// `512MiB`, `2GiB`, `1.5GB`, or a number of bytes.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| "it has no number".to_owned())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024.0 * 1024.0,
        "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        other => return Err(format!("the unit `{other}` is not known")),
    };
    let bytes = number * factor;
    if !(1.0..=1e15).contains(&bytes) {
        return Err("it is out of range".into());
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("512 MiB", 512 << 20),
            ("1.5k", 1536),
            ("1GB", 1_000_000_000),
            ("77", 77),
            ("8g", 8 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "0", "2TiB", "1e99GiB", "1.2.3k", "nan"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_value_out_of_range_is_named_at_once() {
        assert!(ServeSection::default().check().is_empty());
        let wrong = ServeSection {
            host: "nowhere".into(),
            port: 1,
            served_model_name: Some("two words".into()),
            adapters: [("../up".into(), PathBuf::from("x")), ("ok".into(), PathBuf::new())].into(),
            max_batch: 0,
            max_queue: 0,
            max_model_len: Some(1),
            cache_memory: "much".into(),
            adapter_memory: "0".into(),
            request_timeout: f64::NAN,
        };
        let keys: Vec<_> = wrong.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect();
        let expected = "host served_model_name adapters adapters max_batch max_queue max_model_len cache_memory \
                        adapter_memory request_timeout";
        assert_eq!(keys.join(" "), expected);
    }
}
