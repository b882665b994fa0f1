//! Let a model behind an address answer the items of a task, and a judge compare answers.

use crate::remote::{self, ChatRequest, Endpoint, Judge, JudgeItem, Judged, Outcome, Reply};
use crate::response_cache::ResponseCache;
use crate::task::{EvalItem, EvalTask};
use crate::{Answers, Error, ItemFacts, Progress, Response, Result};
use serde_json::Value;
use std::ops::ControlFlow;
use taper_hub::Fingerprint;

/// Let an endpoint answer every item. Each answer is kept as it comes: what was paid for is not asked twice. An item that cannot be
/// answered has the error in its place; the evaluation goes on.
///
/// `identity` stands for the weights behind our own server; it is empty for an endpoint of others, of which the address and the model's name
/// are all that is known. `None` when interrupted.
///
/// # Errors
/// When no further request can be answered: the key is refused, the model does not exist.
pub fn ask_endpoint(
    task: &EvalTask,
    (endpoint, identity): (&Endpoint, &str),
    (candidate, about): (&str, &str),
    cache: Option<&ResponseCache>,
    is_interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Answers>> {
    let requests: Vec<ChatRequest> = task.items.iter().map(|item| request(task, item)).collect();
    let key = |request: &ChatRequest| match identity {
        "" => ResponseCache::key(&endpoint.cache_key(request)),
        // Our own server is at another port each time.
        identity => ResponseCache::key(&(identity, request)),
    };
    let keys: Vec<Option<Fingerprint>> = requests.iter().map(key).collect();
    let known = |key: &Option<Fingerprint>| Some(cache?.get(key.as_ref()?, 1)?.remove(0));
    let mut responses: Vec<Option<Response>> = keys.iter().map(known).collect();
    let missing: Vec<usize> = (0..responses.len()).filter(|index| responses[*index].is_none()).collect();
    let cached = responses.len() - missing.len();
    let (total, mut done) = (responses.len(), cached);
    let asked: Vec<ChatRequest> = missing.iter().map(|index| requests[*index].clone()).collect();
    let mut fatal = None;
    endpoint.run_each(asked, Endpoint::chat, is_interrupted, |place, reply| {
        let index = missing[place];
        match reply {
            Err(error) if error.is_for_all_items() => {
                fatal = Some(error);
                return ControlFlow::Break(());
            }
            reply => {
                let is_answer = reply.is_ok();
                let response = response(reply);
                if let (Some(cache), Some(key), true) = (cache, &keys[index], is_answer) {
                    cache.put(key, std::slice::from_ref(&response));
                }
                responses[index] = Some(response);
            }
        }
        done += 1;
        progress(Progress { done, total });
        ControlFlow::Continue(())
    });
    if let Some(source) = fatal {
        let (candidate, eval) = (candidate.to_owned(), task.section.name.clone());
        return Err(Error::Remote { candidate, eval, source: Box::new(source) });
    }
    if let Some(cache) = cache {
        cache.sweep();
    }
    let responses: Option<Vec<Response>> = responses.into_iter().collect();
    let (candidate, about) = (candidate.to_owned(), about.to_owned());
    Ok(responses.map(|responses| Answers { candidate, about, responses, cached }))
}

fn request(task: &EvalTask, item: &EvalItem) -> ChatRequest {
    let section = &task.section;
    ChatRequest {
        temperature: Some(section.temperature),
        top_p: (section.top_p < 1.0).then_some(section.top_p),
        seed: (section.temperature > 0.0).then_some(section.seed),
        stop: section.stop.clone(),
        tools: (!item.tools.is_empty()).then(|| Value::Array(item.tools.clone())),
        ..ChatRequest::greedy(item.messages.clone(), section.max_new_tokens)
    }
}

fn response(reply: remote::Result<Reply>) -> Response {
    match reply {
        Ok(reply) => Response {
            output: Some(reply.text),
            finish_reason: reply.finish_reason,
            prompt_tokens: tokens(reply.prompt_tokens),
            cached_tokens: tokens(reply.cached_tokens),
            completion_tokens: tokens(reply.completion_tokens),
            latency_ms: Some(reply.latency.as_secs_f64() * 1000.0),
            ..Response::default()
        },
        Err(error) => Response { error: Some(error.to_string()), ..Response::default() },
    }
}

/// Let a judge compare a candidate's answers with the base's; what it says goes into `candidate`. Verdicts are kept as they come. `false`
/// when interrupted.
///
/// # Errors
/// When the judge cannot be asked at all.
pub fn judge_answers(
    judge: &Judge,
    items: &[ItemFacts],
    base: &Answers,
    candidate: &mut Answers,
    cache: Option<&ResponseCache>,
    is_interrupted: &dyn Fn() -> bool,
) -> Result<bool> {
    let signature = judge.signature();
    let mut asked = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let outputs = (&candidate.responses[index].output, &base.responses[index].output);
        let (Some(first), Some(second)) = outputs else { continue };
        let pair = JudgeItem {
            question: item.input.clone(),
            reference: item.expected.clone(),
            first: first.clone(),
            second: second.clone(),
        };
        let key =
            ResponseCache::key(&(&signature, &pair.question, &pair.reference, &pair.first, &pair.second));
        match cache.zip(key.as_ref()).and_then(|(cache, key)| cache.get(key, 1)) {
            Some(kept) => candidate.responses[index].judged = kept[0].judged,
            None => asked.push((index, key, pair)),
        }
    }
    let pairs: Vec<JudgeItem> = asked.iter().map(|(.., pair)| pair.clone()).collect();
    let (mut fatal, mut judged) = (None, 0);
    judge.judge_all(&pairs, is_interrupted, |place, verdict| {
        let (index, key, _) = &asked[place];
        judged += 1;
        match verdict {
            Err(error) if error.is_for_all_items() => {
                fatal = Some(error);
                return ControlFlow::Break(());
            }
            // Not judged: the item has no value by this metric, and the next run asks again.
            Err(_) => {}
            Ok(verdict) => {
                let value = value_of(verdict);
                candidate.responses[*index].judged = value;
                if let (Some(cache), Some(key)) = (cache, key) {
                    cache.put(key, &[Response { judged: value, ..Response::default() }]);
                }
            }
        }
        ControlFlow::Continue(())
    });
    match fatal {
        Some(source) => Err(Error::Remote {
            candidate: "judge".into(),
            eval: candidate.candidate.clone(),
            source: Box::new(source),
        }),
        None => Ok(judged == pairs.len()),
    }
}

fn tokens(count: Option<u64>) -> usize {
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn value_of(judged: Judged) -> Option<f64> {
    judged.outcome().map(|outcome| match outcome {
        Outcome::Win => 1.0,
        Outcome::Tie => 0.5,
        Outcome::Loss => 0.0,
    })
}
