//! How a text is continued.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_diagnostics::{Location, Problem, Problems};

/// How a text is continued: greedy unless `temperature` is above 0.
///
/// The names are those of transformers' `GenerationConfig`; the filters work in its order: repetition penalty,
/// temperature, top_k, top_p, min_p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Most tokens to write, the stop token included. A text that ends here was cut: its finish reason is "length".
    pub max_new_tokens: usize,
    /// What logits are divided by before sampling. 0 takes the likeliest token each time (greedy); 1 draws from the
    /// model's own distribution; above 1 the text gets wilder.
    pub temperature: f64,
    /// Draw only from the likeliest tokens that together have this much probability (above 0, up to 1; 1 is off).
    pub top_p: f64,
    /// Draw only from this many of the likeliest tokens, and those that tie with the last of them (0 is off).
    pub top_k: usize,
    /// Draw only from tokens at least this share as likely as the likeliest (0 to 1; 0 is off).
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens that have occurred, the prompt included
    /// (above 0; 1 is off; 1.1 is a mild penalty). Works on greedy decoding too.
    pub repetition_penalty: f64,
    /// Seed of the draws. The same seed, request and settings give the same text, whatever else is in the batch.
    pub seed: u64,
    /// Strings that end the text; neither they nor anything after them is in it.
    pub stop: Vec<String>,
    /// Token ids that end the text, besides those that the checkpoint declares.
    pub stop_token_ids: Vec<u32>,
    /// Taken off the logits of tokens that have been written (-2 to 2; 0 is off).
    pub presence_penalty: f64,
    /// The same, times how often each has been written (-2 to 2; 0 is off).
    pub frequency_penalty: f64,
    /// Added to the logits of these ids.
    pub logit_bias: std::collections::BTreeMap<u32, f64>,
    /// Tokens before which nothing ends the text.
    pub min_new_tokens: usize,
    /// Go on behind the stop tokens that the checkpoint declares.
    pub ignore_eos: bool,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: std::collections::BTreeMap::new(),
            min_new_tokens: 0,
            ignore_eos: false,
        }
    }
}

impl GenerationConfig {
    /// Greedy decoding of at most `max_new_tokens` tokens.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Whether the likeliest token is taken each time.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Every value that is out of its range.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut require = |holds: bool, key: &str, given: String, allowed: &str| {
            if !holds {
                let message = format!("`{key}` is {given}, allowed is {allowed}");
                problems.push(Problem::error("out-of-range", message).at(Location::default().with_key(key)));
            }
        };
        let show = |value: f64| value.to_string();
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens.to_string(), "1 or more");
        require(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature",
            show(self.temperature),
            "0 or more",
        );
        require(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", show(self.top_p), "above 0 up to 1");
        require((0.0..=1.0).contains(&self.min_p), "min_p", show(self.min_p), "0 to 1");
        require(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            show(self.repetition_penalty),
            "above 0",
        );
        require(!self.stop.iter().any(String::is_empty), "stop", "an empty string".into(), "a text");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_out_of_range_is_named_at_once() {
        assert!(GenerationConfig::default().check().is_empty());
        let wrong = GenerationConfig {
            max_new_tokens: 0,
            temperature: -1.0,
            top_p: 0.0,
            min_p: f64::NAN,
            repetition_penalty: 0.0,
            stop: vec![String::new()],
            ..GenerationConfig::default()
        };
        let keys: Vec<_> = wrong.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect();
        assert_eq!(keys, ["max_new_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "stop"]);
    }
}
