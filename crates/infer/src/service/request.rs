//! What is asked of the service.

use super::ServedAdapter;
use crate::{CompiledGrammar, GenerationConfig};
use std::sync::Arc;
use std::time::Instant;

/// An adapter and the factor on its delta.
#[derive(Debug, Clone)]
pub struct ScaledAdapter {
    /// The adapter.
    pub adapter: Arc<ServedAdapter>,
    /// 1 is the adapter as it was trained.
    pub scale: f64,
}

/// A prompt to continue, and how.
#[derive(Debug, Clone)]
pub struct ServiceRequest {
    /// The prompt, with its BOS where the model wants one.
    pub prompt_ids: Vec<u32>,
    /// How it is continued.
    pub config: GenerationConfig,
    /// The key of its draws beside the seed: the index of a choice.
    pub number: u64,
    /// The adapters whose deltas are summed; none is the base.
    pub adapters: Vec<ScaledAdapter>,
    /// The form that the text has to be of.
    pub grammar: Option<CompiledGrammar>,
    /// Tell the log-probability of each token and of so many of the likeliest beside it.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Requests share what is cached of a prompt only with those of the same salt.
    pub cache_salt: Option<String>,
    /// When it ends at the latest.
    pub deadline: Option<Instant>,
}

impl ServiceRequest {
    /// A request of the base, without any extras.
    pub fn new(prompt_ids: Vec<u32>, config: GenerationConfig) -> Self {
        Self {
            prompt_ids,
            config,
            number: 0,
            adapters: Vec::new(),
            grammar: None,
            logprobs: None,
            prompt_logprobs: None,
            cache_salt: None,
            deadline: None,
        }
    }
}
