//! Two candidates on the same items.

use crate::Metric;
use crate::Scale;
use crate::statistics::{Decision, Interval, decide};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What can be said of the second candidate against the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
            Self::Inconclusive => "not enough data",
        })
    }
}

/// How the effect of a comparison is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// Second minus first; 0 is no effect.
    Difference,
    /// Second over first; 1 is no effect.
    Ratio,
}

impl EffectKind {
    /// How a metric's effect is told.
    pub fn of(metric: Metric) -> Self {
        if metric.scale() == Scale::Plain { Self::Ratio } else { Self::Difference }
    }

    /// The effect of no effect.
    pub fn none(self) -> f64 {
        match self {
            Self::Difference => 0.0,
            Self::Ratio => 1.0,
        }
    }
}

/// An effect on a scale that does not depend on the metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EffectSize {
    /// Which scale: Cohen's h of two shares, Cohen's dz of paired scores.
    pub name: String,
    /// The value.
    pub value: f64,
}

/// One metric of two candidates on the same items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// The first candidate.
    pub reference: String,
    /// The second.
    pub candidate: String,
    /// Which metric.
    pub metric: Metric,
    /// Value of the first.
    pub base: f64,
    /// Value of the second.
    pub value: f64,
    /// Items that both were measured on.
    pub n: usize,
    /// How `effect` is told.
    pub effect_kind: EffectKind,
    /// Second minus first, or second over first.
    pub effect: f64,
    /// 95 % of the effect: Tango's for shares, Student's over units for means, else the bootstrap (BCa) with both drawn together.
    pub interval: Option<Interval>,
    /// Items on which the second did better.
    pub won: usize,
    /// Items on which the first did better.
    pub lost: usize,
    /// The test behind the p-value: exact McNemar, permutation of signs, or randomisation of who gave which answer.
    pub test: String,
    /// The two-sided p-value of no effect.
    pub p_value: f64,
    /// The same, adjusted by Holm for the metrics that were asked together. The verdict goes by it.
    pub adjusted_p_value: f64,
    /// What can be said.
    pub verdict: Verdict,
    /// Items in all that would show this effect in four runs of five, if it is the true one.
    pub needed: Option<u64>,
    /// The effect on a common scale.
    pub effect_size: Option<EffectSize>,
}

impl Comparison {
    /// What a decision says; a metric that could not be decided is not enough data.
    pub(crate) fn decided(metric: Metric, (base, value): (f64, f64), decision: Option<Decision>) -> Self {
        let kind = EffectKind::of(metric);
        // Decisions are made on logarithms of ratios.
        let told = |effect: f64| if kind == EffectKind::Ratio { effect.exp() } else { effect };
        let effect = if kind == EffectKind::Ratio { value / base } else { value - base };
        let mut this = Self {
            reference: String::new(),
            candidate: String::new(),
            metric,
            base,
            value,
            n: 0,
            effect_kind: kind,
            effect,
            interval: None,
            won: 0,
            lost: 0,
            test: String::new(),
            p_value: 1.0,
            adjusted_p_value: 1.0,
            verdict: Verdict::Inconclusive,
            needed: None,
            effect_size: None,
        };
        if let Some(decision) = decision {
            let interval = Interval { low: told(decision.interval.low), high: told(decision.interval.high) };
            this.interval =
                (decision.interval.low.is_finite() && decision.interval.high.is_finite()).then_some(interval);
            (this.p_value, this.needed) = (decision.p_value, decision.needed);
            this.adjusted_p_value = decision.p_value;
        }
        this
    }

    /// The same, told of the first candidate against the second. The tests look both ways, so p-values stay.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let is_ratio = self.effect_kind == EffectKind::Ratio;
        let turned = |effect: f64| if is_ratio { 1.0 / effect } else { -effect };
        let interval = |i: Interval| Interval { low: turned(i.high), high: turned(i.low) };
        Self {
            reference: self.candidate.clone(),
            candidate: self.reference.clone(),
            base: self.value,
            value: self.base,
            effect: turned(self.effect),
            interval: self.interval.map(interval),
            won: self.lost,
            lost: self.won,
            verdict: match self.verdict {
                Verdict::Better => Verdict::Worse,
                Verdict::Worse => Verdict::Better,
                Verdict::Inconclusive => Verdict::Inconclusive,
            },
            effect_size: self.effect_size.clone().map(|size| EffectSize { value: -size.value, ..size }),
            ..self.clone()
        }
    }

    /// The items to take where there is not enough data: nothing where there are that many already, as when several metrics were asked
    /// together or the test wants more than this estimate.
    pub fn items_to_take(&self) -> Option<u64> {
        self.needed.filter(|needed| self.verdict == Verdict::Inconclusive && *needed > self.n as u64)
    }

    /// The effect with "more is better": above 0 the second did better.
    pub fn gain(&self) -> f64 {
        let effect = if self.effect_kind == EffectKind::Ratio { self.effect.ln() } else { self.effect };
        if self.metric.higher_is_better() { effect } else { -effect }
    }
}

/// Make the verdicts of comparisons that were asked together: by p-values adjusted by Holm, so that the chance of one false verdict
/// among them all stays at 5 %.
pub(crate) fn adjust<'a>(comparisons: impl IntoIterator<Item = &'a mut Comparison>) {
    let comparisons: Vec<&mut Comparison> = comparisons.into_iter().collect();
    let decision = |c: &Comparison| Decision {
        verdict: Verdict::Inconclusive,
        effect: c.gain(),
        interval: Interval { low: 0.0, high: 0.0 },
        p_value: c.p_value,
        adjusted_p_value: c.p_value,
        needed: c.needed,
    };
    let mut decisions: Vec<(Decision, bool)> = comparisons.iter().map(|c| (decision(c), true)).collect();
    decide(&mut decisions);
    for (comparison, (decision, _)) in comparisons.into_iter().zip(decisions) {
        comparison.adjusted_p_value = decision.adjusted_p_value;
        comparison.verdict = decision.verdict;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{PairedCounts, decide_shares};

    fn compared() -> Comparison {
        let counts = PairedCounts { both: 10, won: 9, lost: 1, neither: 10 };
        let (base, value) = (11.0 / 30.0, 19.0 / 30.0);
        let comparison = Comparison::decided(Metric::ExactMatch, (base, value), decide_shares(counts));
        Comparison { reference: "a".into(), candidate: "b".into(), n: 30, won: 9, lost: 1, ..comparison }
    }

    #[test]
    fn told_the_other_way_round_it_is_the_comparison_of_the_other_pair() {
        let mut there = compared();
        adjust([&mut there]);
        let back = there.reversed();
        let swapped = PairedCounts { both: 10, won: 1, lost: 9, neither: 10 };
        let mut expected =
            Comparison::decided(Metric::ExactMatch, (there.value, there.base), decide_shares(swapped));
        adjust([&mut expected]);
        assert_eq!((there.verdict, back.verdict), (Verdict::Better, Verdict::Worse));
        assert_eq!(
            (back.verdict, back.p_value, back.effect),
            (expected.verdict, expected.p_value, expected.effect)
        );
        let (found, wanted) = (back.interval.unwrap(), expected.interval.unwrap());
        assert!((found.low - wanted.low).abs() < 1e-9 && (found.high - wanted.high).abs() < 1e-9);
        assert_eq!((back.reference.as_str(), back.won, back.lost), ("b", 1, 9));
        assert_eq!(back.reversed(), there);
    }

    #[test]
    fn more_items_are_asked_for_only_where_there_are_fewer() {
        let not_decided = Comparison { needed: Some(40), ..compared() };
        assert_eq!(not_decided.items_to_take(), Some(40));
        assert_eq!(Comparison { n: 40, ..not_decided.clone() }.items_to_take(), None);
        assert_eq!(Comparison { verdict: Verdict::Better, ..not_decided }.items_to_take(), None);
    }
}
