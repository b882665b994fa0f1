//! 95 % intervals that need no resampling.

use super::distributions::{bisect, student_quantile};
use super::{CONFIDENCE, Interval, Units, Z};

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

/// The quantile by which the standard error of a mean is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tail {
    /// Student's with n - 1 degrees of freedom: exact where the values are normal.
    #[default]
    Student,
    /// The normal one: too narrow below some 30 values.
    Normal,
}

/// The interval of a mean. `None` below two values.
pub fn mean_interval(values: &[f64], tail: Tail) -> Option<Interval> {
    clustered_mean_interval(values, &Units::items(values.len()), tail)
}

/// The interval of a mean over values that come in groups, as several questions on one document do: the variance is that of the sums
/// of residuals by group, times G / (G - 1) (Liang and Zeger 1986), and Student's tail has G - 1 degrees of freedom. Below some 30
/// groups it is still somewhat too narrow. `None` below two groups.
pub fn clustered_mean_interval(values: &[f64], units: &Units, tail: Tail) -> Option<Interval> {
    let (n, groups) = (values.len() as f64, units.len() as f64);
    if units.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let residuals: Vec<f64> = values.iter().map(|value| value - mean).collect();
    let squares: f64 = units.sums(&residuals).iter().map(|sum| sum * sum).sum();
    let standard_error = (squares * groups / (groups - 1.0)).sqrt() / n;
    let quantile = match tail {
        Tail::Student => student_quantile(0.5 + CONFIDENCE / 2.0, groups - 1.0),
        Tail::Normal => Z,
    };
    Some(Interval { low: mean - quantile * standard_error, high: mean + quantile * standard_error })
}

/// Right answers of two candidates on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairedCounts {
    /// Items that both got right.
    pub both: usize,
    /// Items that only the second got right.
    pub won: usize,
    /// Items that only the first got right.
    pub lost: usize,
    /// Items that neither got right.
    pub neither: usize,
}

impl PairedCounts {
    /// Count pairs of (first, second).
    pub fn of(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut counts = Self::default();
        for pair in pairs {
            *match pair {
                (true, true) => &mut counts.both,
                (false, true) => &mut counts.won,
                (true, false) => &mut counts.lost,
                (false, false) => &mut counts.neither,
            } += 1;
        }
        counts
    }

    /// All items.
    pub fn n(self) -> usize {
        self.both + self.won + self.lost + self.neither
    }

    /// The share that the second got right minus the share that the first did; 0 without items.
    pub fn difference(self) -> f64 {
        (self.won as f64 - self.lost as f64) / self.n().max(1) as f64
    }

    /// The share of items on which they differ; 0 without items.
    pub fn disagreement(self) -> f64 {
        (self.won + self.lost) as f64 / self.n().max(1) as f64
    }
}

/// Tango's score interval for the difference of two paired shares (Tango, "Equivalence test and confidence interval for the difference
/// in proportions for the paired-sample design", 1998): the differences that a score test does not refuse. It looks at `won`, `lost`
/// and `n` alone. Without items it is -1 to 1.
pub fn tango(counts: PairedCounts) -> Interval {
    let n = counts.n() as f64;
    if n == 0.0 {
        return Interval { low: -1.0, high: 1.0 };
    }
    let (won, lost) = (counts.won as f64, counts.lost as f64);
    let score = |difference: f64| {
        // The share lost that is likeliest if this were the difference.
        let b = (2.0 * n - won + lost) * difference - won - lost;
        let c = -lost * difference * (1.0 - difference);
        let share = ((b * b - 8.0 * n * c).max(0.0).sqrt() - b) / (4.0 * n);
        let variance = n * (2.0 * share + difference * (1.0 - difference));
        let distance = won - lost - n * difference;
        if distance == 0.0 { 0.0 } else { distance / variance.max(0.0).sqrt() }
    };
    let middle = counts.difference();
    Interval {
        low: bisect(-1.0, middle, |difference| score(difference) > Z),
        high: bisect(middle, 1.0, |difference| score(difference) > -Z),
    }
}

/// Newcombe's interval for the difference of two paired shares (method 10 of Newcombe, "Improved confidence intervals for the
/// difference between binomial proportions based on paired data", 1998): Wilson's intervals of both shares, put together with their
/// correlation. Without items it is -1 to 1.
pub fn newcombe(counts: PairedCounts) -> Interval {
    let PairedCounts { both, won, lost, neither } = counts;
    let n = counts.n();
    if n == 0 {
        return Interval { low: -1.0, high: 1.0 };
    }
    let (first, second) = (both + lost, both + won);
    let share = |right: usize| right as f64 / n as f64;
    let (one, two) = (wilson(first, n), wilson(second, n));
    let [a, b, c, d] = [both, won, lost, neither].map(|count| count as f64);
    let margins = (a + b) * (c + d) * (a + c) * (b + d);
    let product = match a * d - b * c {
        // The correlation is corrected towards 0, not past it.
        positive if positive > 0.0 => (positive - 0.5 * n as f64).max(0.0),
        other => other,
    };
    let correlation = if margins == 0.0 { 0.0 } else { product / margins.sqrt() };
    let width = |x: f64, y: f64| (x * x - 2.0 * correlation * x * y + y * y).max(0.0).sqrt();
    let difference = share(second) - share(first);
    Interval {
        low: difference - width(share(second) - two.low, one.high - share(first)),
        high: difference + width(two.high - share(second), share(first) - one.low),
    }
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
    fn paired_intervals_turn_round_with_the_candidates() {
        for (both, won, lost, neither) in [(36, 12, 2, 0), (10, 0, 0, 10), (0, 30, 0, 0), (0, 3, 9, 1)] {
            let counts = PairedCounts { both, won, lost, neither };
            let turned = PairedCounts { won: lost, lost: won, ..counts };
            for of in [tango, newcombe] {
                let (there, back) = (of(counts), of(turned));
                near(there.low, -back.high, 1e-12);
                near(there.high, -back.low, 1e-12);
                assert!(
                    there.contains(counts.difference()) && there.low >= -1.0 && there.high <= 1.0,
                    "{there:?}"
                );
            }
        }
        let nothing = PairedCounts::of([]);
        assert_eq!((tango(nothing), newcombe(nothing).low), (Interval { low: -1.0, high: 1.0 }, -1.0));
    }

    #[test]
    fn groups_of_equal_values_are_as_wide_as_their_number_says() {
        let values: Vec<f64> = (0..40).map(|i| f64::from(i / 4 % 2)).collect();
        let labels: Vec<usize> = (0..40).map(|i| i / 4).collect();
        let alone = mean_interval(&values, Tail::Normal).unwrap();
        let grouped = clustered_mean_interval(&values, &Units::clusters(&labels), Tail::Normal).unwrap();
        // Ten values four times each: the standard error is 0.5 / 3.
        near(grouped.high - grouped.low, 2.0 * Z * 0.5 / 3.0, 1e-12);
        assert!(alone.high < grouped.high);
        assert_eq!(mean_interval(&[1.0], Tail::Student), None);
    }
}
