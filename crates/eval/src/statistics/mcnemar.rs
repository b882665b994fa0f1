//! McNemar's test: right or wrong, two candidates, the same items.

use super::Interval;
use super::distributions::{beta_quantile, binomial_pmf};

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

/// The mid-p form: the outcome itself counts half (Fagerland, Lydersen, Laake, "The McNemar test for binary matched-pairs data",
/// 2013). It is less conservative than [`mcnemar_exact`]; its false-positive rate may pass the level by a little.
pub fn mcnemar_mid_p(won: usize, lost: usize) -> f64 {
    if won == lost {
        return 1.0;
    }
    mcnemar_exact(won, lost) - binomial_pmf(won.min(lost) as u64, (won + lost) as u64, 0.5)
}

/// How many times likelier an item on which the candidates differ is to be won than lost, with its exact 95 % interval (Clopper and
/// Pearson 1934, on the share of those items that are won). `None` where they never differ; infinite where none is lost.
pub fn discordant_odds(won: usize, lost: usize) -> Option<(f64, Interval)> {
    let (w, l) = (won as f64, lost as f64);
    if won + lost == 0 {
        return None;
    }
    let odds = |share: f64| share / (1.0 - share);
    let low = if won == 0 { 0.0 } else { odds(beta_quantile(0.025, w, l + 1.0)) };
    let high = if lost == 0 { f64::INFINITY } else { odds(beta_quantile(0.975, w + 1.0, l)) };
    Some((w / l, Interval { low, high }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, by: f64) {
        assert!((a - b).abs() <= by, "{a} is not {b}");
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
    fn the_mid_p_counts_the_outcome_half() {
        // 8-2: 2 (1 + 10) / 1024 + 45 / 1024.
        near(mcnemar_mid_p(8, 2), 67.0 / 1024.0, 1e-14);
        near(mcnemar_mid_p(0, 5), 1.0 / 32.0, 1e-15);
        assert_eq!((mcnemar_mid_p(0, 0), mcnemar_mid_p(4, 4)), (1.0, 1.0));
    }

    #[test]
    fn odds_are_open_where_one_side_has_none() {
        let (odds, interval) = discordant_odds(6, 0).unwrap();
        assert!(odds.is_infinite() && interval.high.is_infinite());
        // 0.025^(1/6) of the items are won at least.
        let share = 0.025f64.powf(1.0 / 6.0);
        near(interval.low, share / (1.0 - share), 1e-9);
        assert_eq!(discordant_odds(0, 0), None);
    }
}
