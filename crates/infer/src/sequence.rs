//! A request on its way: tokens, cache, text.

use crate::stop::StopScanner;
use crate::{Completion, FinishReason, GenerationConfig, Request, Result, Sampler, SamplerInput};
use std::sync::Arc;
use taper_nn::KvCache;
use taper_text::{DetokenizerStream, Tokenizer};

/// What one request has come to.
pub(crate) struct Sequence<'a> {
    /// Its place in the call.
    pub(crate) place: usize,
    /// Prompt and what was written.
    pub(crate) tokens: Vec<u32>,
    /// How many of them the cache has seen.
    pub(crate) cached: usize,
    pub(crate) cache: KvCache,
    /// How long the text was when the cache was last extended.
    pub(crate) cached_for: usize,
    prompt_tokens: usize,
    sampler: Sampler,
    stop_ids: Vec<u32>,
    decoder: DetokenizerStream<'a>,
    scanner: StopScanner,
    stop_token: Option<u32>,
}

impl<'a> Sequence<'a> {
    pub(crate) fn new(
        place: usize,
        request: &Request,
        blocks: usize,
        tokenizer: &'a Tokenizer,
        config: &Arc<GenerationConfig>,
    ) -> Self {
        Self {
            place,
            tokens: request.prompt_ids.clone(),
            cached: 0,
            cache: KvCache::new(blocks),
            cached_for: 0,
            prompt_tokens: request.prompt_ids.len(),
            sampler: Sampler::new(config.clone(), request.number),
            stop_ids: [tokenizer.eos_ids(), &config.stop_token_ids].concat(),
            decoder: tokenizer.detokenizer(true),
            scanner: StopScanner::new(config.stop.clone()),
            stop_token: None,
        }
    }

    /// Tokens that were written so far.
    pub(crate) fn written(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that the cache has not seen.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Read the whole text again where it has grown beyond `length` since it was cached, because its rotary embedding turns longer texts
    /// by other frequencies.
    pub(crate) fn switch_at(&mut self, length: usize) {
        if self.cached > 0 && self.cached_for <= length && self.tokens.len() > length {
            self.cache.truncate(0, 0);
            self.cached = 0;
        }
    }

    /// The next token from logits `[V]`.
    pub(crate) fn choose(&self, logits: &[f32]) -> Option<u32> {
        let (prompt, written) = self.tokens.split_at(self.prompt_tokens);
        self.sampler
            .sample(logits, &SamplerInput { prompt, written, stop_ids: &self.stop_ids, allowed: None })
    }

    /// Note that `id` ended the text.
    pub(crate) fn end_with(&mut self, id: u32) {
        self.stop_token = Some(id);
    }

    /// Take a token in; gives the text that can be shown now.
    pub(crate) fn push(&mut self, id: u32) -> Result<&str> {
        self.tokens.push(id);
        let piece = self.decoder.push(id)?;
        Ok(self.scanner.push(&piece))
    }

    /// Whether a stop string came up.
    pub(crate) fn is_stopped(&self) -> bool {
        self.scanner.is_stopped()
    }

    /// The completion, with the last of the text that was held back.
    pub(crate) fn finish(mut self, reason: FinishReason) -> Result<(Completion, String)> {
        let mut tail = String::new();
        let mut reason = reason;
        if !self.scanner.is_stopped() {
            let piece = self.decoder.finish()?;
            tail.push_str(self.scanner.push(&piece));
            if self.scanner.is_stopped() {
                reason = FinishReason::Stop;
            } else {
                tail.push_str(self.scanner.finish());
            }
        }
        let completion = Completion {
            text: self.scanner.text().to_owned(),
            token_ids: self.tokens.split_off(self.prompt_tokens),
            stop_token: self.stop_token,
            finish_reason: reason,
            prompt_tokens: self.prompt_tokens,
        };
        Ok((completion, tail))
    }
}
