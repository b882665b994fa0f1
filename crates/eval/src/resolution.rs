//! What a set of items can show, before anything is measured.

use crate::compare::ALPHA;
use crate::statistics::{Z, mcnemar_exact};

/// The 80 % quantile of the standard normal distribution: the power with which [`detectable_gain`] is found.
const Z_POWER: f64 = 0.841_621_233_572_914;

/// The least gain in accuracy that `n` items can show at all: each item that differs is won, and they are as many as McNemar's test needs
/// for a verdict. `None` when `n` items never suffice.
pub fn least_gain(n: usize) -> Option<f64> {
    let needed = (1..=n.min(64)).find(|won| mcnemar_exact(*won, 0) < ALPHA)?;
    Some(needed as f64 / n as f64)
}

/// The least gain in accuracy that `n` items show in four runs of five, when the two candidates differ on the share `disagreement` of them.
///
/// The d of `sqrt(n) d = z_0.975 sqrt(disagreement) + z_0.8 sqrt(disagreement - d^2)`, the sample size of a paired comparison of shares
/// (Connor 1987). `None` when it exceeds the disagreement, which no gain can.
pub fn detectable_gain(n: usize, disagreement: f64) -> Option<f64> {
    let lacks = |gain: f64| {
        let noise = Z * disagreement.sqrt() + Z_POWER * (disagreement - gain * gain).max(0.0).sqrt();
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
}
