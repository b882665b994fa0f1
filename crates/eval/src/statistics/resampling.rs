//! The bootstrap and the permutation test over items, or over groups of them.

use super::distributions::{normal_cdf, normal_quantile};
use super::{CONFIDENCE, Interval};
use std::collections::BTreeMap;
use taper_kernels::rng::{CounterRng, stream_of};

/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 5000;
/// Sign flips that a permutation test draws where it cannot try them all: p-values are multiples of 1 / 10000.
pub const PERMUTATIONS: usize = 9999;
/// Differences up to which all sign flips are tried.
const MOST_EXACT: usize = 20;
/// Units up to which all swaps of a statistic are tried; beyond, they would be more than [`PERMUTATIONS`].
const MOST_EXACT_SWAPS: usize = 13;

/// What is drawn as one: an item, or all items of a group, as several questions on one document are. Items of a group are not
/// independent; drawn alone they would make intervals too narrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    members: Vec<Vec<usize>>,
    items: usize,
}

impl Units {
    /// Each of `n` items for itself.
    pub fn items(n: usize) -> Self {
        Self { members: (0..n).map(|item| vec![item]).collect(), items: n }
    }

    /// Items with the same label together, in the order of the labels.
    pub fn clusters<T: Ord>(labels: &[T]) -> Self {
        let mut members: BTreeMap<&T, Vec<usize>> = BTreeMap::new();
        for (item, label) in labels.iter().enumerate() {
            members.entry(label).or_default().push(item);
        }
        Self { members: members.into_values().collect(), items: labels.len() }
    }

    /// Units.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The sum of the values of each unit.
    pub fn sums(&self, values: &[f64]) -> Vec<f64> {
        self.members.iter().map(|unit| unit.iter().map(|item| values[*item]).sum()).collect()
    }

    fn add(&self, unit: usize, weights: &mut [u32]) {
        self.members[unit].iter().for_each(|item| weights[*item] += 1);
    }
}

/// A statistic over resamples of the items.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// Over all items once.
    pub observed: f64,
    /// Over each resample, in rising order.
    pub replicates: Vec<f64>,
    /// Without each unit in turn.
    pub jackknife: Vec<f64>,
}

impl Bootstrap {
    /// Draw as many units as there are, with replacement, `resamples` times (Efron 1979). `None` without units, or when the
    /// statistic is not a finite number for all items or for a resample.
    ///
    /// `statistic` is given how often each item was drawn. For two candidates it is their difference: both are drawn together,
    /// which is what makes the comparison a paired one. It can be of anything that counts can be weighted for: a mean, BLEU,
    /// perplexity, F1.
    pub fn new(
        units: &Units,
        seed: u64,
        resamples: usize,
        mut statistic: impl FnMut(&[u32]) -> f64,
    ) -> Option<Self> {
        let observed = Some(statistic(&vec![1; units.items])).filter(|value| value.is_finite())?;
        let n = units.len();
        let rng = CounterRng::new(seed, stream_of("bootstrap.units"));
        let mut weights = vec![0u32; units.items];
        let mut replicates = Vec::with_capacity(resamples);
        for resample in 0..resamples {
            weights.fill(0);
            for block in 0..n.div_ceil(4) {
                let words = rng.block((resample * n.div_ceil(4) + block) as u64);
                for word in words.into_iter().take(n - 4 * block) {
                    // No unit is favoured by more than n / 2^32.
                    units.add(((u64::from(word) * n as u64) >> 32) as usize, &mut weights);
                }
            }
            replicates.push(Some(statistic(&weights)).filter(|value| value.is_finite())?);
        }
        replicates.sort_by(f64::total_cmp);
        let jackknife = (0..n).map(|unit| {
            weights.fill(1);
            units.members[unit].iter().for_each(|item| weights[*item] = 0);
            statistic(&weights)
        });
        let jackknife = jackknife.collect();
        (n > 0).then_some(Self { observed, replicates, jackknife })
    }

    /// The middle 95 % of the replicates.
    pub fn percentile(&self) -> Interval {
        let tail = (1.0 - CONFIDENCE) / 2.0;
        Interval { low: quantile(&self.replicates, tail), high: quantile(&self.replicates, 1.0 - tail) }
    }

    /// The replicates between levels that are corrected for bias and for a spread that changes with the value (BCa; Efron, "Better
    /// Bootstrap Confidence Intervals", 1987): for skewed statistics nearer to 95 % than [`Bootstrap::percentile`], which is what
    /// it gives where no correction can be computed.
    pub fn bca(&self) -> Interval {
        let below = self.replicates.partition_point(|value| *value < self.observed);
        let up_to = self.replicates.partition_point(|value| *value <= self.observed);
        let bias = normal_quantile((below + up_to) as f64 / (2 * self.replicates.len()) as f64);
        let mean = self.jackknife.iter().sum::<f64>() / self.jackknife.len() as f64;
        let power = |k: i32| self.jackknife.iter().map(|value| (mean - value).powi(k)).sum::<f64>();
        let acceleration = power(3) / (6.0 * power(2).powf(1.5));
        if !bias.is_finite() || !acceleration.is_finite() {
            return self.percentile();
        }
        let level = |tail: f64| {
            let z = bias + normal_quantile(tail);
            normal_cdf(bias + z / (1.0 - acceleration * z))
        };
        let tail = (1.0 - CONFIDENCE) / 2.0;
        Interval {
            low: quantile(&self.replicates, level(tail)),
            high: quantile(&self.replicates, level(1.0 - tail)),
        }
    }
}

/// The percentile bootstrap over items (Efron 1979): the middle 95 % of `statistic` over [`RESAMPLES`] draws of `n` items with
/// replacement. `None` when `n` is 0 or the statistic is not a number for a resample.
///
/// `statistic` is given the drawn item indices.
pub fn bootstrap(n: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> f64) -> Option<Interval> {
    if n == 0 {
        return None;
    }
    let rng = CounterRng::new(seed, stream_of("bootstrap"));
    let mut drawn = vec![0usize; n];
    let mut replicates = Vec::with_capacity(RESAMPLES);
    for resample in 0..RESAMPLES {
        for (i, index) in drawn.iter_mut().enumerate() {
            *index = rng.below((resample * n + i) as u64, n as u64) as usize;
        }
        replicates.push(statistic(&drawn));
    }
    if replicates.iter().any(|r| !r.is_finite()) {
        return None;
    }
    replicates.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some(Interval { low: quantile(&replicates, tail), high: quantile(&replicates, 1.0 - tail) })
}

/// The quantile of sorted values, linear between neighbours (type 7 of Hyndman and Fan 1996).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

/// The two-sided p-value of a sum of paired differences, by flipping their signs (Fisher's randomisation test): how often the sum is as
/// far from 0 if each item could as well have gone to the other candidate. For means of scores of any kind; with groups, of their sums
/// ([`Units::sums`]).
///
/// Up to 20 differences other than 0 all flips are tried, beyond that `permutations` are drawn and
/// `p = (1 + as far) / (1 + permutations)`. Exact in that the false-positive rate is at most the level where differences are
/// symmetric around 0 if there is no effect, which is so when the candidates are alike. 1 without a difference.
pub fn paired_permutation(differences: &[f64], seed: u64, permutations: usize) -> f64 {
    let differences: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    // Sums that differ by rounding alone are as far.
    let spread: f64 = differences.iter().map(|d| d.abs()).sum();
    let limit = differences.iter().sum::<f64>().abs() - 1e-12 * spread;
    if differences.is_empty() {
        return 1.0;
    }
    if differences.len() <= MOST_EXACT {
        let flips = 2f64.powi(differences.len() as i32);
        return count_as_far(&differences, 0.0, limit) as f64 / flips;
    }
    let rng = CounterRng::new(seed, stream_of("permutation"));
    let blocks = differences.len().div_ceil(128);
    let mut as_far = 0usize;
    for permutation in 0..permutations {
        let mut sum = 0.0;
        for (block, part) in differences.chunks(128).enumerate() {
            let words = rng.block((permutation * blocks + block) as u64);
            for (i, difference) in part.iter().enumerate() {
                let is_flipped = words[i / 32] >> (i % 32) & 1 == 1;
                sum += if is_flipped { -difference } else { *difference };
            }
        }
        as_far += usize::from(sum.abs() >= limit);
    }
    (1 + as_far) as f64 / (1 + permutations) as f64
}

fn count_as_far(differences: &[f64], sum: f64, limit: f64) -> u64 {
    match differences.split_first() {
        None => u64::from(sum.abs() >= limit),
        Some((first, rest)) => {
            count_as_far(rest, sum + first, limit) + count_as_far(rest, sum - first, limit)
        }
    }
}

/// The two-sided p-value of any statistic of two candidates, by swapping their answers (approximate randomisation; Noreen 1989): how
/// often it is as far from 0 if each unit's answers could as well have come from the other candidate. For corpus metrics, of which
/// items have no difference: BLEU, F1 by class, perplexity.
///
/// `statistic` is given for each item whether its two answers are swapped, and is 0 without an effect. Up to 13 units all swaps are
/// tried, else `permutations` are drawn. `None` without units or when the statistic is not a finite number.
pub fn paired_randomisation(
    units: &Units,
    seed: u64,
    permutations: usize,
    mut statistic: impl FnMut(&[bool]) -> f64,
) -> Option<f64> {
    let n = units.len();
    let mut swapped = vec![false; units.items];
    let observed = Some(statistic(&swapped)).filter(|value| value.is_finite() && n > 0)?;
    let limit = observed.abs() * (1.0 - 1e-12);
    let rng = CounterRng::new(seed, stream_of("randomisation"));
    let is_exact = n <= MOST_EXACT_SWAPS;
    let (rounds, blocks) = (if is_exact { 1 << n } else { permutations }, n.div_ceil(128));
    let mut as_far = 0usize;
    for round in 0..rounds {
        let mut words = [0u32; 4];
        for (unit, members) in units.members.iter().enumerate() {
            if !is_exact && unit % 128 == 0 {
                words = rng.block((round * blocks + unit / 128) as u64);
            }
            let bit =
                if is_exact { round >> unit & 1 == 1 } else { words[unit / 32 % 4] >> (unit % 32) & 1 == 1 };
            members.iter().for_each(|item| swapped[*item] = bit);
        }
        let value = Some(statistic(&swapped)).filter(|value| value.is_finite())?;
        as_far += usize::from(value.abs() >= limit);
    }
    Some(if is_exact { as_far as f64 / rounds as f64 } else { (1 + as_far) as f64 / (1 + rounds) as f64 })
}

#[cfg(test)]
mod tests {
    use super::super::Z;
    use super::*;

    fn near(a: f64, b: f64, by: f64) {
        assert!((a - b).abs() <= by, "{a} is not {b}");
    }

    #[test]
    fn the_bootstrap_of_a_mean_is_as_wide_as_theory_says() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 5 == 0))).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64;
        let interval = bootstrap(values.len(), 1, mean).unwrap();
        let standard_error = (0.2f64 * 0.8 / 400.0).sqrt();
        near(interval.low, 0.2 - Z * standard_error, 0.006);
        near(interval.high, 0.2 + Z * standard_error, 0.006);
        assert!(interval.contains(0.2));
        assert_eq!(bootstrap(values.len(), 1, mean), Some(interval));
        let spread = |drawn: &[usize]| drawn.iter().map(|&i| (i as f64).sqrt()).sum::<f64>();
        assert_ne!(bootstrap(50, 1, spread), bootstrap(50, 2, spread));
    }

    #[test]
    fn a_bootstrap_over_nothing_or_of_no_number_is_none() {
        assert_eq!(bootstrap(0, 1, |_| 1.0), None);
        assert_eq!(bootstrap(3, 1, |_| f64::NAN), None);
        assert_eq!(bootstrap(3, 1, |_| 2.0), Some(Interval { low: 2.0, high: 2.0 }));
        assert_eq!(Bootstrap::new(&Units::items(0), 1, 10, |_| 1.0), None);
        assert_eq!(Bootstrap::new(&Units::items(3), 1, 10, |_| f64::NAN), None);
        let constant = Bootstrap::new(&Units::items(3), 1, 10, |_| 2.0).unwrap();
        assert_eq!(constant.bca(), Interval { low: 2.0, high: 2.0 });
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn groups_are_drawn_and_left_out_whole() {
        let units = Units::clusters(&["b", "a", "b", "c", "b"]);
        assert_eq!((units.len(), units.sums(&[1.0, 10.0, 2.0, 100.0, 4.0])), (3, vec![10.0, 7.0, 100.0]));
        let mut seen = Vec::new();
        Bootstrap::new(&units, 3, 50, |weights| {
            assert!(weights[0] == weights[2] && weights[0] == weights[4]);
            assert!(weights[0] + weights[1] + weights[3] <= 3);
            seen.push(weights.to_vec());
            1.0
        });
        assert_eq!(seen.len(), 1 + 50 + 3);
        assert!(seen.contains(&vec![0, 1, 0, 1, 0]));
    }

    #[test]
    fn sign_flips_are_counted_by_hand() {
        // Of the eight sums of ±1 ±2 ±3 two are as far as 6.
        assert_eq!(paired_permutation(&[1.0, 2.0, 0.0, 3.0], 0, 9), 0.25);
        assert_eq!(paired_permutation(&[0.0; 30], 0, 9), 1.0);
        // 0.1 + 0.2 - 0.3 is not quite 0, and all sums are as far.
        assert_eq!(paired_permutation(&[0.1, 0.2, -0.3], 0, 9), 1.0);
        let clear = vec![1.0; 40];
        assert_eq!(paired_permutation(&clear, 0, 999), 0.001);
        let mixed: Vec<f64> = (0..40).map(|i| f64::from(i % 7) - 2.5).collect();
        assert_eq!(paired_permutation(&mixed, 5, 999), paired_permutation(&mixed, 5, 999));
    }

    #[test]
    fn swaps_of_a_sum_are_sign_flips() {
        let differences: Vec<f64> = (0..10).map(|i| f64::from(i * i % 7) - 1.5).collect();
        let sum = |swapped: &[bool]| -> f64 {
            differences.iter().zip(swapped).map(|(d, s)| if *s { -d } else { *d }).sum()
        };
        let p = paired_randomisation(&Units::items(10), 0, 99, sum).unwrap();
        near(p, paired_permutation(&differences, 0, 99), 1e-15);
        let many: Vec<f64> = (0..200).map(|i| f64::from(i * i % 7) - 1.7).collect();
        let sum = |swapped: &[bool]| -> f64 {
            many.iter().zip(swapped).map(|(d, s)| if *s { -d } else { *d }).sum()
        };
        let p = paired_randomisation(&Units::items(200), 0, 4999, sum).unwrap();
        near(p, paired_permutation(&many, 0, 4999), 0.02);
        assert!(paired_randomisation(&Units::items(0), 0, 9, |_| 1.0).is_none());
    }
}
