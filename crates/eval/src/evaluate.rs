//! Run a candidate over a task.

use crate::metrics::exact::{exact_match, without_thoughts};
use crate::metrics::json_fields::json_fields;
use crate::{Error, EvalItem, EvalResult, EvalTask, Metric, Result, SampleRecord};
use std::ops::ControlFlow;
use taper_infer::{Completion, Engine, EngineOptions, GenerationConfig, Request, Scored, token_losses};
use taper_models::CausalLm;
use taper_text::Tokenizer;

/// Tokens of a scoring pass.
const TOKENS_PER_PASS: usize = 2048;

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items whose answer is written.
    pub done: usize,
    /// All items.
    pub total: usize,
}

/// Let a candidate answer every item (greedy) and score the expected answers, as far as the metrics ask for it.
///
/// `progress` is called as answers come to their end; [`ControlFlow::Break`] breaks off: the result is then `None`.
///
/// # Errors
/// When a prompt does not fit the model, or the arithmetic fails.
pub fn evaluate(
    candidate: &str,
    model: &dyn CausalLm,
    tokenizer: &Tokenizer,
    task: &EvalTask,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<EvalResult>> {
    let wrap = |source: taper_infer::Error| {
        let at = match &source {
            taper_infer::Error::EmptyPrompt { prompt }
            | taper_infer::Error::PromptTooLong { prompt, .. }
            | taper_infer::Error::NonFiniteLogits { prompt, .. } => Some(*prompt),
            taper_infer::Error::SequenceTooLong { sequence, .. } => Some(*sequence),
            _ => None,
        };
        let place = at.and_then(|i| task.items.get(i)).map(|item| Box::new(item.place.location()));
        let (candidate, eval) = (candidate.to_owned(), task.section.name.clone());
        Error::Infer { candidate, eval, place, source: Box::new(source) }
    };
    let completions = match task.section.generates() {
        true => match answers(model, tokenizer, task, progress).map_err(wrap)? {
            Some(completions) => completions.into_iter().map(Some).collect(),
            None => return Ok(None),
        },
        false => vec![None; task.items.len()],
    };
    let losses = match task.section.metrics.contains(&Metric::Perplexity) {
        true => losses(model, task).map_err(wrap)?.into_iter().map(Some).collect(),
        false => vec![None; task.items.len()],
    };
    let records = task
        .items
        .iter()
        .zip(completions)
        .zip(losses)
        .map(|((item, completion), losses)| record(item, completion, losses.as_deref(), task))
        .collect();
    Ok(Some(EvalResult::new(candidate, records, &task.section)))
}

fn answers(
    model: &dyn CausalLm,
    tokenizer: &Tokenizer,
    task: &EvalTask,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> taper_infer::Result<Option<Vec<Completion>>> {
    let options = EngineOptions { batch_size: task.section.batch_size, ..EngineOptions::default() };
    let engine = Engine::new(model, tokenizer, options);
    let config = GenerationConfig {
        stop_token_ids: task.stop_token_ids.clone(),
        ..GenerationConfig::greedy(task.section.max_new_tokens)
    };
    let requests = Request::numbered(task.items.iter().map(|item| item.prompt_ids.clone()));
    let (mut done, total, mut broken_off) = (0, requests.len(), false);
    let completions = engine.generate_with(&requests, &config, &mut |delta| {
        if delta.finish_reason.is_some() && !broken_off {
            done += 1;
            broken_off |= progress(Progress { done, total }).is_break();
        }
        if broken_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((!broken_off).then_some(completions))
}

fn losses(model: &dyn CausalLm, task: &EvalTask) -> taper_infer::Result<Vec<Vec<f32>>> {
    let scored: Vec<Scored<'_>> =
        task.items.iter().map(|item| Scored { input_ids: &item.input_ids, mask: &item.loss_mask }).collect();
    token_losses(model, &scored, TOKENS_PER_PASS)
}

fn record(
    item: &EvalItem,
    completion: Option<Completion>,
    losses: Option<&[f32]>,
    task: &EvalTask,
) -> SampleRecord {
    let normalize = task.section.normalize;
    let asks = |metric| task.section.metrics.contains(&metric);
    let pair = item.expected.as_deref().zip(completion.as_ref());
    let pair = pair.map(|(expected, c)| (expected, without_thoughts(&c.text, expected)));
    SampleRecord {
        id: item.id.clone(),
        exact_match: pair
            .filter(|_| asks(Metric::ExactMatch))
            .map(|(expected, output)| exact_match(expected, output, normalize)),
        json_fields: pair
            .filter(|_| asks(Metric::JsonFields))
            .and_then(|(expected, output)| json_fields(expected, output, normalize)),
        loss_sum: losses.map(|losses| losses.iter().map(|&l| f64::from(l)).sum()),
        loss_tokens: losses.map_or(0, <[f32]>::len),
        finish_reason: completion.as_ref().map(|c| c.finish_reason),
        completion_tokens: completion.as_ref().map_or(0, Completion::completion_tokens),
        output: completion.map(|c| c.text),
    }
}
