//! One thing that a run must reach.

use crate::Metric;
use std::fmt;

/// What a requirement looks at: an evaluation, a candidate and a quantity, as far as they are named. Left out, an evaluation is every
/// one that measures the quantity, and a candidate the trained one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// The evaluation.
    pub eval: Option<String>,
    /// The candidate.
    pub candidate: Option<String>,
}

/// A number that a candidate has on an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// The value of a metric.
    Metric(Metric),
    /// Milliseconds that half of the answers do not pass.
    P50LatencyMs,
    /// Milliseconds that all but one in twenty of the answers do not pass.
    P95LatencyMs,
    /// Share of items without an answer.
    ErrorRate,
}

/// What is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// The value keeps a limit.
    Limit {
        /// Of what.
        quantity: Quantity,
        /// Whether the limit is a least value, else a highest.
        at_least: bool,
        /// Whether the limit itself does not count.
        strict: bool,
        /// The limit.
        value: f64,
    },
    /// The effect against the base is at least or at most so much, and where that asks for a gain, chance is an unlikely reason.
    Effect {
        /// Of what.
        metric: Metric,
        /// Whether the limit is a least value, else a highest.
        at_least: bool,
        /// The limit: a difference, for perplexity a ratio.
        value: f64,
    },
    /// The verdict says better, and the gain is at least so much.
    BetterThan {
        /// Whom.
        other: String,
        /// By which metric; left out, the first of each evaluation.
        metric: Option<Metric>,
        /// The gain that the whole interval must pass; 0 asks for the verdict alone.
        by: f64,
    },
    /// The interval of the effect is on the good side of a loss that is accepted.
    NotWorseThan {
        /// Whom.
        other: String,
        /// By which metric; left out, the first of each evaluation.
        metric: Option<Metric>,
        /// The loss, above 0.
        by: f64,
    },
    /// Of the gain of the trained candidate over the base a candidate keeps at least this share, by the first metric.
    GainKept {
        /// The share.
        share: f64,
    },
}

/// One thing that a run must reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// As it was written, or the key and its value.
    pub text: String,
    /// The key of `[gate]` that says it.
    pub key: String,
    /// What it looks at.
    pub subject: Subject,
    /// What it asks.
    pub ask: Ask,
}

impl Quantity {
    /// Those that are no metric of an evaluation.
    pub const MEASURES: [Self; 3] = [Self::P50LatencyMs, Self::P95LatencyMs, Self::ErrorRate];

    /// The name in gates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metric(metric) => metric.name(),
            Self::P50LatencyMs => "p50_latency_ms",
            Self::P95LatencyMs => "p95_latency_ms",
            Self::ErrorRate => "error_rate",
        }
    }

    /// The quantity of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        let measure = Self::MEASURES.into_iter().find(|quantity| quantity.name() == name);
        measure.or_else(|| Metric::of_name(name).map(Self::Metric))
    }

    /// Whether it is a time.
    pub fn is_latency(self) -> bool {
        matches!(self, Self::P50LatencyMs | Self::P95LatencyMs)
    }
}

impl Requirement {
    /// The metric it looks at, where it names one.
    pub fn metric(&self) -> Option<Metric> {
        match &self.ask {
            Ask::Limit { quantity: Quantity::Metric(metric), .. } | Ask::Effect { metric, .. } => {
                Some(*metric)
            }
            Ask::BetterThan { metric, .. } | Ask::NotWorseThan { metric, .. } => *metric,
            Ask::Limit { .. } | Ask::GainKept { .. } => None,
        }
    }

    /// The candidate it is held against, where it compares.
    pub fn other(&self) -> Option<&str> {
        match &self.ask {
            Ask::BetterThan { other, .. } | Ask::NotWorseThan { other, .. } => Some(other),
            Ask::Effect { .. } | Ask::GainKept { .. } => Some(crate::BASE),
            Ask::Limit { .. } => None,
        }
    }

    /// Whether times must be measured for it.
    pub fn needs_latency(&self) -> bool {
        matches!(&self.ask, Ask::Limit { quantity, .. } if quantity.is_latency())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
