//! What an evaluation found of its candidates, as far as their cost depends on it.

use super::{CandidateFacts, Serving, Tokens};
use crate::{EvalResult, Evaluation, Metric, Pooling, Verdict};

/// The facts of every candidate of an evaluation. `serving` says where each runs.
///
/// A right answer is one by the first metric that is a share; where there is none, no share is known. A candidate is not worse when it is the
/// best by that metric, or has not been shown to be worse than it.
pub fn facts_of(evaluation: &Evaluation, serving: &dyn Fn(&EvalResult) -> Serving) -> Vec<CandidateFacts> {
    let metric = evaluation.metrics().find(|metric| metric.pooling() == Pooling::Share);
    let deciding = metric.or(evaluation.metrics().next());
    let best = deciding.and_then(|metric| best(evaluation, metric));
    let of = |result: &EvalResult| {
        let measured = metric.and_then(|metric| result.measured(metric));
        let usage = &result.usage;
        CandidateFacts {
            name: result.candidate.clone(),
            serving: serving(result),
            accuracy: measured.map(|measured| measured.value),
            interval: measured.and_then(|measured| measured.interval),
            items: (evaluation.n - result.errors) as u64,
            tokens: Tokens {
                input: usage.prompt_tokens,
                cached_input: usage.cached_tokens,
                cache_write: 0,
                output: usage.completion_tokens,
            },
            is_not_worse: deciding
                .zip(best)
                .is_some_and(|(metric, best)| is_not_worse(evaluation, metric, best, result)),
        }
    };
    evaluation.candidates.iter().map(of).collect()
}

fn best(evaluation: &Evaluation, metric: Metric) -> Option<&EvalResult> {
    let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
    let value = |result: &EvalResult| result.measured(metric).map(|measured| sign * measured.value);
    let measured = evaluation.candidates.iter().filter_map(|result| Some((result, value(result)?)));
    measured.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(result, _)| result)
}

fn is_not_worse(evaluation: &Evaluation, metric: Metric, best: &EvalResult, result: &EvalResult) -> bool {
    let (a, b) = (best.candidate.as_str(), result.candidate.as_str());
    if a == b {
        return true;
    }
    if result.measured(metric).is_none() {
        return false;
    }
    let forth = evaluation.comparison(a, b, metric).map(|c| c.verdict != Verdict::Worse);
    let back = || evaluation.comparison(b, a, metric).map(|c| c.verdict != Verdict::Better);
    // Two candidates of which neither is the base or the trained one are not compared: nothing was shown.
    forth.or_else(back).unwrap_or(false)
}
