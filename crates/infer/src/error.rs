//! What can go wrong while generating.

use taper_diagnostics::{Diagnose, ExitCode, Problems};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A prompt without a token.
    #[error("prompt {prompt} has no token")]
    EmptyPrompt {
        /// The prompt's place in the call, from 0.
        prompt: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error("prompt {prompt} has {tokens} tokens, the model's longest sequence is {limit}, answer included")]
    PromptTooLong {
        /// The prompt's place in the call, from 0.
        prompt: usize,
        /// Its length.
        tokens: usize,
        /// Tokens of the model's longest sequence.
        limit: usize,
    },
    /// A sequence to score that the model cannot hold.
    #[error("sequence {sequence} has {tokens} tokens, the model's longest is {limit}")]
    SequenceTooLong {
        /// The sequence's place in the call, from 0.
        sequence: usize,
        /// Its length.
        tokens: usize,
        /// Tokens of the model's longest sequence.
        limit: usize,
    },
    /// A mask that does not fit its ids.
    #[error("sequence {sequence} has {tokens} tokens and a mask of {mask}")]
    MaskLength {
        /// The sequence's place in the call, from 0.
        sequence: usize,
        /// Its length.
        tokens: usize,
        /// The mask's length.
        mask: usize,
    },
    /// No token can be chosen.
    #[error("the logits for token {token} of prompt {prompt} are NaN or infinite")]
    NonFiniteLogits {
        /// The prompt's place in the call, from 0.
        prompt: usize,
        /// How many tokens had been written.
        token: usize,
    },
    /// The time that a request had is over.
    #[error("the request was not done within its time")]
    DeadlineExceeded,
    /// The pass that a request was in failed, for whatever reason.
    #[error("the pass that the request was in failed: {reason}")]
    PassFailed {
        /// Why.
        reason: String,
    },
    /// Memory for keys and values that holds no page.
    #[error("{given} bytes for keys and values hold nothing, a page of this model takes {least}")]
    CacheTooSmall {
        /// What was given.
        given: usize,
        /// What a page takes.
        least: usize,
    },
    /// An adapter that cannot be used as asked.
    #[error("the adapter `{name}` cannot be {asked}: `{module}` has more than a low-rank delta")]
    NotAdditive {
        /// Its name.
        name: String,
        /// What was asked.
        asked: &'static str,
        /// The first module that stands against it.
        module: String,
    },
    /// Settings out of range.
    #[error("{0}")]
    Config(Problems),
    /// A grammar is refused, or a text cannot go on by it.
    #[error(transparent)]
    Grammar(#[from] crate::GrammarError),
    /// The arithmetic failed.
    #[error("failed to {doing}")]
    Model {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: candle_core::Error,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] taper_text::Error),
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `map_err` for candle: what was being done.
pub(crate) fn doing(doing: &'static str) -> impl Fn(candle_core::Error) -> Error {
    move |source| Error::Model { doing, source }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::PromptTooLong { .. } | Self::SequenceTooLong { .. } => {
                Some("shorten it, or take a model with a longer `max_position_embeddings`".into())
            }
            Self::NonFiniteLogits { .. } => {
                Some("the weights hold NaN or infinity, or overflow: was the training stable?".into())
            }
            Self::Text(error) => error.hint(),
            _ => None,
        }
    }

    fn location(&self) -> Option<taper_diagnostics::Location> {
        match self {
            Self::Text(error) => error.location(),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Model { .. } | Self::MaskLength { .. } | Self::PassFailed { .. } => ExitCode::Fault,
            _ => ExitCode::UserError,
        }
    }
}
