//! Many prompts through one model at a time.
//!
//! Continuous batching: every pass takes one new token of each sequence that is being written and, up to a budget, tokens of
//! prompts that are still being read; a sequence that ends leaves at once and the next request takes its place (Yu et al.,
//! "Orca", OSDI 2022; the shared budget as in Agrawal et al., "Sarathi-Serve", 2024). Since a batch is a flat run of tokens
//! there is no padding, and a sequence's numbers do not depend on its neighbours.

use crate::pass::{last_logits, longest_sequence, must_run_alone, values_and_width};
use crate::sequence::Sequence;
use crate::{Completion, Error, FinishReason, GenerationConfig, Result};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use taper_models::CausalLm;
use taper_nn::{KvCache, SequenceLayout};
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
        let options = match must_run_alone(model) {
            true => EngineOptions { batch_size: 1, tokens_per_pass: usize::MAX },
            false => options,
        };
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
        let config = &Arc::new(config.clone());
        let mut queue: VecDeque<usize> = (0..requests.len()).collect();
        let mut active: Vec<Sequence<'_>> = Vec::new();
        let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
        loop {
            while active.len() < self.options.batch_size.max(1)
                && let Some(place) = queue.pop_front()
            {
                let blocks = self.model.num_blocks();
                active.push(Sequence::new(place, &requests[place], blocks, self.tokenizer, config));
            }
            if active.is_empty() {
                break;
            }
            let ended = self.step(&mut active, config, listener)?;
            // From the back, so that the indices stay true.
            for (index, reason) in ended.into_iter().rev() {
                let sequence = active.remove(index);
                let place = sequence.place;
                let (completion, tail) = sequence.finish(reason)?;
                let finish_reason = Some(completion.finish_reason);
                // The request is over: there is nothing left to break off.
                let _ = listener(Delta { request: place, text: &tail, finish_reason });
                done[place] = Some(completion);
            }
        }
        Ok(done.into_iter().flatten().collect())
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

    /// One pass; gives the sequences that ended, by rising index.
    fn step(
        &self,
        active: &mut [Sequence<'_>],
        config: &GenerationConfig,
        listener: &mut Listener<'_>,
    ) -> Result<Vec<(usize, FinishReason)>> {
        if let Some(length) = self.model.config().rope.switch_length() {
            active.iter_mut().for_each(|sequence| sequence.switch_at(length));
        }
        let pieces = plan(active, self.options.tokens_per_pass);
        let Some((logits, v)) = self.run(active, &pieces)? else { return Ok(Vec::new()) };
        let ready: Vec<usize> = (0..active.len()).filter(|&i| active[i].pending() == 0).collect();
        let chosen: Vec<Option<u32>> =
            ready.par_iter().zip(logits.par_chunks(v)).map(|(&i, row)| active[i].choose(row)).collect();
        let mut ended = Vec::new();
        for (index, id) in ready.into_iter().zip(chosen) {
            let sequence = &mut active[index];
            let Some(id) = id else {
                return Err(Error::NonFiniteLogits { prompt: sequence.place, token: sequence.written() });
            };
            if let Some(reason) = self.accept(sequence, id, config, listener)? {
                ended.push((index, reason));
            }
        }
        Ok(ended)
    }

    /// Run the pieces through the model; logits of the sequences whose last token was among them, row by row.
    fn run(&self, active: &mut [Sequence<'_>], pieces: &[usize]) -> Result<Option<(Vec<f32>, usize)>> {
        let (mut ids, mut lengths, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut text_lengths = Vec::new();
        let mut caches: Vec<&mut KvCache> = Vec::new();
        for (sequence, &length) in active.iter_mut().zip(pieces).filter(|(_, length)| **length > 0) {
            ids.extend_from_slice(&sequence.tokens[sequence.cached..sequence.cached + length]);
            lengths.push((length, sequence.cached));
            text_lengths.push(sequence.tokens.len());
            sequence.cached += length;
            sequence.cached_for = sequence.tokens.len();
            wanted.push(sequence.cached == sequence.tokens.len());
            caches.push(&mut sequence.cache);
        }
        let layout = SequenceLayout::continued(&lengths).of_texts(text_lengths);
        match last_logits(self.model, &ids, &layout, caches, &wanted)? {
            Some(logits) => values_and_width(&logits).map(Some),
            None => Ok(None),
        }
    }

    /// Take a chosen token in; the reason when it ends the sequence.
    fn accept(
        &self,
        sequence: &mut Sequence<'_>,
        id: u32,
        config: &GenerationConfig,
        listener: &mut Listener<'_>,
    ) -> Result<Option<FinishReason>> {
        if config.is_stop(id, self.tokenizer.eos_ids()) {
            sequence.end_with(id);
            return Ok(Some(FinishReason::Stop));
        }
        let request = sequence.place;
        let text = sequence.push(id)?;
        let goes_on = text.is_empty() || listener(Delta { request, text, finish_reason: None }).is_continue();
        if sequence.is_stopped() {
            return Ok(Some(FinishReason::Stop));
        }
        if !goes_on {
            return Ok(Some(FinishReason::Cancelled));
        }
        let full = sequence.tokens.len() >= longest_sequence(self.model.config());
        let length = sequence.written() >= config.max_new_tokens || full;
        Ok(length.then_some(FinishReason::Length))
    }
}

/// How many tokens of each sequence the next pass takes: one of those being written, then prompts in order while the budget
/// lasts. At least one sequence gets a token.
fn plan(active: &[Sequence<'_>], budget: usize) -> Vec<usize> {
    let writing = active.iter().filter(|s| s.pending() == 1).count();
    let mut left = budget.saturating_sub(writing);
    if writing == 0 {
        left = left.max(1);
    }
    active
        .iter()
        .map(|sequence| match sequence.pending() {
            1 => 1,
            pending => {
                let take = pending.min(left);
                left -= take;
                take
            }
        })
        .collect()
}
