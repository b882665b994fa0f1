//! How a text is continued.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use taper_diagnostics::{Location, Problem, Problems};

/// Most entries of `logit_bias`.
const MAX_LOGIT_BIAS: usize = 1024;

/// How a text is continued: greedy unless `temperature` is above 0.
///
/// The names are those of transformers' `GenerationConfig`, and of OpenAI's API for what transformers lacks. First come
/// OpenAI's changes of the raw logits, `logit_bias`, then `presence_penalty` and `frequency_penalty`; then transformers' in its
/// order: repetition penalty, `min_new_tokens`, temperature, top_k, top_p, min_p.
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
    /// Taken once from the logit of each token that has been written; the prompt does not count (-2 to 2; 0 is off). Above 0 the
    /// text turns to new words.
    pub presence_penalty: f64,
    /// Taken from the logit of each token as often as it has been written; the prompt does not count (-2 to 2; 0 is off). Above 0
    /// the text repeats itself less.
    pub frequency_penalty: f64,
    /// Added to the logits of these token ids (each -100 to 100, at most 1024 ids): -100 all but rules a token out, 100 all but
    /// forces it.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Fewest tokens to write: until then no stop token can be chosen. A stop string ends the text all the same.
    pub min_new_tokens: usize,
    /// Write on over stop tokens, as benchmarks do, until `max_new_tokens` or a stop string.
    pub ignore_eos: bool,
    /// Seed of the draws. The same seed, request and settings give the same text, whatever else is in the batch.
    pub seed: u64,
    /// Strings that end the text; neither they nor anything after them is in it.
    pub stop: Vec<String>,
    /// Token ids that end the text, besides those that the checkpoint declares.
    pub stop_token_ids: Vec<u32>,
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
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            min_new_tokens: 0,
            ignore_eos: false,
            seed: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
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

    /// Whether `id` ends the text, where `eos_ids` are those that the checkpoint declares.
    pub fn is_stop(&self, id: u32, eos_ids: &[u32]) -> bool {
        !self.ignore_eos && (eos_ids.contains(&id) || self.stop_token_ids.contains(&id))
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
        let penalties =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        for (key, penalty) in penalties {
            require((-2.0..=2.0).contains(&penalty), key, show(penalty), "-2 to 2");
        }
        let bias = self.logit_bias.len();
        require(bias <= MAX_LOGIT_BIAS, "logit_bias", format!("{bias} entries"), "1024 or fewer");
        for (id, bias) in &self.logit_bias {
            let allowed = (-100.0..=100.0).contains(bias);
            require(allowed, "logit_bias", format!("{bias} for the token id {id}"), "-100 to 100");
        }
        require(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            self.min_new_tokens.to_string(),
            "`max_new_tokens` or fewer",
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
            presence_penalty: 2.1,
            frequency_penalty: f64::NAN,
            logit_bias: BTreeMap::from([(7, -100.5), (8, 100.0)]),
            min_new_tokens: 1,
            stop: vec![String::new()],
            ..GenerationConfig::default()
        };
        let keys: Vec<_> = wrong.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect();
        let expected = [
            "max_new_tokens",
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "min_new_tokens",
            "stop",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_bias_has_a_bounded_number_of_entries() {
        let biased = |n| GenerationConfig {
            logit_bias: (0..n).map(|id| (id, 1.0)).collect(),
            ..GenerationConfig::default()
        };
        assert!(biased(1024).check().is_empty());
        assert_eq!(biased(1025).check().iter().count(), 1);
    }

    #[test]
    fn stop_tokens_end_the_text_unless_they_are_to_be_ignored() {
        let config = GenerationConfig { stop_token_ids: vec![5], ..GenerationConfig::default() };
        assert_eq!([4, 5, 6].map(|id| config.is_stop(id, &[4])), [true, true, false]);
        let on = GenerationConfig { ignore_eos: true, ..config };
        assert_eq!([4, 5, 6].map(|id| on.is_stop(id, &[4])), [false; 3]);
    }

    #[test]
    fn a_bias_reads_from_json_with_ids_as_keys() {
        let config: GenerationConfig = serde_json::from_str(r#"{"logit_bias": {"50256": -100}}"#).unwrap();
        assert_eq!(config.logit_bias, BTreeMap::from([(50256, -100.0)]));
    }
}
