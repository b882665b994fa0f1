//! Two candidates on the same items.

use crate::result::value_of;
use crate::statistics::{ALPHA, Interval, bootstrap, mcnemar_exact};
use crate::{Error, EvalResult, Metric, Result, SampleRecord};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Items below which a resampled interval says nothing.
pub const LEAST_ITEMS: usize = 10;

/// What can be said of the second candidate against the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is better, and chance is an unlikely reason.
    Better,
    /// It is worse, and chance is an unlikely reason.
    Worse,
    /// There is not enough data to say.
    Inconclusive,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Inconclusive => "inconclusive",
        })
    }
}

/// How the effect of a comparison is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// Second minus first; 0 is no effect.
    Difference,
    /// Second over first; 1 is no effect.
    Ratio,
}

/// One metric of two candidates on the same items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Which one.
    pub metric: Metric,
    /// Value of the first candidate.
    pub base: f64,
    /// Value of the second.
    pub candidate: f64,
    /// Items.
    pub n: usize,
    /// How `effect` is told.
    pub effect_kind: EffectKind,
    /// Second minus first, or second over first.
    pub effect: f64,
    /// 95 % of the effect: the percentile bootstrap over items, both candidates drawn together.
    pub interval: Option<Interval>,
    /// Items on which the second did better.
    pub won: usize,
    /// Items on which the first did better.
    pub lost: usize,
    /// The exact two-sided sign test over `won` and `lost`; for exact match this is McNemar's test.
    pub p_value: f64,
    /// What can be said: for exact match by the test, else by whether the interval holds no effect; below
    /// [`LEAST_ITEMS`] items nothing.
    pub verdict: Verdict,
}

/// Compare two results of the same task, metric by metric.
///
/// # Errors
/// When they are not of the same items.
pub fn compare(base: &EvalResult, candidate: &EvalResult, seed: u64) -> Result<Vec<Comparison>> {
    check_paired(base, candidate)?;
    Ok(base
        .measured
        .iter()
        .filter_map(|measured| compare_metric(measured.metric, base, candidate, seed))
        .collect())
}

fn check_paired(base: &EvalResult, candidate: &EvalResult) -> Result<()> {
    let fail = |difference: String| Error::NotPaired {
        first: base.candidate.clone(),
        second: candidate.candidate.clone(),
        difference,
    };
    let (a, b) = (&base.records, &candidate.records);
    if a.len() != b.len() {
        return Err(fail(format!("{} items and {}", a.len(), b.len())));
    }
    for (a, b) in a.iter().zip(b) {
        if a.id != b.id {
            return Err(fail(format!("`{}` stands where `{}` does", a.id, b.id)));
        }
        if a.loss_tokens != b.loss_tokens {
            let (x, y) = (a.loss_tokens, b.loss_tokens);
            return Err(fail(format!("`{}` has {x} supervised tokens and {y}", a.id)));
        }
    }
    let signatures = |result: &EvalResult| -> Vec<String> {
        result.measured.iter().map(|m| m.signature.clone()).collect()
    };
    if signatures(base) != signatures(candidate) {
        return Err(fail("their metrics were computed in different ways".into()));
    }
    Ok(())
}

fn compare_metric(
    metric: Metric,
    base: &EvalResult,
    candidate: &EvalResult,
    seed: u64,
) -> Option<Comparison> {
    let (first, second) = (base.measured(metric)?, candidate.measured(metric)?);
    let (a, b) = (&base.records, &candidate.records);
    let effect_of = |x: f64, y: f64| if metric == Metric::Perplexity { y / x } else { y - x };
    let interval = bootstrap(a.len(), seed, |drawn| {
        let value = |records: &[SampleRecord]| {
            value_of(metric, drawn.iter().map(|&i| &records[i])).map_or(f64::NAN, |(value, _)| value)
        };
        effect_of(value(a), value(b))
    });
    let sides: Vec<f64> =
        a.iter().zip(b).filter_map(|(a, b)| Some(score(metric, b)? - score(metric, a)?)).collect();
    let (won, lost) =
        (sides.iter().filter(|d| **d > 0.0).count(), sides.iter().filter(|d| **d < 0.0).count());
    let effect_kind = if metric == Metric::Perplexity { EffectKind::Ratio } else { EffectKind::Difference };
    let mut comparison = Comparison {
        metric,
        base: first.value,
        candidate: second.value,
        n: second.n,
        effect_kind,
        effect: effect_of(first.value, second.value),
        interval,
        won,
        lost,
        p_value: mcnemar_exact(won, lost),
        verdict: Verdict::Inconclusive,
    };
    comparison.verdict = verdict(&comparison);
    Some(comparison)
}

/// The score of one item, more is better.
fn score(metric: Metric, record: &SampleRecord) -> Option<f64> {
    match metric {
        Metric::ExactMatch => record.exact_match.map(|right| f64::from(u8::from(right))),
        Metric::JsonFields => record.json_fields.map(|fields| fields.f1()),
        Metric::Perplexity => record.loss_sum.map(|loss| -loss),
    }
}

fn verdict(comparison: &Comparison) -> Verdict {
    let none = match comparison.effect_kind {
        EffectKind::Difference => 0.0,
        EffectKind::Ratio => 1.0,
    };
    let is_clear = match comparison.metric {
        Metric::ExactMatch => comparison.p_value < ALPHA,
        _ => {
            comparison.n >= LEAST_ITEMS
                && comparison.interval.is_some_and(|interval| !interval.contains(none))
        }
    };
    let is_gain = (comparison.effect > none) == comparison.metric.higher_is_better();
    match (is_clear, is_gain) {
        (false, _) => Verdict::Inconclusive,
        (true, true) => Verdict::Better,
        (true, false) => Verdict::Worse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EvalSection;
    use crate::result::tests::record;

    fn result(name: &str, rows: impl Iterator<Item = (bool, f64)>) -> EvalResult {
        let records = rows.enumerate().map(|(i, (right, loss))| record(i, right, loss)).collect();
        let section = EvalSection {
            metrics: vec![Metric::ExactMatch, Metric::Perplexity, Metric::JsonFields],
            ..EvalSection::default()
        };
        EvalResult::new(name, records, &section)
    }

    #[test]
    fn six_wins_without_a_loss_are_just_enough_and_four_are_not() {
        let base = result("base", (0..40).map(|_| (false, 2.0)));
        let by = |wins: usize| {
            let candidate = result("adapter", (0..40).map(|i| (i < wins, 2.0)));
            compare(&base, &candidate, 0).unwrap().remove(0)
        };
        let (four, six) = (by(4), by(6));
        assert_eq!((four.verdict, four.won, four.lost), (Verdict::Inconclusive, 4, 0));
        assert!((four.p_value - 0.125).abs() < 1e-12 && (four.effect - 0.1).abs() < 1e-12);
        assert_eq!(six.verdict, Verdict::Better);
        assert!(six.interval.unwrap().contains(0.15));
    }

    #[test]
    fn the_other_way_round_is_worse_with_the_same_p() {
        let a = result("a", (0..30).map(|i| (i % 2 == 0, 3.0)));
        let b = result("b", (0..30).map(|i| (i % 2 == 0 || i < 20, 1.0)));
        let (forth, back) = (compare(&a, &b, 0).unwrap(), compare(&b, &a, 0).unwrap());
        assert!(forth.iter().all(|c| c.verdict == Verdict::Better), "{forth:#?}");
        assert!(back.iter().all(|c| c.verdict == Verdict::Worse), "{back:#?}");
        for (f, b) in forth.iter().zip(&back) {
            assert_eq!((f.won, f.lost, f.p_value), (b.lost, b.won, b.p_value));
        }
    }

    #[test]
    fn the_perplexity_ratio_is_that_of_the_mean_losses() {
        // Two tokens an item: mean loss 1 against 0.5 + noise of either sign.
        let base = result("base", (0..20).map(|_| (false, 2.0)));
        let better = result("adapter", (0..20).map(|i| (false, 1.0 + 0.2 * f64::from(i % 2))));
        let comparison = &compare(&base, &better, 0).unwrap()[1];
        assert!((comparison.effect - (0.55f64 - 1.0).exp()).abs() < 1e-12);
        assert_eq!(comparison.verdict, Verdict::Better);
        assert!(comparison.interval.unwrap().high < 1.0);
        let same = result("adapter", (0..20).map(|i| (false, if i % 2 == 0 { 1.5 } else { 2.5 })));
        assert_eq!(compare(&base, &same, 0).unwrap()[1].verdict, Verdict::Inconclusive);
    }

    #[test]
    fn few_items_are_never_enough_for_an_interval() {
        let base = result("base", (0..9).map(|_| (false, 4.0)));
        let better = result("adapter", (0..9).map(|_| (false, 1.0)));
        assert_eq!(compare(&base, &better, 0).unwrap()[1].verdict, Verdict::Inconclusive);
    }

    #[test]
    fn results_of_other_items_are_not_compared() {
        let a = result("a", (0..3).map(|_| (true, 1.0)));
        let mut b = a.clone();
        b.records[1].id = "other.jsonl:2".into();
        assert!(compare(&a, &b, 0).unwrap_err().to_string().contains("other.jsonl:2"));
        assert!(compare(&a, &result("b", (0..2).map(|_| (true, 1.0))), 0).is_err());
        let mut c = a.clone();
        c.measured[0].signature.push('x');
        assert!(compare(&a, &c, 0).unwrap_err().to_string().contains("different ways"));
    }
}
