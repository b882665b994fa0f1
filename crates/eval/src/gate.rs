//! Whether a run passes.

use crate::{Comparison, Evaluation, GateSection, Limit, Metric, Verdict};
use serde::{Deserialize, Serialize};
use std::fmt;
use taper_diagnostics::ExitCode;

/// How a gate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateStatus {
    /// The limit is kept.
    Passed,
    /// It is not.
    Failed,
    /// The asked gain is there, but could well be chance.
    Inconclusive,
    /// The metric was not measured on a single item.
    NothingEvaluated,
}

impl fmt::Display for GateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
            Self::NothingEvaluated => "nothing evaluated",
        })
    }
}

/// One limit held against one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateOutcome {
    /// The evaluation.
    pub eval: String,
    /// The key in `[gate]`.
    pub name: String,
    /// The limit.
    pub limit: f64,
    /// Whether the limit is a least value (else a highest).
    pub is_minimum: bool,
    /// What was measured.
    pub value: Option<f64>,
    /// How it ended.
    pub status: GateStatus,
}

/// Hold every limit against every evaluation that it is for.
///
/// A limit that no evaluation measures is an outcome of its own, [`GateStatus::NothingEvaluated`]: a gate never passes by not
/// being looked at.
pub fn judge(gate: &GateSection, evaluations: &[Evaluation]) -> Vec<GateOutcome> {
    let mut outcomes = Vec::new();
    for limit in gate.limits() {
        let metric = limit.kind.metric();
        let before = outcomes.len();
        let asked = evaluations.iter().filter(|e| gate.is_for(&e.name) && e.metrics.contains(&metric));
        outcomes.extend(asked.map(|evaluation| hold(limit, metric, evaluation)));
        if outcomes.len() == before {
            let eval = gate.eval.clone().unwrap_or_default();
            outcomes.push(outcome(limit, eval, None, GateStatus::NothingEvaluated));
        }
    }
    outcomes
}

/// The exit code of a run: failed before not evaluated before inconclusive. Without gates a run passes, unless evaluations were
/// made of which none measured anything.
pub fn exit_code(outcomes: &[GateOutcome], evaluations: &[Evaluation]) -> ExitCode {
    let any = |status| outcomes.iter().any(|outcome| outcome.status == status);
    let measured = evaluations.iter().any(|e| !e.candidate.measured.is_empty());
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

fn hold(limit: Limit, metric: Metric, evaluation: &Evaluation) -> GateOutcome {
    let comparison = evaluation.comparisons.iter().find(|c| c.metric == metric);
    let value = if limit.kind.is_comparison() {
        comparison.map(|c| c.effect)
    } else {
        evaluation.candidate.measured(metric).map(|m| m.value)
    };
    let status = match value {
        None => GateStatus::NothingEvaluated,
        Some(value) if !keeps(limit, value) => GateStatus::Failed,
        Some(_) if limit.kind.is_comparison() && comparison.is_some_and(|c| may_be_chance(limit, c)) => {
            GateStatus::Inconclusive
        }
        Some(_) => GateStatus::Passed,
    };
    outcome(limit, evaluation.name.clone(), value, status)
}

/// A NaN keeps no limit. `0.3 - 0.25` is a little less than `0.05` in binary, and must keep it.
fn keeps(limit: Limit, value: f64) -> bool {
    let slack = 1e-9 * limit.value.abs().max(1.0);
    if limit.kind.is_minimum() { value >= limit.value - slack } else { value <= limit.value + slack }
}

/// A limit that asks for a gain needs a verdict; one that allows a loss does not.
fn may_be_chance(limit: Limit, comparison: &Comparison) -> bool {
    let asks_for_gain = if limit.kind.is_minimum() { limit.value > 0.0 } else { limit.value < 1.0 };
    asks_for_gain && comparison.verdict == Verdict::Inconclusive
}

fn outcome(limit: Limit, eval: String, value: Option<f64>, status: GateStatus) -> GateOutcome {
    let (name, is_minimum) = (limit.kind.key().to_owned(), limit.kind.is_minimum());
    GateOutcome { eval, name, limit: limit.value, is_minimum, value, status }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::record;
    use crate::{EvalResult, EvalSection};

    /// 40 items; the base has 10 right, the adapter `right`; its loss is `loss` against 2.
    fn evaluation(right: usize, loss: f64) -> Evaluation {
        let of = |name: &str, right: usize, loss: f64| {
            let records = (0..40).map(|i| record(i, i < right, loss)).collect();
            EvalResult::new(name, records, &EvalSection::default())
        };
        Evaluation::new(&EvalSection::default(), &[], Some(of("base", 10, 2.0)), of("adapter", right, loss))
            .unwrap()
    }

    fn judged(gate: &str, evaluations: &[Evaluation]) -> (Vec<GateStatus>, ExitCode) {
        let outcomes = judge(&toml::from_str(gate).unwrap(), evaluations);
        let code = exit_code(&outcomes, evaluations);
        (outcomes.into_iter().map(|o| o.status).collect(), code)
    }

    #[test]
    fn limits_pass_and_fail_on_the_measured_value() {
        let evaluations = [evaluation(30, 1.0)];
        let all = "min_exact_match = 0.75\nmin_exact_match_gain = 0.5\nmax_perplexity = 1.7\nmax_perplexity_ratio = 0.7";
        assert_eq!(judged(all, &evaluations), (vec![GateStatus::Passed; 4], ExitCode::Passed));
        for failing in [
            "min_exact_match = 0.76",
            "min_exact_match_gain = 0.51",
            "max_perplexity = 1.6",
            "max_perplexity_ratio = 0.6",
        ] {
            assert_eq!(
                judged(failing, &evaluations),
                (vec![GateStatus::Failed], ExitCode::GateFailed),
                "{failing}"
            );
        }
        assert_eq!(judged("", &evaluations), (vec![], ExitCode::Passed));
    }

    #[test]
    fn a_gain_that_may_be_chance_is_inconclusive_and_an_allowed_loss_is_not() {
        // Two items more right: 2-0, p = 0.5.
        let evaluations = [evaluation(12, 2.0)];
        let (status, code) = judged("min_exact_match_gain = 0.05", &evaluations);
        assert_eq!((status, code), (vec![GateStatus::Inconclusive], ExitCode::Inconclusive));
        assert_eq!(judged("min_exact_match_gain = -0.01", &evaluations).1, ExitCode::Passed);
        assert_eq!(judged("max_perplexity_ratio = 1.0", &evaluations).1, ExitCode::Passed);
    }

    #[test]
    fn a_failed_gate_outweighs_an_inconclusive_one() {
        let evaluations = [evaluation(12, 2.0)];
        let gates = "min_exact_match_gain = 0.05\nmin_exact_match = 0.9";
        assert_eq!(judged(gates, &evaluations).1, ExitCode::GateFailed);
    }

    #[test]
    fn nothing_evaluated_is_never_green() {
        assert_eq!(judged("min_exact_match = 0.0", &[]).1, ExitCode::NothingEvaluated);
        assert_eq!(
            judged("eval = 'other'\nmin_exact_match = 0.0", &[evaluation(40, 1.0)]).1,
            ExitCode::NothingEvaluated
        );
        let empty = EvalResult::new("adapter", vec![], &EvalSection::default());
        let nothing = [Evaluation::new(&EvalSection::default(), &[], None, empty).unwrap()];
        assert_eq!(judged("", &nothing).1, ExitCode::NothingEvaluated);
        let outcomes = judge(&toml::from_str("min_exact_match = 0.0").unwrap(), &nothing);
        assert_eq!(outcomes[0].status, GateStatus::NothingEvaluated);
        assert_eq!(outcomes[0].value, None);
    }

    #[test]
    fn a_gain_without_a_base_is_not_evaluated() {
        let alone = EvalResult::new(
            "model",
            (0..40).map(|i| record(i, true, 1.0)).collect(),
            &EvalSection::default(),
        );
        let alone = [Evaluation::new(&EvalSection::default(), &[], None, alone).unwrap()];
        assert_eq!(judged("min_exact_match = 0.9", &alone).1, ExitCode::Passed);
        assert_eq!(judged("min_exact_match_gain = 0.1", &alone).1, ExitCode::NothingEvaluated);
    }
}
