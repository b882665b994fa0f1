//! Intervals and paired tests. Everything is deterministic: resampling draws by counter.

use serde::{Deserialize, Serialize};
use taper_kernels::rng::{CounterRng, stream_of};

/// The share of intervals that hold the true value.
pub const CONFIDENCE: f64 = 0.95;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 5000;
/// The 97.5 % quantile of the standard normal distribution.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the value lies in it.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// Wilson's score interval for `successes` of `n` (Wilson 1927): honest near 0 and 1, where the normal interval is not.
///
/// `(p + z^2/2n ± z sqrt(p (1-p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`. With `n` = 0 it is 0 to 1.
pub fn wilson(successes: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Interval { low: ((middle - half) / scale).max(0.0), high: ((middle + half) / scale).min(1.0) }
}

/// McNemar's exact test, which is the two-sided sign test on the items where two candidates differ (McNemar 1947).
///
/// `won` items only the second got right, `lost` only the first; were both equally good each such item would fall to either side
/// like a fair coin: `p = min(1, 2 P(Binomial(won + lost, 1/2) <= min(won, lost)))`.
pub fn mcnemar_exact(won: usize, lost: usize) -> f64 {
    let (n, least) = (won + lost, won.min(lost));
    if won == lost {
        return 1.0;
    }
    // ln C(n, k) - n ln 2, from one k to the next; in logarithms since 2^-n underflows for n above 1074.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for k in 1..=least {
        ln_term += ((n - k + 1) as f64 / k as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
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
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, by: f64) {
        assert!((a - b).abs() <= by, "{a} is not {b}");
    }

    #[test]
    fn wilson_gives_the_worked_values() {
        // 0 of 10: upper end z^2 / (n + z^2) = 3.841459 / 13.841459.
        let none = wilson(0, 10);
        near(none.low, 0.0, 1e-12);
        near(none.high, 3.841_458_820_694_124 / 13.841_458_820_694_124, 1e-12);
        // 5 of 10: 0.5 ± z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.5 ± 0.263410.
        let half = wilson(5, 10);
        near(half.low, 0.236_593_1, 1e-6);
        near(half.high, 0.763_406_9, 1e-6);
        let all = wilson(10, 10);
        near(all.low, 1.0 - none.high, 1e-12);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn mcnemar_gives_the_numbers_that_can_be_counted() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert_eq!(mcnemar_exact(3, 3), 1.0);
        // 4-0: 2 / 16. 6-0: 2 / 64, the first clean sweep below 0.05.
        near(mcnemar_exact(4, 0), 0.125, 1e-15);
        near(mcnemar_exact(0, 6), 0.031_25, 1e-15);
        // 8-2: 2 (1 + 10 + 45) / 1024.
        near(mcnemar_exact(8, 2), 112.0 / 1024.0, 1e-14);
        near(mcnemar_exact(2, 8), 112.0 / 1024.0, 1e-14);
        // 2-1: 2 (1 + 3) / 8 = 1.
        near(mcnemar_exact(2, 1), 1.0, 1e-14);
        assert!(mcnemar_exact(2000, 100) < 1e-200);
        near(mcnemar_exact(1050, 1000), 0.28, 0.01);
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
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }
}
