//! What a request hears of its answer.

use crate::Completion;
use std::time::Duration;

/// A token that was written, or one of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenToken {
    /// Its id.
    pub id: u32,
    /// `ln p` of it, by the model's own distribution (before temperature and filters), where it was asked for.
    pub logprob: Option<f32>,
    /// The likeliest ids there with their `ln p`, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Text that has become certain, and the tokens that were written since the last piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text; empty where tokens gave none yet.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<WrittenToken>,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// A stop token.
    Token(u32),
    /// A stop string.
    Text(String),
}

/// How long a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Waiting for a place in the batch.
    pub queued: Duration,
    /// From then to the first token.
    pub prompt: Duration,
    /// From the first token to the last.
    pub writing: Duration,
}

/// A text that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The whole of it.
    pub completion: Completion,
    /// What ended it, where its finish reason is a stop.
    pub stop: Option<StopCause>,
    /// Tokens of the prompt that were found in the cache.
    pub cached_tokens: usize,
    /// How long it took.
    pub times: Times,
}

/// What a request hears, in this order: the prompt once, pieces, and how it ended.
#[derive(Debug)]
pub enum Event {
    /// The prompt has been read. Its tokens are listed where their log-probabilities were asked for; the first has none.
    Prompt(Vec<WrittenToken>),
    /// New text.
    Piece(Piece),
    /// It has ended.
    Finished(Finished),
    /// It ended without an answer.
    Failed(crate::Error),
}
