//! What a set of items can show, before anything is measured, and how many items an effect takes.

use super::distributions::{
    binomial_cdf, binomial_pmf, noncentral_student_tail, normal_quantile, student_quantile,
};
use super::{ALPHA, POWER, Z, mcnemar_exact};

/// Items above which power is computed by the normal approximation alone, which is then right to half a point.
const MOST_EXACT: u64 = 4000;
/// Items that nobody has.
const MOST_ITEMS: u64 = 1 << 40;

/// The least gain in accuracy that `n` items can show at all: each item that differs is won, and they are as many as McNemar's test needs
/// for a verdict. `None` when `n` items never suffice.
pub fn least_gain(n: usize) -> Option<f64> {
    let needed = (1..=n.min(64)).find(|won| mcnemar_exact(*won, 0) < ALPHA)?;
    Some(needed as f64 / n as f64)
}

/// The least gain in accuracy that `n` items show in four runs of five, when the two candidates differ on the share `disagreement` of them.
///
/// The d of `sqrt(n) d = z_0.975 sqrt(disagreement) + z_0.8 sqrt(disagreement - d^2)`, the sample size of a paired comparison of shares
/// (Connor 1987). `None` when it exceeds the disagreement, which no gain can. The exact test finds it a little more seldom than in four
/// runs of five; [`power_of_gain`] says how often.
pub fn detectable_gain(n: usize, disagreement: f64) -> Option<f64> {
    let lacks = |gain: f64| {
        let noise =
            Z * disagreement.sqrt() + normal_quantile(POWER) * (disagreement - gain * gain).max(0.0).sqrt();
        (n as f64).sqrt() * gain < noise
    };
    if n == 0 || lacks(disagreement) {
        return None;
    }
    let (mut low, mut high) = (0.0, disagreement);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if lacks(middle) { low = middle } else { high = middle }
    }
    Some(high)
}

/// How often `n` items show a gain in accuracy, by McNemar's exact test at 5 % and in the right direction, when the candidates differ on
/// the share `disagreement` of them and the gain is `gain`. Exact: over every number of differing items and every outcome. Beyond
/// 4000 items by the normal approximation with McNemar's continuity correction.
///
/// `None` unless `0 <= gain <= disagreement <= 1`.
pub fn power_of_gain(n: u64, disagreement: f64, gain: f64) -> Option<f64> {
    if !(0.0..=disagreement).contains(&gain) || !(0.0..=1.0).contains(&disagreement) {
        return None;
    }
    if disagreement == 0.0 {
        return Some(0.0);
    }
    if n > MOST_EXACT {
        let noise = (disagreement - gain * gain).sqrt();
        let root = (n as f64).sqrt();
        let distance = root * gain - Z * disagreement.sqrt() - 1.0 / root;
        return Some(super::distributions::normal_cdf(distance / noise.max(f64::MIN_POSITIVE)));
    }
    let share_won = 0.5 + 0.5 * gain / disagreement;
    // Further from the mean there is less than 1e-9 of the distribution.
    let middle = n as f64 * disagreement;
    let reach = 6.5 * (middle * (1.0 - disagreement)).sqrt() + 30.0;
    let (from, to) = ((middle - reach).max(0.0) as u64, ((middle + reach) as u64).min(n));
    let mut lost = 0;
    let mut power = 0.0;
    for differing in from..=to {
        // The most lost items with which the rest of them are won for sure; from one number to the next it grows by at most one.
        let is_clear = |lost: u64| 2.0 * binomial_cdf(lost, differing, 0.5) < ALPHA;
        if differing == from {
            lost = (0..=differing / 2).take_while(|lost| is_clear(*lost)).last().unwrap_or(0);
        }
        if is_clear(lost + 1) {
            lost += 1;
        }
        if is_clear(lost) {
            let found = binomial_cdf(lost, differing, 1.0 - share_won);
            power += binomial_pmf(differing, n, disagreement) * found;
        }
    }
    Some(power.min(1.0))
}

/// The items that show a gain in accuracy in four runs of five, when the candidates differ on the share `disagreement` of them: Connor's
/// number, raised until [`power_of_gain`] is there. `None` without a gain, or where the gain exceeds the disagreement.
pub fn items_for_gain(disagreement: f64, gain: f64) -> Option<u64> {
    if !(gain > 0.0 && gain <= disagreement && disagreement <= 1.0) {
        return None;
    }
    let noise =
        Z * disagreement.sqrt() + normal_quantile(POWER) * (disagreement - gain * gain).max(0.0).sqrt();
    let connor = (noise / gain).powi(2).ceil().max(1.0);
    least_number(connor, |n| power_of_gain(n, disagreement, gain).is_some_and(|power| power >= POWER))
}

/// How often `n` paired differences with the effect size `dz` (their mean over their standard deviation) show it, by the t-test at 5 %
/// and in the right direction. `None` below two items.
pub fn power_of_effect(n: u64, dz: f64) -> Option<f64> {
    let df = n.checked_sub(1).filter(|df| *df > 0)? as f64;
    let critical = student_quantile(1.0 - ALPHA / 2.0, df);
    Some(noncentral_student_tail(critical, df, dz.abs() * (n as f64).sqrt()))
}

/// The items that show an effect size in four runs of five. `None` without an effect.
pub fn items_for_effect(dz: f64) -> Option<u64> {
    if dz == 0.0 || !dz.is_finite() {
        return None;
    }
    let normal = ((Z + normal_quantile(POWER)) / dz).powi(2).ceil().max(2.0);
    least_number(normal, |n| power_of_effect(n, dz).is_some_and(|power| power >= POWER))
}

/// The least effect size that `n` paired differences show in four runs of five. `None` below two items.
pub fn detectable_effect(n: u64) -> Option<f64> {
    power_of_effect(n, 0.0)?;
    let lacks = |dz: f64| power_of_effect(n, dz).is_some_and(|power| power < POWER);
    let (mut low, mut high) = (0.0, 1.0);
    while lacks(high) {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if lacks(middle) { low = middle } else { high = middle }
    }
    Some(high)
}

/// About the least number that is enough, from a first guess: the next one up of which this holds, then back while it still does. Where
/// what is asked for goes up and down by steps, as power of an exact test does, a slightly smaller number may do by luck.
fn least_number(guess: f64, is_enough: impl Fn(u64) -> bool) -> Option<u64> {
    if guess > MOST_ITEMS as f64 {
        return None;
    }
    let (mut low, mut high) = (0, guess as u64);
    while !is_enough(high) {
        (low, high) = (high, high + (high / 16).max(1));
        if high > MOST_ITEMS {
            return None;
        }
    }
    if low == 0 {
        low = high - high / 8;
        if is_enough(low) {
            low = 0;
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_wins_without_a_loss_are_the_least() {
        assert_eq!(least_gain(200), Some(0.03));
        assert_eq!(least_gain(6), Some(1.0));
        assert_eq!((least_gain(5), least_gain(0)), (None, None));
    }

    #[test]
    fn gains_are_those_of_the_normal_approximation() {
        // n, disagreement, points.
        let worked = [(100, 0.1, 8.8), (200, 0.2, 8.8), (500, 0.2, 5.6), (1000, 0.1, 2.8), (2000, 0.3, 3.4)];
        for (n, disagreement, points) in worked {
            let gain = detectable_gain(n, disagreement).unwrap();
            assert!((100.0 * gain - points).abs() < 0.06, "{n} {disagreement}: {gain}");
        }
        assert_eq!(detectable_gain(50, 0.1), None);
        assert_eq!(detectable_gain(0, 0.5), None);
    }

    #[test]
    fn power_of_a_sweep_is_that_of_enough_differing_items() {
        // All differing items are won: found as soon as six differ, 1 - P(Binomial(10, 0.6) <= 5).
        let expected = 1.0 - binomial_cdf(5, 10, 0.6);
        assert!((power_of_gain(10, 0.6, 0.6).unwrap() - expected).abs() < 1e-12);
        assert_eq!(power_of_gain(5, 1.0, 1.0), Some(0.0));
        assert_eq!((power_of_gain(10, 0.1, 0.2), power_of_gain(10, 0.0, 0.0)), (None, Some(0.0)));
        // Where the exact sum ends and the approximation begins they agree.
        for (disagreement, gain) in [(0.2, 0.02), (0.05, 0.012), (0.4, 0.02)] {
            let of = |n| power_of_gain(n, disagreement, gain).unwrap();
            assert!((of(4000) - of(4001)).abs() < 0.005, "{} {}", of(4000), of(4001));
        }
    }

    #[test]
    fn items_needed_are_enough_and_little_more_than_that() {
        for (disagreement, gain) in [(0.2, 0.05), (0.1, 0.1), (0.3, 0.02), (0.5, 0.2), (0.2, 0.001)] {
            let n = items_for_gain(disagreement, gain).unwrap();
            assert!(power_of_gain(n, disagreement, gain).unwrap() >= POWER);
            assert!(power_of_gain(n * 19 / 20 - 1, disagreement, gain).unwrap() < POWER, "{n}");
        }
        assert_eq!((items_for_gain(0.1, 0.0), items_for_gain(0.1, 0.2)), (None, None));
        let n = items_for_effect(-0.3).unwrap();
        assert!(power_of_effect(n, 0.3).unwrap() >= POWER && power_of_effect(n - 1, 0.3).unwrap() < POWER);
        assert!((power_of_effect(n, detectable_effect(n).unwrap()).unwrap() - POWER).abs() < 1e-9);
        assert_eq!(
            (items_for_effect(0.0), items_for_effect(f64::NAN), detectable_effect(1)),
            (None, None, None)
        );
    }
}
