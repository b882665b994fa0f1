//! The batch: which requests are in it, what each pass computes, and the memory of their keys and values.
//!
//! Continuous batching: every pass takes one new token of each sequence that is being written and, up to a budget, tokens of
//! prompts that are still being read; a sequence that ends leaves at once and the next request takes its place (Yu et al.,
//! "Orca", OSDI 2022; the shared budget as in Agrawal et al., "Sarathi-Serve", 2024). Since a batch is a flat run of tokens
//! there is no padding, and a sequence's numbers do not depend on its neighbours. Keys and values lie in pages (Kwon et al.,
//! "PagedAttention", SOSP 2023); full ones are kept for requests that begin with the same tokens, and when memory runs out the youngest
//! sequence gives its pages back and is read again later.

use crate::pass::{
    ROWS_PER_HEAD, RoutedRows, each_logits, hidden, longest_sequence, must_run_alone, select_rows,
};
use crate::prefix::PrefixCache;
use crate::sequence::{RouteKey, Sequence};
use crate::service::{Event, Piece, ServiceRequest, WrittenToken, page_bytes};
use crate::{EngineOptions, Error, FinishReason, Result, token_logprobs};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Instant;
use taper_kernels::gemm::FEW_ROWS;
use taper_kernels::rows;
use taper_models::CausalLm;
use taper_nn::{CacheMeter, KvCache, PAGE_TOKENS, SequenceLayout};
use taper_text::Tokenizer;

/// Who hears what a request comes to, by its key; [`ControlFlow::Break`] ends that request.
pub(crate) type Emit<'e> = dyn FnMut(usize, Event) -> ControlFlow<()> + 'e;

/// Numbers since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) preemptions: u64,
}

/// The batch and its queue.
pub(crate) struct Scheduler<'a> {
    model: &'a dyn CausalLm,
    tokenizer: &'a Tokenizer,
    options: EngineOptions,
    /// Bytes for keys and values.
    budget: usize,
    /// Most tokens of a sequence: what the model can, as far as the bytes hold it.
    longest: usize,
    keeps_prefixes: bool,
    meter: CacheMeter,
    prefixes: PrefixCache,
    waiting: VecDeque<Sequence<'a>>,
    /// In the order in which they came in.
    active: Vec<Sequence<'a>>,
    pub(crate) counts: Counts,
}

impl<'a> Scheduler<'a> {
    /// A batch whose keys and values take at most `budget` bytes; with `keeps_prefixes` those of a prompt are kept while there is room.
    pub(crate) fn new(
        model: &'a dyn CausalLm,
        tokenizer: &'a Tokenizer,
        options: EngineOptions,
        budget: usize,
        keeps_prefixes: bool,
    ) -> Self {
        let alone = must_run_alone(model);
        let longest = longest_held(model, budget);
        let options = match alone {
            true => EngineOptions { batch_size: 1, tokens_per_pass: usize::MAX },
            false => options,
        };
        Self {
            model,
            tokenizer,
            options,
            budget,
            longest,
            keeps_prefixes: keeps_prefixes && !alone,
            meter: CacheMeter::default(),
            prefixes: PrefixCache::default(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Add a request that was checked.
    pub(crate) fn submit(&mut self, key: usize, request: ServiceRequest) {
        let cache = KvCache::metered(self.model.num_blocks(), &self.meter);
        self.waiting.push_back(Sequence::new(key, request, self.tokenizer, cache));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty()
    }

    /// How many are in the batch, and how many wait.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.active.len(), self.waiting.len())
    }

    /// Bytes of keys and values that requests hold, and of those that are kept for later ones alone.
    pub(crate) fn cache_bytes(&self) -> (usize, usize) {
        let idle = self.prefixes.idle_bytes();
        (self.meter.bytes().saturating_sub(idle), idle)
    }

    /// Forget every request for which `is_gone`.
    pub(crate) fn remove_where(&mut self, is_gone: impl Fn(usize) -> bool) {
        self.active.retain(|sequence| !is_gone(sequence.key));
        self.waiting.retain(|sequence| !is_gone(sequence.key));
    }

    /// Forget what is in the batch; the keys of those requests.
    pub(crate) fn clear_batch(&mut self) -> Vec<usize> {
        self.active.drain(..).map(|sequence| sequence.key).collect()
    }

    /// Passes over all that is in the batch, apart for what is written and what is read: sequences share them, but for adapters that cannot.
    ///
    /// # Errors
    /// When the arithmetic or the tokenizer fails, which leaves the batch as it was before the pass.
    pub(crate) fn step(&mut self, emit: &mut Emit<'_>) -> Result<()> {
        self.end_late(emit);
        self.admit();
        if let Some(length) = self.model.config().rope.switch_length() {
            self.active.iter_mut().for_each(|sequence| sequence.switch_at(length));
        }
        let mut pieces = plan(&self.active, self.options.tokens_per_pass);
        self.make_room(&mut pieces);
        let mut ended = Vec::new();
        // What is written and what is read go apart: so each row has the same arithmetic whatever shares the batch with it.
        let (writing, reading): (Vec<usize>, Vec<usize>) = (0..self.active.len())
            .filter(|&index| pieces[index] > 0)
            .partition(|&index| self.active[index].to_read() == 0);
        for group in groups(&self.active, &writing) {
            for some in group.chunks(FEW_ROWS) {
                self.pass(some, &pieces, &mut ended, emit)?;
            }
        }
        for group in groups(&self.active, &reading) {
            rows::as_many(|| self.pass(&group, &pieces, &mut ended, emit))?;
        }
        self.leave(ended, emit)
    }

    /// End what is beyond its deadline.
    fn end_late(&mut self, emit: &mut Emit<'_>) {
        let now = Instant::now();
        let is_late = |sequence: &Sequence<'_>| sequence.request.deadline.is_some_and(|at| at <= now);
        let mut late: Vec<usize> = Vec::new();
        self.active.retain(|sequence| {
            !is_late(sequence) || {
                late.push(sequence.key);
                false
            }
        });
        self.waiting.retain(|sequence| {
            !is_late(sequence) || {
                late.push(sequence.key);
                false
            }
        });
        for key in late {
            let _ = emit(key, Event::Failed(Error::DeadlineExceeded));
        }
    }

    fn admit(&mut self) {
        while self.active.len() < self.options.batch_size.max(1)
            && let Some(sequence) = self.waiting.front()
        {
            let pages = (sequence.tokens.len() + 1).div_ceil(PAGE_TOKENS);
            if !self.active.is_empty() && !self.could_hold(pages * page_bytes(self.model)) {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.begin();
            self.find_prefix(&mut sequence);
            self.active.push(sequence);
        }
    }

    /// Begin with what an earlier request left.
    fn find_prefix(&mut self, sequence: &mut Sequence<'_>) {
        if !self.keeps_prefixes || sequence.request.prompt_logprobs.is_some() {
            return;
        }
        let keys = sequence.keys(sequence.findable(), self.model.config().rope.switch_length());
        let pages = self.prefixes.find(&keys);
        if !pages.is_empty() {
            let cache = KvCache::beginning_with(pages, self.model.num_blocks(), &self.meter);
            sequence.take_over(&keys, cache);
        }
    }

    /// Whether so many bytes are free, or would be if nothing were kept.
    fn could_hold(&self, bytes: usize) -> bool {
        let free = self.budget.saturating_sub(self.meter.bytes());
        bytes <= free || bytes - free <= self.prefixes.idle_bytes()
    }

    /// Let go of kept pages until the pass has the pages that it will write; where that is not enough, the youngest sequences give theirs
    /// back. One alone always fits, since requests are held to that.
    fn make_room(&mut self, pieces: &mut Vec<usize>) {
        loop {
            let new_pages: usize = self
                .active
                .iter()
                .zip(pieces.iter())
                .map(|(s, &piece)| {
                    (s.cached + piece).div_ceil(PAGE_TOKENS).saturating_sub(s.cache.pages().len())
                })
                .sum();
            let needed = (self.meter.bytes()).saturating_add(new_pages * page_bytes(self.model));
            let Some(lacking) = needed.checked_sub(self.budget).filter(|&bytes| bytes > 0) else { return };
            if self.prefixes.make_room(lacking) >= lacking || self.active.len() <= 1 {
                return;
            }
            if let Some(mut youngest) = self.active.pop() {
                pieces.pop();
                youngest.give_back();
                self.counts.preemptions += 1;
                self.waiting.push_front(youngest);
            }
        }
    }

    /// One pass over the sequences of a group; those that ended are added to `ended`.
    fn pass(
        &mut self,
        group: &[usize],
        pieces: &[usize],
        ended: &mut Vec<(usize, End)>,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let (hidden, wanted) = self.hidden(group, pieces)?;
        for &index in group {
            self.count_read(index, pieces[index]);
        }
        let Some(hidden) = hidden else { return Ok(()) };
        for (index, error) in self.prepare_choices(group) {
            let _ = emit(self.active[index].key, Event::Failed(error));
            ended.push((index, End::Failed));
        }
        let mut chosen: Vec<(usize, Choice)> = Vec::new();
        for read in self.read_logits(group, &hidden, &wanted)? {
            match read {
                (index, Read::Prompt(token)) => self.active[index].prompt_logprobs.push(token),
                (index, Read::Next(choice)) => chosen.push((index, choice)),
            }
        }
        chosen.retain(|(index, _)| ended.iter().all(|(gone, _)| gone != index));
        for (index, choice) in chosen {
            if let Some(end) = self.accept(index, choice, emit)? {
                ended.push((index, end));
            }
        }
        Ok(())
    }

    /// What the logits of the wanted rows say, by sequence: of the prompt's tokens in the arithmetic of many rows, of next tokens in that of few.
    fn read_logits(
        &self,
        group: &[usize],
        hidden: &Tensor,
        wanted: &[Vec<Row>],
    ) -> Result<Vec<(usize, Read)>> {
        let model = self.model_of(group[0]);
        let mut all = Vec::new();
        for of_prompt in [true, false] {
            let is_of = |row: &&Row| (row.at + 1 < self.active[row.sequence].tokens.len()) == of_prompt;
            let rows: Vec<Row> = wanted.iter().flatten().filter(is_of).copied().collect();
            let places: Vec<u32> = (0..)
                .zip(wanted.iter().flatten())
                .filter(|(_, row)| is_of(row))
                .map(|(place, _)| place)
                .collect();
            if rows.is_empty() {
                continue;
            }
            let routed = self.routed(group, |position| wanted[position].iter().filter(is_of).count());
            let x = select_rows(hidden, &places)?;
            let mut take = |first: usize, values: &[f32], v: usize| {
                let rows = values.par_chunks(v).zip(&rows[first..]);
                let read: Vec<(usize, Read)> = rows
                    .map(|(logits, row)| (row.sequence, read(&self.active[row.sequence], *row, logits)))
                    .collect();
                all.extend(read);
                Ok(())
            };
            match of_prompt {
                true => rows::as_many(|| each_logits(model, &x, &routed, ROWS_PER_HEAD, &mut take))?,
                false => rows::by_number(|| each_logits(model, &x, &routed, FEW_ROWS, &mut take))?,
            }
        }
        Ok(all)
    }

    /// Ask the grammars of those that get a token; what went wrong, by sequence.
    fn prepare_choices(&mut self, taking: &[usize]) -> Vec<(usize, Error)> {
        let ready = self.active.par_iter_mut().enumerate();
        let ready = ready.filter(|(index, sequence)| sequence.pending() == 0 && taking.contains(index));
        ready.filter_map(|(index, sequence)| Some((index, sequence.prepare_choice().err()?))).collect()
    }

    /// The hidden states of the rows whose logits are wanted, and which rows these are, by sequence.
    fn hidden(&mut self, taking: &[usize], pieces: &[usize]) -> Result<(Option<Tensor>, Vec<Vec<Row>>)> {
        let (mut ids, mut lengths, mut text_lengths) = (Vec::new(), Vec::new(), Vec::new());
        let (mut wanted, mut rows) = (Vec::new(), Vec::new());
        for &index in taking {
            let (sequence, piece) = (&self.active[index], pieces[index]);
            let start = ids.len();
            ids.extend_from_slice(&sequence.tokens[sequence.cached..sequence.cached + piece]);
            lengths.push((piece, sequence.cached));
            text_lengths.push(sequence.tokens.len());
            let of_sequence = wanted_rows(index, sequence, piece);
            rows.extend(of_sequence.iter().map(|row| (start + row.at - sequence.cached) as u32));
            wanted.push(of_sequence);
        }
        let layout = SequenceLayout::continued(&lengths).of_texts(text_lengths);
        let mut caches: Vec<KvCache> =
            taking.iter().map(|&index| std::mem::take(&mut self.active[index].cache)).collect();
        let none_wanted = rows.is_empty();
        if none_wanted {
            rows.push(0);
        }
        let outcome = {
            let routed = self.route_pieces(taking, pieces);
            let model = self.model_of(taking[0]);
            hidden(model, &ids, &layout, Some(caches.iter_mut().collect()), &routed, &rows)
        };
        for (&index, mut cache) in taking.iter().zip(caches) {
            let sequence = &mut self.active[index];
            match &outcome {
                Ok(_) => sequence.advance(pieces[index]),
                // Some blocks may have been extended: none is.
                Err(_) => cache.truncate(sequence.cached),
            }
            sequence.cache = cache;
        }
        Ok((outcome.map(|hidden| (!none_wanted).then_some(hidden))?, wanted))
    }

    /// The model that a group's pass runs: the one with the adapter on it, where its rows cannot share a pass.
    fn model_of(&self, index: usize) -> &dyn CausalLm {
        let adapters = &self.active[index].request.adapters;
        adapters.first().and_then(|scaled| scaled.adapter.own_pass()).unwrap_or(self.model)
    }

    fn route_pieces(&self, taking: &[usize], pieces: &[usize]) -> Vec<RoutedRows<'_>> {
        self.routed(taking, |position| pieces[taking[position]])
    }

    /// The rows of each run of sequences with the same adapters.
    fn routed(&self, taking: &[usize], rows_of: impl Fn(usize) -> usize) -> Vec<RoutedRows<'_>> {
        let mut routed: Vec<RoutedRows<'_>> = Vec::new();
        let mut previous = None;
        let mut next = 0;
        for (position, &index) in taking.iter().enumerate() {
            let sequence = &self.active[index];
            let end = next + rows_of(position);
            let route = sequence.route();
            match routed.last_mut() {
                Some(last) if previous.as_ref() == Some(&route) => last.rows.end = end,
                _ => {
                    let first = sequence.request.adapters.first().map(|scaled| &scaled.adapter);
                    let own = first.is_some_and(|adapter| adapter.own_pass().is_some());
                    routed.push(RoutedRows {
                        rows: next..end,
                        parts: if own { &[] } else { &sequence.parts },
                        embeds: first.and_then(|adapter| adapter.embeds()),
                    });
                }
            }
            previous = Some(route);
            next = end;
        }
        routed
    }

    fn count_read(&mut self, index: usize, piece: usize) {
        let switch = self.model.config().rope.switch_length();
        let sequence = &mut self.active[index];
        let before = sequence.cached - piece;
        // What is read again after its pages were given back counts once.
        if sequence.written() == 0 {
            self.counts.prompt_tokens += piece as u64;
            if before > 0 && before == sequence.reused {
                self.counts.prompt_tokens += before as u64;
                self.counts.cached_prompt_tokens += before as u64;
            }
        }
        if self.keeps_prefixes {
            for (key, page) in sequence.new_pages(switch) {
                self.prefixes.keep(key, &page);
            }
        }
    }

    /// Take a chosen token in; how the sequence ends, when it does.
    fn accept(&mut self, index: usize, choice: Choice, emit: &mut Emit<'_>) -> Result<Option<End>> {
        let full = self.longest;
        let sequence = &mut self.active[index];
        let key = sequence.key;
        if let Some(told) = sequence.tell_prompt()
            && emit(key, Event::Prompt(told)).is_break()
        {
            return Ok(Some(End::Finished(FinishReason::Cancelled)));
        }
        let Some(token) = choice else {
            let token = sequence.written();
            let _ = emit(key, Event::Failed(Error::NonFiniteLogits { prompt: key, token }));
            return Ok(Some(End::Failed));
        };
        sequence.note_token();
        self.counts.generation_tokens += 1;
        let max_new_tokens = sequence.request.config.max_new_tokens;
        if sequence.is_stop(token.id) {
            sequence.end_with(token.id);
            // It has no text, but whoever asked for probabilities asked for this one too.
            if sequence.request.logprobs.is_some() {
                let _ = emit(key, Event::Piece(Piece { text: String::new(), tokens: vec![token] }));
            }
            return Ok(Some(End::Finished(FinishReason::Stop)));
        }
        let is_whole = match sequence.follow(token.id) {
            Ok(is_whole) => is_whole,
            Err(error) => {
                let _ = emit(key, Event::Failed(error));
                return Ok(Some(End::Failed));
            }
        };
        let text = sequence.push(token.id)?.to_owned();
        let goes_on = emit(key, Event::Piece(Piece { text, tokens: vec![token] })).is_continue();
        let reason = if is_whole || sequence.is_stopped() {
            Some(FinishReason::Stop)
        } else if !goes_on {
            Some(FinishReason::Cancelled)
        } else if sequence.written() >= max_new_tokens || sequence.tokens.len() >= full {
            Some(FinishReason::Length)
        } else {
            None
        };
        Ok(reason.map(End::Finished))
    }

    /// Take out those that ended, and tell.
    fn leave(&mut self, mut ended: Vec<(usize, End)>, emit: &mut Emit<'_>) -> Result<()> {
        // From the back, so that the indices stay true.
        ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, end) in ended {
            let sequence = self.active.remove(index);
            let End::Finished(reason) = end else { continue };
            let key = sequence.key;
            let (finished, tail) = sequence.finish(reason)?;
            // The request is over: there is nothing left to break off.
            if !tail.text.is_empty() {
                let _ = emit(key, Event::Piece(tail));
            }
            let _ = emit(key, Event::Finished(finished));
        }
        Ok(())
    }
}

/// How a sequence leaves the batch.
enum End {
    Finished(FinishReason),
    /// Its caller has heard of it.
    Failed,
}

/// Most tokens of a sequence over `model` whose keys and values take at most `budget` bytes.
pub(crate) fn longest_held(model: &dyn CausalLm, budget: usize) -> usize {
    longest_sequence(model.config()).min((budget / page_bytes(model)).saturating_mul(PAGE_TOKENS))
}

/// A row of a pass whose logits are wanted.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// The place of its sequence in the batch.
    sequence: usize,
    /// The place of its token in the text.
    at: usize,
}

/// The next token; `None` where the logits are no numbers.
type Choice = Option<WrittenToken>;

/// What was read off a row of logits.
enum Read {
    /// How likely the next token of the prompt was.
    Prompt(WrittenToken),
    Next(Choice),
}

fn read(sequence: &Sequence<'_>, row: Row, logits: &[f32]) -> Read {
    match sequence.tokens.get(row.at + 1) {
        Some(&next) => {
            let top = sequence.request.prompt_logprobs.unwrap_or(0);
            Read::Prompt(token_logprobs(logits, next, top))
        }
        None => Read::Next(sequence.choose(logits).map(|id| match sequence.request.logprobs {
            Some(top) => token_logprobs(logits, id, top),
            None => WrittenToken { id, logprob: None, top: Vec::new() },
        })),
    }
}

/// The rows of a piece whose logits are wanted: the text's last, and those before tokens of the prompt whose probability was asked for.
fn wanted_rows(index: usize, sequence: &Sequence<'_>, piece: usize) -> Vec<Row> {
    let (start, end) = (sequence.cached, sequence.cached + piece);
    let of_prompt = sequence.request.prompt_logprobs.is_some();
    let known = if of_prompt { sequence.prompt_logprobs.len() } else { usize::MAX };
    (start..end)
        .filter(|&at| at + 1 == sequence.tokens.len() || (at >= known && at + 1 < sequence.prompt_tokens))
        .map(|at| Row { sequence: index, at })
        .collect()
}

/// How many tokens of each sequence the next passes take: one of those being written, then prompts in order while the budget
/// lasts. At least one sequence gets a token.
fn plan(active: &[Sequence<'_>], budget: usize) -> Vec<usize> {
    let writing = active.iter().filter(|s| s.to_read() == 0).count();
    let mut left = budget.saturating_sub(writing);
    if writing == 0 {
        left = left.max(1);
    }
    active
        .iter()
        .map(|sequence| match sequence.to_read() {
            0 => 1,
            to_read => {
                let take = to_read.min(left);
                left -= take;
                take
            }
        })
        .collect()
}

/// `some` of the sequences, by the passes that they share, those with the same adapters side by side; an adapter that cannot share has passes of
/// its own.
fn groups(active: &[Sequence<'_>], some: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<(RouteKey, usize)> =
        some.iter().map(|&index| (active[index].route(), index)).collect();
    order.sort();
    let mut shared = Vec::new();
    let mut own: Vec<(RouteKey, Vec<usize>)> = Vec::new();
    for (route, index) in order {
        let alone = active[index].request.adapters.iter().any(|scaled| scaled.adapter.own_pass().is_some());
        match own.last_mut() {
            _ if !alone => shared.push(index),
            Some((last, group)) if *last == route => group.push(index),
            _ => own.push((route, vec![index])),
        }
    }
    let own = own.into_iter().map(|(_, group)| group);
    std::iter::once(shared).filter(|group| !group.is_empty()).chain(own).collect()
}
