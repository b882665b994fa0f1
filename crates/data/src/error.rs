//! What can stop the reading of data.

use crate::example::RowPlace;
use crate::fault::RowFault;
use std::io;
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, Location, Problem, Problems};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk failed.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file as a whole is not one that can be read.
    #[error("{what}")]
    File {
        /// The file.
        path: PathBuf,
        /// The stable name.
        code: &'static str,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// One row is wrong.
    #[error("{fault}")]
    Row {
        /// Which.
        place: RowPlace,
        /// Column in the line, from 1, for faults of syntax.
        column: Option<usize>,
        /// The key inside the row, for example `messages[2].role`.
        key: Option<String>,
        /// What is wrong.
        fault: Box<RowFault>,
    },
    /// An example cannot be turned into tokens.
    #[error("the example cannot be rendered: {message}")]
    Encode {
        /// Which.
        place: RowPlace,
        /// What the renderer said.
        message: String,
        /// What to do.
        remedy: Option<String>,
    },
    /// The data of a run that is resumed is not the data it began with.
    #[error("{what} changed since the checkpoint: was {then}, is {now}")]
    Resume {
        /// What.
        what: &'static str,
        /// In the checkpoint.
        then: String,
        /// Now.
        now: String,
    },
    /// There is nothing to load batches from.
    #[error("there is no example to train on")]
    NoExamples,
    /// An option that makes no batches.
    #[error("`{name}` is {given}, at least 1 is needed")]
    Zero {
        /// Which.
        name: &'static str,
        /// As given.
        given: usize,
    },
    /// A sample that does not exist.
    #[error("there is no sample {index}: the file has {count}, counted from 0")]
    NoSuchSample {
        /// As asked.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Many problems.
    #[error("{0}")]
    Problems(Problems),
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The stable name for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "unreadable-file",
            Self::File { code, .. } => code,
            Self::Row { fault, .. } => fault.code(),
            Self::Encode { .. } => "cannot-render",
            Self::Resume { .. } => "data-changed",
            Self::NoExamples => "no-examples",
            Self::Zero { .. } => "out-of-range",
            Self::NoSuchSample { .. } => "no-such-sample",
            Self::Problems(_) => "problems",
        }
    }

    /// The same as a problem, for lists.
    pub fn to_problem(&self) -> Problem {
        Problem::from_error(self.code(), self)
    }

    /// Whether the rows after this one can still be read.
    pub fn is_about_one_row(&self) -> bool {
        match self {
            Self::Row { fault, .. } => !matches!(**fault, RowFault::BrokenArray { .. }),
            Self::Encode { .. } => true,
            _ => false,
        }
    }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File { remedy, .. } => Some((*remedy).into()),
            Self::Row { fault, .. } => fault.hint(),
            Self::Encode { remedy, .. } => remedy.clone(),
            Self::Resume { .. } => {
                Some("start the run anew, or give it the data and settings it began with".into())
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("paths are relative to the recipe file".into())
            }
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Read { path, .. } | Self::File { path, .. } => Some(Location::file(path)),
            Self::Row { place, column, key, .. } => {
                let mut location = place.location();
                location.column = *column;
                location.key = match (location.key, key) {
                    (Some(element), Some(key)) => Some(format!("{element}.{key}")),
                    (element, key) => key.clone().or(element),
                };
                Some(location)
            }
            Self::Encode { place, .. } => Some(place.location()),
            _ => None,
        }
    }
}
