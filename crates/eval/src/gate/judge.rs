//! Requirements held against evaluations.

use super::requirement::{Ask, Quantity, Requirement};
use crate::statistics::{NonInferiority, non_inferiority};
use crate::{Comparison, EffectKind, EvalResult, Evaluation, Metric, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use taper_diagnostics::ExitCode;

/// How a gate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateStatus {
    /// What is asked is kept.
    Passed,
    /// It is not.
    Failed,
    /// There is not enough data to say.
    Inconclusive,
    /// There was nothing to hold it against.
    NothingEvaluated,
}

impl fmt::Display for GateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Inconclusive => "not decided",
            Self::NothingEvaluated => "nothing evaluated",
        })
    }
}

/// One requirement held against one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GateOutcome {
    /// The requirement.
    pub text: String,
    /// The evaluation; `None` where there was none.
    pub eval: Option<String>,
    /// How it ended.
    pub status: GateStatus,
    /// What was measured.
    pub value: Option<f64>,
    /// What was asked.
    pub limit: Option<f64>,
    /// In words.
    pub detail: String,
}

/// Hold every requirement against every evaluation that it is for.
///
/// One that no evaluation measures is an outcome of its own, [`GateStatus::NothingEvaluated`]: a gate never passes by not being
/// looked at. `kept` names the candidates that [`Ask::GainKept`] is for.
pub fn judge(requirements: &[Requirement], evaluations: &[Evaluation], kept: &[String]) -> Vec<GateOutcome> {
    let mut outcomes = Vec::new();
    for requirement in requirements {
        let asked = evaluations
            .iter()
            .filter(|e| requirement.subject.eval.as_ref().is_none_or(|name| *name == e.name));
        let asked =
            asked.filter(|e| requirement.metric().is_none_or(|metric| e.metrics().any(|m| m == metric)));
        let before = outcomes.len();
        for evaluation in asked {
            if matches!(requirement.ask, Ask::GainKept { .. }) {
                outcomes.extend(kept.iter().map(|candidate| hold(requirement, evaluation, candidate)));
            } else {
                let candidate = requirement.subject.candidate.as_deref().unwrap_or(&evaluation.trained);
                outcomes.push(hold(requirement, evaluation, candidate));
            }
        }
        if outcomes.len() == before {
            outcomes.push(GateOutcome {
                text: requirement.text.clone(),
                eval: requirement.subject.eval.clone(),
                status: GateStatus::NothingEvaluated,
                value: None,
                limit: None,
                detail: "no evaluation measures it".into(),
            });
        }
    }
    outcomes
}

/// The exit code of a run: failed before not evaluated before inconclusive. Without gates a run passes, unless evaluations were
/// made of which none measured anything.
pub fn exit_code(outcomes: &[GateOutcome], evaluations: &[Evaluation]) -> ExitCode {
    let any = |status| outcomes.iter().any(|outcome| outcome.status == status);
    let measured =
        evaluations.iter().any(|e| e.trained().is_some_and(|trained| !trained.measured.is_empty()));
    if any(GateStatus::Failed) {
        ExitCode::GateFailed
    } else if any(GateStatus::NothingEvaluated) || (!evaluations.is_empty() && !measured) {
        ExitCode::NothingEvaluated
    } else if any(GateStatus::Inconclusive) {
        ExitCode::Inconclusive
    } else {
        ExitCode::Passed
    }
}

/// What was found: the value, the limit, how it ended, and what to say besides.
struct Finding(Option<f64>, Option<f64>, GateStatus, String);

fn hold(requirement: &Requirement, evaluation: &Evaluation, candidate: &str) -> GateOutcome {
    let first = evaluation.metrics.first().map(|facts| facts.metric);
    let comparison =
        |other: &str, metric: Option<Metric>| evaluation.compared(other, candidate, metric.or(first)?);
    let base = evaluation.reference.as_deref().unwrap_or(crate::BASE);
    let Finding(value, limit, status, detail) = match &requirement.ask {
        Ask::Limit { quantity, at_least, strict, value } => {
            let measured = evaluation.candidate(candidate).and_then(|result| quantity_of(*quantity, result));
            limited(measured, *at_least, *strict, *value)
        }
        Ask::Effect { metric, at_least, value } => {
            effect(comparison(base, Some(*metric)).as_ref(), *at_least, *value)
        }
        Ask::BetterThan { other, metric, by } => better(comparison(other, *metric).as_ref(), *by),
        Ask::NotWorseThan { other, metric, by } => not_worse(comparison(other, *metric).as_ref(), *by),
        Ask::GainKept { share } => gain_kept(evaluation, candidate, first, *share),
    };
    let detail = match status {
        GateStatus::NothingEvaluated if evaluation.candidate(candidate).is_none() => {
            format!("`{candidate}` was not evaluated")
        }
        _ => detail,
    };
    let eval = Some(evaluation.name.clone());
    let text = match &requirement.ask {
        Ask::GainKept { .. } => format!("{} by {candidate}", requirement.text),
        _ => requirement.text.clone(),
    };
    GateOutcome { text, eval, status, value, limit, detail }
}

fn nothing(limit: f64) -> Finding {
    Finding(None, Some(limit), GateStatus::NothingEvaluated, "it was not measured".into())
}

fn quantity_of(quantity: Quantity, result: &EvalResult) -> Option<f64> {
    match quantity {
        Quantity::Metric(metric) => result.measured(metric).map(|measured| measured.value),
        Quantity::P50LatencyMs => result.usage.latency_p50_ms,
        Quantity::P95LatencyMs => result.usage.latency_p95_ms,
        Quantity::ErrorRate => {
            (!result.records.is_empty()).then(|| result.errors as f64 / result.records.len() as f64)
        }
    }
}

fn limited(value: Option<f64>, at_least: bool, strict: bool, limit: f64) -> Finding {
    let Some(value) = value else { return nothing(limit) };
    let holds = keeps(value, at_least, limit) && !(strict && value == limit);
    let status = if holds { GateStatus::Passed } else { GateStatus::Failed };
    Finding(Some(value), Some(limit), status, format!("{value:.4}, limit {limit}"))
}

/// A NaN keeps no limit. `0.3 - 0.25` is a little less than `0.05` in binary, and must keep it.
fn keeps(value: f64, at_least: bool, limit: f64) -> bool {
    let slack = 1e-9 * limit.abs().max(1.0);
    if at_least { value >= limit - slack } else { value <= limit + slack }
}

/// A limit that asks for a gain needs a verdict; one that allows a loss does not.
fn effect(comparison: Option<&Comparison>, at_least: bool, limit: f64) -> Finding {
    let Some(comparison) = comparison else { return nothing(limit) };
    let asks_for_gain = if at_least { limit > 0.0 } else { limit < 1.0 };
    let status = if !keeps(comparison.effect, at_least, limit) {
        GateStatus::Failed
    } else if asks_for_gain && comparison.verdict == Verdict::Inconclusive {
        GateStatus::Inconclusive
    } else {
        GateStatus::Passed
    };
    Finding(Some(comparison.effect), Some(limit), status, told(comparison, &format!("limit {limit}")))
}

fn better(comparison: Option<&Comparison>, by: f64) -> Finding {
    let Some(comparison) = comparison else { return nothing(by) };
    let (low, high) = gains(comparison);
    let status = match comparison.verdict {
        Verdict::Worse => GateStatus::Failed,
        Verdict::Better if by == 0.0 || low >= by => GateStatus::Passed,
        // Even the best end of the interval is below what is asked.
        _ if high < by => GateStatus::Failed,
        Verdict::Better | Verdict::Inconclusive => GateStatus::Inconclusive,
    };
    let asked = if by > 0.0 { format!("asked {by}") } else { comparison.verdict.to_string() };
    Finding(Some(comparison.effect), Some(by), status, told(comparison, &asked))
}

fn not_worse(comparison: Option<&Comparison>, by: f64) -> Finding {
    let Some(comparison) = comparison else { return nothing(by) };
    let (low, high) = gains(comparison);
    let status = match non_inferiority(crate::Interval { low, high }, by, true) {
        NonInferiority::NotWorse => GateStatus::Passed,
        NonInferiority::Worse => GateStatus::Failed,
        NonInferiority::Inconclusive => GateStatus::Inconclusive,
    };
    Finding(Some(comparison.effect), Some(by), status, told(comparison, &format!("accepted loss {by}")))
}

/// The interval of the gain with "more is better": of a ratio r how much less than 1 it is, so that 0.02 is two in a hundred.
fn gains(comparison: &Comparison) -> (f64, f64) {
    let Some(interval) = comparison.interval else { return (f64::NEG_INFINITY, f64::INFINITY) };
    let none = comparison.effect_kind.none();
    let (low, high) = (interval.low - none, interval.high - none);
    if comparison.metric.higher_is_better() { (low, high) } else { (-high, -low) }
}

fn told(comparison: &Comparison, asked: &str) -> String {
    let sign = if comparison.effect_kind == EffectKind::Ratio { "ratio " } else { "" };
    let interval = comparison
        .interval
        .map_or("no interval".to_owned(), |interval| format!("{:.4} to {:.4}", interval.low, interval.high));
    let needed =
        comparison.items_to_take().map(|n| format!("; some {n} items would show it")).unwrap_or_default();
    format!("{sign}{:.4} ({interval}, n = {}), {asked}{needed}", comparison.effect, comparison.n)
}

fn gain_kept(evaluation: &Evaluation, candidate: &str, metric: Option<Metric>, share: f64) -> Finding {
    let value_of = |name: &str| Some(evaluation.candidate(name)?.measured(metric?)?.value);
    let base = evaluation.reference.as_deref().and_then(value_of);
    let (Some(base), Some(trained), Some(value)) = (base, value_of(&evaluation.trained), value_of(candidate))
    else {
        return nothing(share);
    };
    let sign = if metric.is_some_and(Metric::higher_is_better) { 1.0 } else { -1.0 };
    let gain = sign * (trained - base);
    if gain <= 0.0 {
        let detail = "what was trained has no gain over the base that could be kept".into();
        return Finding(None, Some(share), GateStatus::NothingEvaluated, detail);
    }
    let kept = sign * (value - base) / gain;
    let status = if keeps(kept, true, share) { GateStatus::Passed } else { GateStatus::Failed };
    Finding(Some(kept), Some(share), status, format!("keeps {kept:.4} of a gain of {gain:.4}, limit {share}"))
}
