//! Let a model in this process answer the items of a task.

use crate::cost::{EnergyMeter, POWERCAP};
use crate::metrics::loss::LossSum;
use crate::response_cache::ResponseCache;
use crate::task::{EvalItem, EvalTask, ScoredIds};
use crate::{Answers, Error, Response, Result};
use serde::Serialize;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Instant;
use taper_hub::Fingerprint;
use taper_infer::{
    Completion, Engine, EngineOptions, FinishReason, GenerationConfig, Request, Scored, token_losses,
};
use taper_models::CausalLm;
use taper_text::Tokenizer;

/// Tokens of a scoring pass.
const TOKENS_PER_PASS: usize = 2048;
/// Batches of answers that are written, and kept, together. Always the same items together: which texts share a pass can move the
/// last bits of a result, and what was kept must be what would be computed.
const BATCHES_PER_CHUNK: usize = 4;

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items that are answered.
    pub done: usize,
    /// All items.
    pub total: usize,
}

/// One candidate's way through one task: which items are answered already, and the answering of the others.
#[derive(Debug)]
pub struct Work<'a> {
    task: &'a EvalTask,
    cache: Option<&'a ResponseCache>,
    measures_latency: bool,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    items: Range<usize>,
    key: Option<Fingerprint>,
    responses: Option<Vec<Response>>,
}

/// All that a response depends on.
#[derive(Serialize)]
struct Asked<'a> {
    candidate: &'a str,
    generation: Option<GenerationConfig>,
    /// By which draws are told apart; greedy answers have none.
    first: usize,
    batch_size: usize,
    losses: bool,
    latency: bool,
    items: Vec<AskedItem<'a>>,
}

#[derive(Serialize)]
struct AskedItem<'a> {
    prompt: &'a [u32],
    whole: Option<AskedIds<'a>>,
    choices: Vec<AskedIds<'a>>,
}

/// Ids, and a `1` for each that is scored.
#[derive(Serialize)]
struct AskedIds<'a>(&'a [u32], String);

impl<'a> AskedIds<'a> {
    fn of(scored: &'a ScoredIds) -> Self {
        Self(&scored.input_ids, scored.mask.iter().map(|scored| if *scored { '1' } else { '0' }).collect())
    }
}

impl<'a> Work<'a> {
    /// Look up what is known. `identity` stands for the candidate: weights, adapter, types, machine. With `measures_latency` the times of
    /// answers are kept, and only answers that come with times are taken.
    pub fn new(
        task: &'a EvalTask,
        identity: &str,
        cache: Option<&'a ResponseCache>,
        measures_latency: bool,
    ) -> Self {
        let size = task.section.batch_size * BATCHES_PER_CHUNK;
        let measures_latency = measures_latency && task.section.generates();
        let mut work = Self { task, cache, measures_latency, chunks: Vec::new() };
        for start in (0..task.items.len()).step_by(size) {
            let items = start..(start + size).min(task.items.len());
            let key = cache.and_then(|_| work.key(identity, items.clone()));
            let responses = cache.zip(key.as_ref()).and_then(|(cache, key)| cache.get(key, items.len()));
            work.chunks.push(Chunk { items, key, responses });
        }
        work
    }

    fn key(&self, identity: &str, items: Range<usize>) -> Option<Fingerprint> {
        let section = &self.task.section;
        let first = if section.temperature > 0.0 { items.start } else { 0 };
        let losses = section.needs_losses();
        let items = self.task.items[items].iter().map(|item| AskedItem {
            prompt: &item.prompt_ids,
            whole: losses.then(|| AskedIds::of(&item.whole)),
            choices: item.choices.iter().map(AskedIds::of).collect(),
        });
        ResponseCache::key(&Asked {
            candidate: identity,
            generation: section.generates().then(|| section.generation(&self.task.stop_token_ids)),
            first,
            batch_size: section.batch_size,
            losses,
            latency: self.measures_latency,
            items: items.collect(),
        })
    }

    /// Whether every item is answered: no model is needed.
    pub fn is_done(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.responses.is_some())
    }

    /// The answers, when every item has one.
    pub fn finish(self, candidate: &str, about: &str) -> Option<Answers> {
        let cached = self.task.items.len();
        let responses = self.chunks.into_iter().map(|chunk| chunk.responses).collect::<Option<Vec<_>>>()?;
        let (candidate, about) = (candidate.to_owned(), about.to_owned());
        Some(Answers { candidate, about, responses: responses.concat(), cached })
    }

    /// Let the model answer what is not answered yet: answers are written, given ones are scored, as far as the metrics ask for it.
    ///
    /// `progress` is called as answers come to their end; [`ControlFlow::Break`] breaks off: the result is then `None`, and the
    /// chunks that were finished are kept.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or the arithmetic fails.
    pub fn answer(
        mut self,
        (candidate, about): (&str, &str),
        model: &dyn CausalLm,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Answers>> {
        let total = self.task.items.len();
        let known: usize = self.chunks.iter().flat_map(|chunk| &chunk.responses).map(Vec::len).sum();
        let mut done = known;
        for index in 0..self.chunks.len() {
            if self.chunks[index].responses.is_some() {
                continue;
            }
            let range = self.chunks[index].items.clone();
            let items = &self.task.items[range.clone()];
            let mut on_answer = || {
                done += 1;
                progress(Progress { done, total })
            };
            let meter = Meter::start(self.measures_latency);
            let responses =
                respond(self.task, range, (model, tokenizer), self.measures_latency, &mut on_answer)
                    .map_err(|source| failed(candidate, self.task, items, source))?;
            let Some(mut responses) = responses else { return Ok(None) };
            meter.share_among(&mut responses);
            let chunk = &mut self.chunks[index];
            if let (Some(cache), Some(key)) = (self.cache, &chunk.key) {
                cache.put(key, &responses);
            }
            chunk.responses = Some(responses);
        }
        if let Some(cache) = self.cache {
            cache.sweep();
        }
        Ok(self.finish(candidate, about).map(|answers| Answers { cached: known, ..answers }))
    }
}

/// What a chunk takes of the machine.
struct Meter {
    begin: Option<Instant>,
    energy: Option<EnergyMeter>,
}

impl Meter {
    fn start(measures: bool) -> Self {
        let energy = measures.then(|| EnergyMeter::start(Path::new(POWERCAP))).flatten();
        Self { begin: measures.then(Instant::now), energy }
    }

    fn share_among(mut self, responses: &mut [Response]) {
        let n = responses.len() as f64;
        let busy_ms = self.begin.map(|begin| begin.elapsed().as_secs_f64() * 1000.0 / n);
        let joules = self.energy.as_mut().and_then(EnergyMeter::joules).map(|joules| joules / n);
        for response in responses {
            (response.busy_ms, response.joules) = (busy_ms, joules);
        }
    }
}

fn failed(candidate: &str, task: &EvalTask, items: &[EvalItem], source: taper_infer::Error) -> Error {
    let at = match &source {
        taper_infer::Error::EmptyPrompt { prompt }
        | taper_infer::Error::PromptTooLong { prompt, .. }
        | taper_infer::Error::NonFiniteLogits { prompt, .. } => Some(*prompt),
        taper_infer::Error::SequenceTooLong { sequence, .. } => Some(*sequence),
        _ => None,
    };
    let place = at.and_then(|i| items.get(i)).map(|item| Box::new(item.place.location()));
    let (candidate, eval) = (candidate.to_owned(), task.section.name.clone());
    Error::Infer { candidate, eval, place, source: Box::new(source) }
}

/// What the model does with all items, at once.
pub(crate) fn respond_to(
    task: &EvalTask,
    model: &dyn CausalLm,
    tokenizer: &Tokenizer,
) -> Result<Vec<Response>> {
    let go_on = &mut || ControlFlow::Continue(());
    let responses = respond(task, 0..task.items.len(), (model, tokenizer), false, go_on)
        .map_err(|source| failed("the model in training", task, &task.items, source))?;
    Ok(responses.unwrap_or_default())
}

fn respond(
    task: &EvalTask,
    range: Range<usize>,
    (model, tokenizer): (&dyn CausalLm, &Tokenizer),
    measures_latency: bool,
    on_answer: &mut dyn FnMut() -> ControlFlow<()>,
) -> taper_infer::Result<Option<Vec<Response>>> {
    let items = &task.items[range.clone()];
    let mut responses = vec![Response::default(); items.len()];
    if task.section.generates() {
        let Some((completions, times)) = answers(task, range, (model, tokenizer), on_answer)? else {
            return Ok(None);
        };
        for ((response, completion), ms) in responses.iter_mut().zip(completions).zip(times) {
            response.finish_reason = Some(reason(completion.finish_reason).to_owned());
            response.prompt_tokens = completion.prompt_tokens;
            response.completion_tokens = completion.completion_tokens();
            response.latency_ms = measures_latency.then_some(ms);
            response.output = Some(completion.text);
        }
    }
    if task.section.needs_losses() {
        let whole: Vec<&ScoredIds> = items.iter().map(|item| &item.whole).collect();
        for (response, losses) in responses.iter_mut().zip(score(model, &whole)?) {
            response.losses = Some(losses);
        }
    }
    if task.section.needs_choices() {
        let all: Vec<&ScoredIds> = items.iter().flat_map(|item| &item.choices).collect();
        let mut losses = score(model, &all)?.into_iter();
        for (response, item) in responses.iter_mut().zip(items) {
            response.choices =
                Some(losses.by_ref().take(item.choices.len()).map(|losses| -losses.nats).collect());
        }
    }
    if !task.section.generates() {
        // Nothing was written: the items are told when they are scored.
        for _ in items {
            if on_answer().is_break() {
                return Ok(None);
            }
        }
    }
    Ok(Some(responses))
}

/// The answers and the milliseconds each took. An answer begins when a place in the batch is free for it.
fn answers(
    task: &EvalTask,
    range: Range<usize>,
    (model, tokenizer): (&dyn CausalLm, &Tokenizer),
    on_answer: &mut dyn FnMut() -> ControlFlow<()>,
) -> taper_infer::Result<Option<(Vec<Completion>, Vec<f64>)>> {
    let options = EngineOptions { batch_size: task.section.batch_size, ..EngineOptions::default() };
    let engine = Engine::new(model, tokenizer, options);
    let config = task.section.generation(&task.stop_token_ids);
    let first = range.start as u64;
    let items = &task.items[range];
    let numbered = (first..).zip(items);
    let requests: Vec<Request> =
        numbered.map(|(number, item)| Request { number, prompt_ids: item.prompt_ids.clone() }).collect();
    let begin = Instant::now();
    let mut ends = Vec::with_capacity(items.len());
    let mut end_of = vec![begin; items.len()];
    let mut broken_off = false;
    let completions = engine.generate_with(&requests, &config, &mut |delta| {
        if delta.finish_reason.is_some() && !broken_off {
            end_of[delta.request] = Instant::now();
            ends.push(end_of[delta.request]);
            broken_off |= on_answer().is_break();
        }
        if broken_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let begin_of =
        |index: usize| index.checked_sub(task.section.batch_size).and_then(|i| ends.get(i)).copied();
    let times = end_of.iter().enumerate().map(|(index, end)| {
        let begin = begin_of(index).unwrap_or(begin);
        end.saturating_duration_since(begin).as_secs_f64() * 1000.0
    });
    Ok((!broken_off).then(|| (completions, times.collect())))
}

fn score(model: &dyn CausalLm, texts: &[&ScoredIds]) -> taper_infer::Result<Vec<LossSum>> {
    let scored: Vec<Scored<'_>> =
        texts.iter().map(|text| Scored { input_ids: &text.input_ids, mask: &text.mask }).collect();
    let losses = token_losses(model, &scored, TOKENS_PER_PASS)?;
    Ok(losses.iter().zip(texts).map(|(losses, text)| LossSum::of(losses, text.bytes)).collect())
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
