//! Is the adapter better than its base, by how much, and on enough data to know?
//!
//! An [`EvalTask`] is made once from held-out examples; [`evaluate`] runs a candidate over it; an [`Evaluation`] compares base and
//! candidate item by item; [`judge`] holds the gates against it; a [`Report`] tells people and scripts.
//!
//! Decoding is greedy, prompts are rendered by the checkpoint's own template, items are paired by their place in the data, and
//! every draw is by counter: the same models and data give the same report, byte for byte.

mod compare;
pub mod cost;
mod error;
mod evaluate;
mod evaluation;
mod gate;
mod markdown;
pub mod metrics;
pub mod remote;
mod report;
mod result;
mod section;
pub mod statistics;
mod task;

pub use compare::{Comparison, EffectKind, LEAST_ITEMS, Verdict, compare};
pub use error::{Error, Result};
pub use evaluate::{Progress, evaluate};
pub use evaluation::Evaluation;
pub use gate::{GateOutcome, GateStatus, exit_code, judge};
pub use report::{CurvePoint, Report, ReportFiles, RunFacts};
pub use result::{EvalResult, Measured, SampleRecord};
pub use section::{EvalSection, GateSection, Limit, LimitKind, Metric, Normalize};
pub use statistics::{ALPHA, Interval, detectable_gain, least_gain};
pub use task::{EvalItem, EvalTask, Renderer};
