//! A request on its way: tokens, cache, text.

use crate::prefix::{self, PageKey};
use crate::service::{Finished, Piece, ServiceRequest, StopCause, Times, WrittenToken};
use crate::stop::StopScanner;
use crate::{Completion, FinishReason, GrammarMatcher, Result, Sampler, SamplerInput, TokenMask};
use std::sync::Arc;
use std::time::Instant;
use taper_nn::{KvCache, PAGE_TOKENS, RoutePart};
use taper_text::{DetokenizerStream, Tokenizer};

/// Which adapters a sequence goes through, with the bits of their scales.
pub(crate) type RouteKey = Vec<(usize, u64)>;

/// What one request has come to.
pub(crate) struct Sequence<'a> {
    /// The caller's name for it.
    pub(crate) key: usize,
    pub(crate) request: ServiceRequest,
    /// The adapters as the passes take them.
    pub(crate) parts: Vec<RoutePart>,
    /// Prompt and what was written.
    pub(crate) tokens: Vec<u32>,
    /// How many of them the cache has seen.
    pub(crate) cached: usize,
    pub(crate) cache: KvCache,
    /// How long the text was when the cache was last extended.
    cached_for: usize,
    /// The keys of the full pages that were kept or found.
    page_keys: Vec<PageKey>,
    /// Prompt tokens that were found in the cache.
    pub(crate) reused: usize,
    pub(crate) prompt_tokens: usize,
    /// How many tokens of the text are read together, in the arithmetic of many rows; those behind them go one by one, as they were written.
    read_together: usize,
    /// What is known of the tokens of the prompt, where that was asked for.
    pub(crate) prompt_logprobs: Vec<WrittenToken>,
    /// Whether the caller has heard that the prompt was read.
    prompt_told: bool,
    sampler: Sampler,
    stop_ids: Vec<u32>,
    grammar: Option<GrammarMatcher>,
    /// What the grammar leaves for the next token.
    allowed: Option<TokenMask>,
    decoder: DetokenizerStream<'a>,
    scanner: StopScanner,
    stop_token: Option<u32>,
    clock: Clock,
}

struct Clock {
    came: Instant,
    began: Option<Instant>,
    first_token: Option<Instant>,
}

impl<'a> Sequence<'a> {
    pub(crate) fn new(key: usize, request: ServiceRequest, tokenizer: &'a Tokenizer, cache: KvCache) -> Self {
        let config = Arc::new(request.config.clone());
        let stop_ids = [tokenizer.eos_ids(), &config.stop_token_ids].concat();
        let parts = request
            .adapters
            .iter()
            .map(|scaled| RoutePart { modules: scaled.adapter.modules().clone(), scale: scaled.scale });
        Self {
            key,
            parts: parts.collect(),
            tokens: request.prompt_ids.clone(),
            cached: 0,
            cache,
            cached_for: 0,
            page_keys: Vec::new(),
            reused: 0,
            prompt_tokens: request.prompt_ids.len(),
            read_together: request.prompt_ids.len(),
            prompt_logprobs: Vec::new(),
            prompt_told: false,
            sampler: Sampler::new(config, request.number),
            grammar: request.grammar.as_ref().map(|grammar| grammar.matcher(&stop_ids)),
            allowed: None,
            stop_ids,
            decoder: tokenizer.detokenizer(true),
            scanner: StopScanner::new(request.config.stop.clone()),
            stop_token: None,
            clock: Clock { came: Instant::now(), began: None, first_token: None },
            request,
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

    /// Tokens that may be read together with those of other texts; 0 where the next token goes alone, as one that is written does.
    pub(crate) fn to_read(&self) -> usize {
        self.read_together.saturating_sub(self.cached)
    }

    /// How many leading tokens may come from kept pages: of what is read together, all but the text's last, whose logits are wanted.
    pub(crate) fn findable(&self) -> usize {
        self.read_together.min(self.tokens.len() - 1)
    }

    /// Note that a place in the batch was found.
    pub(crate) fn begin(&mut self) {
        self.clock.began.get_or_insert_with(Instant::now);
    }

    /// Which sequences may share a pass and its order: equal where the adapters and scales are the same.
    pub(crate) fn route(&self) -> RouteKey {
        self.parts.iter().map(|part| (Arc::as_ptr(&part.modules) as usize, part.scale.to_bits())).collect()
    }

    /// Note that the next pass takes `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.cached += tokens;
        self.cached_for = self.tokens.len();
    }

    /// Read the whole text again where it has grown beyond `length` since it was cached, because its rotary embedding turns longer texts
    /// by other frequencies.
    pub(crate) fn switch_at(&mut self, length: usize) {
        if self.cached > 0 && self.cached_for <= length && self.tokens.len() > length {
            self.give_back();
            self.read_together = self.tokens.len();
        }
    }

    /// Let go of all that is cached.
    pub(crate) fn give_back(&mut self) {
        self.cache.truncate(0);
        self.cached = 0;
        self.page_keys.clear();
    }

    /// The keys of the text's whole pages; `switch` is the length beyond which other frequencies turn it.
    pub(crate) fn keys(&self, upto: usize, switch: Option<usize>) -> Vec<PageKey> {
        let is_long = switch.is_some_and(|length| self.tokens.len() > length);
        let root = prefix::root(&self.request.adapters, self.request.cache_salt.as_deref(), is_long);
        prefix::keys(root, &self.tokens[..upto]).collect()
    }

    /// Begin with pages that were found.
    pub(crate) fn take_over(&mut self, keys: &[PageKey], cache: KvCache) {
        self.cached = cache.pages().len() * PAGE_TOKENS;
        self.cached_for = self.tokens.len();
        self.page_keys = keys[..cache.pages().len()].to_vec();
        self.reused = self.cached.min(self.prompt_tokens);
        self.cache = cache;
    }

    /// Full pages that have no key yet, each with its key. Only what was read is kept: what was written would be other bits if it were read.
    pub(crate) fn new_pages(&mut self, switch: Option<usize>) -> Vec<(PageKey, Arc<taper_nn::KvPage>)> {
        let (known, full) = (self.page_keys.len(), self.cached.min(self.read_together) / PAGE_TOKENS);
        if full <= known {
            return Vec::new();
        }
        let new = match self.page_keys.last() {
            Some(&last) => {
                prefix::keys(last, &self.tokens[known * PAGE_TOKENS..full * PAGE_TOKENS]).collect()
            }
            None => self.keys(full * PAGE_TOKENS, switch),
        };
        self.page_keys.extend(&new);
        new.into_iter().zip(self.cache.pages()[known..full].iter().cloned()).collect()
    }

    /// Ask the grammar, where there is one, which tokens may come next.
    pub(crate) fn prepare_choice(&mut self) -> Result<()> {
        if let Some(grammar) = self.grammar.as_mut().filter(|_| self.allowed.is_none()) {
            self.allowed = Some(grammar.allowed()?.clone());
        }
        Ok(())
    }

    /// The next token from logits `[V]`.
    pub(crate) fn choose(&self, logits: &[f32]) -> Option<u32> {
        let (prompt, written) = self.tokens.split_at(self.prompt_tokens);
        let allowed = self.allowed.as_ref();
        self.sampler.sample(logits, &SamplerInput { prompt, written, stop_ids: &self.stop_ids, allowed })
    }

    /// Follow the grammar over a token; whether the text is whole by it.
    pub(crate) fn follow(&mut self, id: u32) -> Result<bool> {
        self.allowed = None;
        let Some(grammar) = &mut self.grammar else { return Ok(false) };
        grammar.accept(id)?;
        Ok(grammar.is_complete())
    }

    /// Whether this token ends the text.
    pub(crate) fn is_stop(&self, id: u32) -> bool {
        self.request.config.is_stop(id, &self.stop_ids)
    }

    /// What the caller hears of the prompt, once.
    pub(crate) fn tell_prompt(&mut self) -> Option<Vec<WrittenToken>> {
        if std::mem::replace(&mut self.prompt_told, true) {
            return None;
        }
        if self.request.prompt_logprobs.is_none() {
            return Some(Vec::new());
        }
        // The first token follows nothing, so it has no probability.
        let first = WrittenToken { id: self.tokens[0], logprob: None, top: Vec::new() };
        Some(std::iter::once(first).chain(self.prompt_logprobs.iter().cloned()).collect())
    }

    /// Note that a token was chosen.
    pub(crate) fn note_token(&mut self) {
        self.clock.first_token.get_or_insert_with(Instant::now);
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

    /// The end, with the last of the text that was held back.
    pub(crate) fn finish(mut self, reason: FinishReason) -> Result<(Finished, Piece)> {
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
        let stop = match (self.stop_token, self.scanner.stop()) {
            (Some(id), _) => Some(StopCause::Token(id)),
            (None, Some(text)) => Some(StopCause::Text(text.to_owned())),
            (None, None) => None,
        };
        let completion = Completion {
            text: self.scanner.text().to_owned(),
            token_ids: self.tokens.split_off(self.prompt_tokens),
            stop_token: self.stop_token,
            finish_reason: reason,
            prompt_tokens: self.prompt_tokens,
        };
        let finished = Finished {
            completion,
            stop,
            cached_tokens: self.reused,
            times: self.clock.times(Instant::now()),
        };
        Ok((finished, Piece { text: tail, tokens: Vec::new() }))
    }
}

impl Clock {
    fn times(&self, now: Instant) -> Times {
        let began = self.began.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        Times { queued: began - self.came, prompt: first - began, writing: now - first }
    }
}
