//! Is the adapter better than its base, by how much, and on enough data to know?
//!
//! An [`EvalTask`] is made once from held-out examples; each candidate answers it ([`Work`], or an endpoint); a [`score::Scorer`] scores what was
//! answered; an [`Evaluation`] compares the candidates item by item; [`judge`] holds the gates against it; a [`Report`] tells people and
//! scripts. Scores, comparisons and verdicts follow from the stored responses alone.
//!
//! Decoding is greedy unless asked otherwise, prompts are rendered by the checkpoint's own template, items are paired by their place in
//! the data, and every draw is by counter: the same models and data give the same report, byte for byte.

mod compare;
pub mod cost;
mod error;
mod evaluate;
mod evaluation;
pub mod gate;
pub mod html;
mod item;
pub mod metrics;
mod prompting;
pub mod remote;
mod remote_work;
pub mod report;
mod response;
mod response_cache;
mod result;
pub mod score;
mod section;
mod selection;
pub mod statistics;
mod task;
mod validation;

pub use compare::{Comparison, EffectKind, EffectSize, Verdict};
pub use error::{Error, Result};
pub use evaluate::{Progress, Work};
pub use evaluation::{Evaluation, Part, Roles, Slice, TouchReport};
pub use gate::{GateOutcome, GateSection, GateStatus, exit_code, judge};
pub use item::ItemFacts;
pub use prompting::{Prompting, choose_shots};
pub use remote_work::{ask_endpoint, judge_answers};
pub use report::{CurvePoint, Report, ReportFiles, RunFacts};
pub use response::Response;
pub use response_cache::ResponseCache;
pub use result::{Answers, Classes, EvalResult, Measured, MetricFacts, Record, Usage};
pub use section::{
    ADAPTER, BASE, CandidateSection, EvalSection, ExportedModel, Metric, Needs, Normalize, Pooling,
    Redaction, ReportSection, Scale, SharedLevel, TRAINED,
};
pub use selection::LEAST_ITEMS;
pub use statistics::{ALPHA, Interval, detectable_gain, least_gain};
pub use task::{EvalItem, EvalTask, Renderer, ScoredIds};
