//! Better, worse, or not enough data, and then how much would be.

use super::{
    ALPHA, Interval, PERMUTATIONS, PairedCounts, Tail, Units, clustered_mean_interval, cohen_dz, holm,
    items_for_effect, items_for_gain, mcnemar_exact, paired_permutation, tango,
};
use crate::Verdict;
use serde::{Deserialize, Serialize};

/// What can be said of the second candidate against the first by one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What can be said; [`Verdict::Inconclusive`] means that there is not enough data.
    pub verdict: Verdict,
    /// Second minus first.
    pub effect: f64,
    /// 95 % of the effect; it and the test are different computations and may part where the case is close.
    pub interval: Interval,
    /// The two-sided p-value of no effect.
    pub p_value: f64,
    /// The p-value that the verdict goes by: adjusted where several metrics were asked; see [`decide`].
    pub adjusted_p_value: f64,
    /// Units (items, or groups of them) in all that would show this effect in four runs of five, if it is the true one and this the only
    /// metric. `None` where there is no effect. What to say where there is not enough data.
    pub needed: Option<u64>,
}

/// Decide by right and wrong answers: McNemar's exact test, Tango's interval. More right answers are better. `None` without items.
pub fn decide_shares(counts: PairedCounts) -> Option<Decision> {
    if counts.n() == 0 {
        return None;
    }
    let effect = counts.difference();
    let p_value = mcnemar_exact(counts.won, counts.lost);
    let needed = items_for_gain(counts.disagreement(), effect.abs());
    Some(Decision::new(effect, tango(counts), p_value, true, needed))
}

/// Decide by a score for each item: the sign-flip permutation test of the mean of `differences` (second minus first) and its t-interval,
/// over units. `None` below two units.
pub fn decide_means(
    differences: &[f64],
    units: &Units,
    higher_is_better: bool,
    seed: u64,
) -> Option<Decision> {
    let interval = clustered_mean_interval(differences, units, Tail::Student)?;
    let sums = units.sums(differences);
    let effect = sums.iter().sum::<f64>() / differences.len() as f64;
    let p_value = paired_permutation(&sums, seed, PERMUTATIONS);
    let needed = cohen_dz(&sums).and_then(items_for_effect);
    Some(Decision::new(effect, interval, p_value, higher_is_better, needed))
}

/// Make the verdicts of several metrics anew so that they hold together: by p-values adjusted by Holm. Each comes with whether more of
/// it is better.
pub fn decide(decisions: &mut [(Decision, bool)]) {
    let p_values: Vec<f64> = decisions.iter().map(|(decision, _)| decision.p_value).collect();
    for ((decision, higher_is_better), adjusted) in decisions.iter_mut().zip(holm(&p_values)) {
        decision.adjusted_p_value = adjusted;
        decision.verdict = verdict(adjusted, decision.effect, *higher_is_better);
    }
}

impl Decision {
    fn new(
        effect: f64,
        interval: Interval,
        p_value: f64,
        higher_is_better: bool,
        needed: Option<u64>,
    ) -> Self {
        let verdict = verdict(p_value, effect, higher_is_better);
        Self { verdict, effect, interval, p_value, adjusted_p_value: p_value, needed }
    }
}

fn verdict(p_value: f64, effect: f64, higher_is_better: bool) -> Verdict {
    match (p_value < ALPHA, (effect > 0.0) == higher_is_better) {
        (false, _) => Verdict::Inconclusive,
        (true, true) => Verdict::Better,
        (true, false) => Verdict::Worse,
    }
}

/// Whether a candidate keeps what it could do before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonInferiority {
    /// It is not worse by the margin or more.
    NotWorse,
    /// It is worse by more than the margin.
    Worse,
    /// The interval holds losses on both sides of the margin: there is not enough data.
    Inconclusive,
}

/// Hold the interval of an effect (second minus first) against the loss that is accepted, `margin`, above 0: not worse where the whole
/// interval is on the good side of it, worse where the whole is on the bad side. With a 95 % interval this is a one-sided test at 2.5 %.
///
/// "No significant loss" is another thing, which few items always show.
pub fn non_inferiority(effect: Interval, margin: f64, higher_is_better: bool) -> NonInferiority {
    let (worst, best) =
        if higher_is_better { (effect.low, effect.high) } else { (-effect.high, -effect.low) };
    if worst > -margin {
        NonInferiority::NotWorse
    } else if best < -margin {
        NonInferiority::Worse
    } else {
        NonInferiority::Inconclusive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_points_on_two_hundred_items_are_not_evidence() {
        let by = |won, lost| {
            decide_shares(PairedCounts { both: 100, won, lost, neither: 100 - won - lost }).unwrap()
        };
        let four = by(4, 0);
        assert_eq!((four.verdict, four.p_value), (Verdict::Inconclusive, 0.125));
        assert!((390..450).contains(&four.needed.unwrap()), "{four:?}");
        let six = by(6, 0);
        assert_eq!(six.verdict, Verdict::Better);
        assert!(six.needed < four.needed);
        assert_eq!(by(2, 12).verdict, Verdict::Worse);
        let nothing = by(0, 0);
        assert_eq!((nothing.verdict, nothing.needed), (Verdict::Inconclusive, None));
        assert_eq!(decide_shares(PairedCounts::default()), None);
    }

    #[test]
    fn means_are_decided_by_units_and_direction() {
        let differences: Vec<f64> = (0..24).map(|i| 0.1 + 0.05 * f64::from(i % 3)).collect();
        let items = Units::items(24);
        let of = |units: &Units, higher| decide_means(&differences, units, higher, 0).unwrap();
        assert_eq!(of(&items, true).verdict, Verdict::Better);
        assert_eq!(of(&items, false).verdict, Verdict::Worse);
        // Of four documents no verdict can come: the least p-value of four flips is 1/8.
        let four = Units::clusters(&(0..24).map(|i| i / 6).collect::<Vec<_>>());
        assert_eq!((of(&four, true).verdict, of(&four, true).p_value), (Verdict::Inconclusive, 0.125));
        assert!(decide_means(&[0.5], &Units::items(1), true, 0).is_none());
        let equal = decide_means(&[0.0; 20], &Units::items(20), true, 0).unwrap();
        assert_eq!((equal.verdict, equal.needed, equal.p_value), (Verdict::Inconclusive, None, 1.0));
    }

    #[test]
    fn several_metrics_are_decided_together() {
        let counts = PairedCounts { both: 50, won: 9, lost: 1, neither: 40 };
        let one = decide_shares(counts).unwrap();
        assert!(one.p_value > 0.02 && one.verdict == Verdict::Better);
        let mut three = [(one, true), (one, true), (one, false)];
        decide(&mut three);
        assert!(three.iter().all(|(d, _)| d.verdict == Verdict::Inconclusive && d.adjusted_p_value > 0.05));
        let mut alone = [(one, false)];
        decide(&mut alone);
        assert_eq!(alone[0].0.verdict, Verdict::Worse);
    }

    #[test]
    fn a_loss_within_the_margin_is_not_worse() {
        use NonInferiority::{Inconclusive, NotWorse, Worse};
        for (low, high, expected) in [
            (-0.01, 0.03, NotWorse),
            (-0.019, -0.001, NotWorse),
            (-0.03, 0.03, Inconclusive),
            (-0.05, -0.03, Worse),
        ] {
            assert_eq!(non_inferiority(Interval { low, high }, 0.02, true), expected);
            assert_eq!(non_inferiority(Interval { low: -high, high: -low }, 0.02, false), expected);
        }
    }
}
