//! Many prompts through one model at a time, its adapters as they are attached.

use crate::pass::longest_sequence;
use crate::scheduler::Scheduler;
use crate::service::{Event, ServiceRequest};
use crate::{Completion, Error, FinishReason, GenerationConfig, Result};
use std::ops::ControlFlow;
use taper_models::CausalLm;
use taper_text::Tokenizer;

/// A prompt to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The key of its draws, together with the seed: the same number gives the same draws.
    pub number: u64,
    /// The prompt, with its BOS where the model wants one.
    pub prompt_ids: Vec<u32>,
}

impl Request {
    /// Prompts numbered by their place, from 0.
    pub fn numbered(prompts: impl IntoIterator<Item = Vec<u32>>) -> Vec<Self> {
        (0..).zip(prompts).map(|(number, prompt_ids)| Self { number, prompt_ids }).collect()
    }
}

/// Text that has become certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// The place of the request in the call, from 0.
    pub request: usize,
    /// The new text; empty only where the request ends.
    pub text: &'a str,
    /// Why the request ended, in its last delta, which every request has.
    pub finish_reason: Option<FinishReason>,
}

/// How much is computed at once. None of it changes a result; models with dynamic rotary scaling run one sequence at a time for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences at a time; each holds a cache.
    pub batch_size: usize,
    /// Most tokens in a pass while prompts are being read.
    pub tokens_per_pass: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { batch_size: 16, tokens_per_pass: 2048 }
    }
}

/// Generates with a model, its adapters as they are attached.
pub struct Engine<'a> {
    model: &'a dyn CausalLm,
    tokenizer: &'a Tokenizer,
    options: EngineOptions,
}

/// Who hears of new text; [`ControlFlow::Break`] ends that request.
pub type Listener<'a> = dyn FnMut(Delta<'_>) -> ControlFlow<()> + 'a;

impl<'a> Engine<'a> {
    /// An engine over a model and its tokenizer.
    pub fn new(model: &'a dyn CausalLm, tokenizer: &'a Tokenizer, options: EngineOptions) -> Self {
        Self { model, tokenizer, options }
    }

    /// The model.
    pub fn model(&self) -> &'a dyn CausalLm {
        self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Continue every request; the completions stand in the order of the requests.
    ///
    /// # Errors
    /// As [`Engine::generate_with`].
    pub fn generate(&self, requests: &[Request], config: &GenerationConfig) -> Result<Vec<Completion>> {
        self.generate_with(requests, config, &mut |_| ControlFlow::Continue(()))
    }

    /// Continue every request and tell `listener` each piece of text as it becomes certain.
    ///
    /// The pieces of a request, joined, are its completion's text.
    ///
    /// # Errors
    /// When a setting is out of range, a prompt is empty or leaves no room in the model's longest sequence, the logits are
    /// not finite, or the arithmetic or the tokenizer fails. Prompts are checked before the first pass.
    pub fn generate_with(
        &self,
        requests: &[Request],
        config: &GenerationConfig,
        listener: &mut Listener<'_>,
    ) -> Result<Vec<Completion>> {
        self.check(requests, config)?;
        // Nothing is kept for later calls, so that a text does not depend on what was asked before.
        let mut scheduler = Scheduler::new(self.model, self.tokenizer, self.options, usize::MAX, false);
        for (place, request) in requests.iter().enumerate() {
            let mut job = ServiceRequest::new(request.prompt_ids.clone(), config.clone());
            job.number = request.number;
            scheduler.submit(place, job);
        }
        let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut failed = None;
        while !scheduler.is_idle() && failed.is_none() {
            scheduler.step(&mut |place, event| {
                let (text, finish_reason) = match event {
                    Event::Prompt(_) => return ControlFlow::Continue(()),
                    Event::Piece(piece) if piece.text.is_empty() => return ControlFlow::Continue(()),
                    Event::Piece(piece) => (piece.text, None),
                    Event::Finished(finished) => {
                        let reason = finished.completion.finish_reason;
                        done[place] = Some(finished.completion);
                        (String::new(), Some(reason))
                    }
                    Event::Failed(error) => {
                        failed.get_or_insert(error);
                        return ControlFlow::Break(());
                    }
                };
                listener(Delta { request: place, text: &text, finish_reason })
            })?;
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(done.into_iter().flatten().collect()),
        }
    }

    fn check(&self, requests: &[Request], config: &GenerationConfig) -> Result<()> {
        config.check().into_result().map_err(Error::Config)?;
        let limit = longest_sequence(self.model.config());
        for (prompt, request) in requests.iter().enumerate() {
            let tokens = request.prompt_ids.len();
            if tokens == 0 {
                return Err(Error::EmptyPrompt { prompt });
            }
            if tokens >= limit {
                return Err(Error::PromptTooLong { prompt, tokens, limit });
            }
        }
        Ok(())
    }
}
