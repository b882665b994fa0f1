//! Means and percentiles.

use serde_json::{Value, json};

/// What is told of many numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Summary {
    /// None of nothing.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let at = |p| percentile(&values, p);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { mean, p50: at(50.0), p90: at(90.0), p95: at(95.0), p99: at(99.0), max })
    }

    /// The numbers in the order in which they are told.
    pub(super) fn numbers(&self) -> [f64; 6] {
        [self.mean, self.p50, self.p90, self.p95, self.p99, self.max]
    }

    /// An object; null of nothing.
    pub(super) fn json(summary: Option<Self>) -> Value {
        let Some(Self { mean, p50, p90, p95, p99, max }) = summary else { return Value::Null };
        json!({"mean": mean, "p50": p50, "p90": p90, "p95": p95, "p99": p99, "max": max})
    }
}

/// The nearest rank: the smallest of the sorted values that at least `p` percent of them do not exceed.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    // In this order it is exact: 7 / 100 * 100 is more than 7.
    let rank = (p * sorted.len() as f64 / 100.0).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        // The textbook's five: 15, 20, 35, 40, 50.
        let five = [15.0, 20.0, 35.0, 40.0, 50.0];
        for (p, value) in [(5.0, 15.0), (30.0, 20.0), (40.0, 20.0), (50.0, 35.0), (80.0, 40.0), (100.0, 50.0)]
        {
            assert_eq!(percentile(&five, p), value, "{p}");
        }
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for p in 1..=100 {
            assert_eq!(percentile(&hundred, f64::from(p)), f64::from(p));
        }
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order_and_nothing_has_none() {
        let summary = Summary::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!(summary.numbers(), [100.5, 100.0, 180.0, 190.0, 198.0, 200.0]);
        assert_eq!(Summary::of(Vec::new()), None);
        assert_eq!(Summary::json(None), Value::Null);
    }
}
