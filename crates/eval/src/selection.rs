//! Some of the items of an evaluation (all, a slice, those not seen in training), measured and compared.

use crate::compare::{Comparison, EffectKind, EffectSize};
use crate::result::{Measured, Record};
use crate::score::{Scorer, Tally, pooled};
use crate::statistics::{
    Bootstrap, Decision, Interval, PERMUTATIONS, PairedCounts, RESAMPLES, Tail, Units,
    clustered_mean_interval, cohen_dz, cohen_h, decide_means, decide_shares, items_for_effect,
    paired_randomisation, wilson,
};
use crate::{ItemFacts, Metric, Pooling, Scale, Verdict};

/// Items below which a bootstrap says nothing.
pub const LEAST_ITEMS: usize = 10;

/// Units by which a test that swaps them can have a p-value below 5 %: of `n`, the least is `2 / 2^n`.
const LEAST_UNITS: u64 = 6;

/// Items by their places.
#[derive(Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) scorer: &'a Scorer,
    pub(crate) items: &'a [ItemFacts],
    pub(crate) indices: &'a [usize],
}

/// The tallies of items that have one, and what belongs together.
struct Column<'a> {
    tallies: Vec<&'a Tally>,
    units: Units,
    is_clustered: bool,
}

impl<'a> Selection<'a> {
    fn labels(&self) -> &'a [String] {
        &self.scorer.scoring().labels
    }

    fn seed(&self) -> u64 {
        self.scorer.scoring().section.seed
    }

    /// What is drawn as one, of the items at `indices`.
    fn units(&self, indices: &[usize]) -> (Units, bool) {
        if self.scorer.scoring().section.cluster_by.is_none() {
            return (Units::items(indices.len()), false);
        }
        // An item without a label stands for itself.
        let own: Vec<String> = indices.iter().map(|index| format!("\0{index}")).collect();
        let labels: Vec<&String> = indices
            .iter()
            .zip(&own)
            .map(|(index, own)| self.items[*index].cluster.as_ref().unwrap_or(own))
            .collect();
        (Units::clusters(&labels), true)
    }

    fn column(&self, metric: Metric, records: &'a [Record]) -> Option<Column<'a>> {
        let (kept, tallies): (Vec<usize>, Vec<&Tally>) = self
            .indices
            .iter()
            .filter_map(|&index| Some((index, records[index].score.tallies.get(&metric)?)))
            .unzip();
        let (units, is_clustered) = self.units(&kept);
        (!kept.is_empty()).then_some(Column { tallies, units, is_clustered })
    }

    /// One metric of one candidate; `None` where it was measured on no item.
    pub(crate) fn measure(&self, metric: Metric, records: &'a [Record]) -> Option<Measured> {
        let column = self.column(metric, records)?;
        let of = |weights: &[u32]| {
            let items = column.tallies.iter().copied().zip(weights.iter().copied());
            pooled(metric, self.labels(), items).unwrap_or(f64::NAN)
        };
        let value = Some(of(&vec![1; column.tallies.len()])).filter(|value| value.is_finite())?;
        let values = || column.tallies.iter().map(|tally| tally.value(metric)).collect::<Vec<f64>>();
        let interval = match (metric.pooling(), column.is_clustered) {
            (Pooling::Share, false) => {
                let right = column.tallies.iter().filter(|tally| tally.value(metric) > 0.5).count();
                Some(wilson(right, column.tallies.len()))
            }
            (Pooling::Share | Pooling::Mean, _) => {
                clustered_mean_interval(&values(), &column.units, Tail::Student)
            }
            (Pooling::Corpus, _) => (column.units.len() >= LEAST_ITEMS)
                .then(|| Bootstrap::new(&column.units, self.seed(), RESAMPLES, of))
                .flatten()
                .map(|bootstrap| bootstrap.bca()),
        };
        Some(Measured {
            metric,
            value,
            n: column.tallies.len(),
            interval: interval.map(|i| within(i, metric)),
        })
    }

    /// Every metric of two candidates that both were measured by, each by itself: see [`crate::compare::adjust`].
    pub(crate) fn compare(
        &self,
        (reference, first): (&str, &'a [Record]),
        (candidate, second): (&str, &'a [Record]),
    ) -> Vec<Comparison> {
        let metrics = &self.scorer.scoring().section.metrics;
        let of = |metric: &Metric| {
            let mut comparison = self.compare_metric(*metric, first, second)?;
            (comparison.reference, comparison.candidate) = (reference.to_owned(), candidate.to_owned());
            Some(comparison)
        };
        metrics.iter().filter_map(of).collect()
    }

    fn compare_metric(
        &self,
        metric: Metric,
        first: &'a [Record],
        second: &'a [Record],
    ) -> Option<Comparison> {
        let tally = |records: &'a [Record], index: usize| records[index].score.tallies.get(&metric);
        let mut pairs = Vec::new();
        let mut kept = Vec::new();
        for &index in self.indices {
            // What a judge says is of the second beside the first: that one stands half-way.
            let one = if metric == Metric::Judge { Some(&Tally::Score(0.5)) } else { tally(first, index) };
            if let (Some(a), Some(b)) = (one, tally(second, index)) {
                pairs.push((a, b));
                kept.push(index);
            }
        }
        let (units, is_clustered) = self.units(&kept);
        let values: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (a.value(metric), b.value(metric))).collect();
        let differences: Vec<f64> = values.iter().map(|(a, b)| b - a).collect();
        let base = pooled(metric, self.labels(), pairs.iter().map(|pair| (pair.0, 1)))?;
        let value = pooled(metric, self.labels(), pairs.iter().map(|pair| (pair.1, 1)))?;
        let (decision, test) = match (metric.pooling(), is_clustered) {
            (Pooling::Share, false) => {
                let counts = PairedCounts::of(values.iter().map(|(a, b)| (*a > 0.5, *b > 0.5)));
                (decide_shares(counts), "exact McNemar")
            }
            (Pooling::Share | Pooling::Mean, _) => {
                (decide_means(&differences, &units, true, self.seed()), "permutation")
            }
            (Pooling::Corpus, _) => (self.decide_corpus(metric, &pairs, &units), "randomisation"),
        };
        let decision = decision
            .map(|decision| Decision { needed: in_items(&decision, test, &units, pairs.len()), ..decision });
        let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
        let better = |d: &&f64| **d * sign > 0.0;
        let worse = |d: &&f64| **d * sign < 0.0;
        Some(Comparison {
            reference: String::new(),
            candidate: String::new(),
            metric,
            base,
            value,
            n: pairs.len(),
            effect_kind: EffectKind::of(metric),
            won: differences.iter().filter(better).count(),
            lost: differences.iter().filter(worse).count(),
            test: test.to_owned(),
            effect_size: effect_size(metric, (base, value), &differences),
            ..Comparison::decided(metric, (base, value), decision)
        })
    }

    /// By a statistic of all items together: the difference of both values, or the logarithm of their ratio.
    fn decide_corpus(&self, metric: Metric, pairs: &[(&Tally, &Tally)], units: &Units) -> Option<Decision> {
        let effect_of = |a: Option<f64>, b: Option<f64>| match (a, b, EffectKind::of(metric)) {
            (Some(a), Some(b), EffectKind::Difference) => b - a,
            (Some(a), Some(b), EffectKind::Ratio) => (b / a).ln(),
            _ => f64::NAN,
        };
        let p_value = paired_randomisation(units, self.seed(), PERMUTATIONS, |swapped| {
            let side = |second: bool| {
                let items = pairs
                    .iter()
                    .zip(swapped)
                    .map(|((a, b), swap)| (if second != *swap { *b } else { *a }, 1));
                pooled(metric, self.labels(), items)
            };
            effect_of(side(false), side(true))
        })?;
        let by_weights = |weights: &[u32]| {
            let side = |second: bool| {
                let items =
                    pairs.iter().zip(weights).map(|((a, b), weight)| (if second { *b } else { *a }, *weight));
                pooled(metric, self.labels(), items)
            };
            effect_of(side(false), side(true))
        };
        let effect = Some(by_weights(&vec![1; pairs.len()])).filter(|effect| effect.is_finite())?;
        let bootstrap = (units.len() >= LEAST_ITEMS)
            .then(|| Bootstrap::new(units, self.seed(), RESAMPLES, by_weights))
            .flatten();
        let needed = bootstrap.as_ref().and_then(|bootstrap| {
            // The spread of one unit is that of the mean times the root of their number.
            let spread = deviation(&bootstrap.replicates) * (units.len() as f64).sqrt();
            (spread > 0.0).then(|| items_for_effect(effect / spread)).flatten()
        });
        let interval = bootstrap
            .map_or(Interval { low: f64::NEG_INFINITY, high: f64::INFINITY }, |bootstrap| bootstrap.bca());
        Some(Decision {
            verdict: Verdict::Inconclusive,
            effect,
            interval,
            p_value,
            adjusted_p_value: p_value,
            needed,
        })
    }
}

/// The items that a decision needs, which counts units: as many units as its test can say anything by, each with as many items as here.
fn in_items(decision: &Decision, test: &str, units: &Units, items: usize) -> Option<u64> {
    let least = if test == "exact McNemar" { 0 } else { LEAST_UNITS };
    let needed = decision.needed?.max(least) as f64;
    Some((needed * items as f64 / units.len() as f64).ceil() as u64)
}

/// A share's interval does not leave what a share can be.
fn within(interval: Interval, metric: Metric) -> Interval {
    let most = match metric.scale() {
        Scale::Share => 1.0,
        Scale::Percent => 100.0,
        Scale::Plain => f64::INFINITY,
    };
    Interval { low: interval.low.max(0.0), high: interval.high.min(most) }
}

fn effect_size(metric: Metric, (base, value): (f64, f64), differences: &[f64]) -> Option<EffectSize> {
    match metric.pooling() {
        Pooling::Share => Some(EffectSize { name: "Cohen's h".into(), value: cohen_h(base, value) }),
        _ => cohen_dz(differences).map(|value| EffectSize { name: "Cohen's dz".into(), value }),
    }
}

fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt()
}
