//! What two candidates' scores on the same items say: tests, intervals, effect sizes, power and a verdict.
//!
//! All is paired: what one item is to both candidates is no noise between them. Everything is deterministic: resampling draws by
//! counter. Intervals are of 95 %, tests two-sided at 5 %, power is asked at 80 %.

mod effect;
mod intervals;
mod mcnemar;
mod multiplicity;
mod power;
mod resampling;
mod verdict;

pub mod distributions;

pub use effect::{cohen_dz, cohen_h};
pub use intervals::{PairedCounts, Tail, clustered_mean_interval, mean_interval, newcombe, tango, wilson};
pub use mcnemar::{discordant_odds, mcnemar_exact, mcnemar_mid_p};
pub use multiplicity::holm;
pub use power::{
    detectable_effect, detectable_gain, items_for_effect, items_for_gain, least_gain, power_of_effect,
    power_of_gain,
};
pub use resampling::{
    Bootstrap, PERMUTATIONS, RESAMPLES, Units, bootstrap, paired_permutation, paired_randomisation,
};
pub use verdict::{Decision, NonInferiority, decide, decide_means, decide_shares, non_inferiority};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The share of chance that a difference may have and still count as one.
pub const ALPHA: f64 = 0.05;
/// The share of intervals that hold the true value.
pub const CONFIDENCE: f64 = 0.95;
/// The share of runs in which an effect is to be found, where it is asked how many items that takes.
pub const POWER: f64 = 0.8;
/// The 97.5 % quantile of the standard normal distribution.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
