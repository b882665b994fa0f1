//! Whether a run passes: what `[gate]` asks for, held against the evaluations.

mod judge;
mod parse;
mod requirement;
mod section;

pub use judge::{GateOutcome, GateStatus, exit_code, judge};
pub use parse::ParseError;
pub use requirement::{Ask, Quantity, Requirement, Subject};
pub use section::GateSection;
