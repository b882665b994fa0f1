//! What a candidate did with an item, before anything is scored.

use crate::metrics::loss::LossSum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a candidate did with one item: all that scoring needs of it, so that scores can be computed again without the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Response {
    /// What was written; `None` where nothing was asked.
    pub output: Option<String>,
    /// Why it ended, in OpenAI's words: `stop`, `length`, ...
    pub finish_reason: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that an endpoint had read before, which it may charge less for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: usize,
    /// Tokens written, the stop token included.
    pub completion_tokens: usize,
    /// Losses of the expected answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<LossSum>,
    /// The log-likelihood of each choice, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<f64>>,
    /// Milliseconds from the beginning to the end of the answer, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Milliseconds of the machine that the answer took, its share of what was computed together, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_ms: Option<f64>,
    /// Joules that the answer took, its share of what was computed together, where they could be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
    /// How a judge saw it beside the base's answer: 1 better, 0 worse, 0.5 neither; `None` where it was not judged or gave no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<f64>,
    /// Why there is no answer, as when an endpoint failed. An item without an answer is not a wrong one: it is not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Response {
    /// Whether the answer was cut at the most tokens.
    pub fn is_cut(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }
}
