//! How we say what is wrong, where, and what to do about it.
//!
//! Every crate has its own `thiserror` enum; what it knows beyond the text (the place, the remedy, the exit
//! code) it tells through [`Diagnose`]. A check that can find many faults collects them as [`Problem`]s, so that
//! a person mends all of them in one go.

mod atomic;
mod cache;
mod exit;
mod kept;
mod problem;
mod source;
mod suggest;

pub use atomic::{AtomicFile, sync_files, sync_folder, write_atomically, write_bytes_atomically};
pub use cache::cache_folder;
pub use exit::ExitCode;
pub use kept::KeptFiles;
pub use problem::{Diagnose, Located, Location, Problem, Problems, Severity, with_cause};
pub use source::{TextSource, TooLong};
pub use suggest::{did_you_mean, list_names};
