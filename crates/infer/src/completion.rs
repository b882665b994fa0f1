//! What came of a request.

use serde::{Deserialize, Serialize};

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model wrote a stop token, or a stop string came up.
    Stop,
    /// It reached `max_new_tokens` or the model's longest sequence.
    Length,
    /// The one who listens asked to end it.
    Cancelled,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The text, without special tokens, stop token and stop string.
    pub text: String,
    /// The ids that were written, without the stop token; those of a stop string are among them.
    pub token_ids: Vec<u32>,
    /// The stop token, when one ended the text.
    pub stop_token: Option<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl Completion {
    /// Tokens that were computed for the answer, the stop token included.
    pub fn completion_tokens(&self) -> usize {
        self.token_ids.len() + usize::from(self.stop_token.is_some())
    }
}
