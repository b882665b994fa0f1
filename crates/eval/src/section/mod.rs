//! The sections of a recipe that this crate reads: `[[eval]]` and `[[candidate]]`; `[gate]` is in [`crate::gate`].

mod candidate;
mod eval;
mod metric;
mod report;

pub use candidate::{ADAPTER, BASE, CandidateSection, ExportedModel, TRAINED};
pub use eval::EvalSection;
pub use metric::{Metric, Needs, Normalize, Pooling, Scale};
pub use report::{Redaction, ReportSection, SharedLevel};
