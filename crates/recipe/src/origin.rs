//! Where a value of a recipe came from.

use std::fmt;
use std::path::PathBuf;
use taper_diagnostics::Location;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of a recipe file.
    File {
        /// The recipe, or one that it extends.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// `--set` on the command line.
    CommandLine,
    /// Nobody said; the section's default.
    Default,
}

impl Origin {
    /// The place for a problem with the value of `key`.
    pub fn location(&self, key: &str) -> Location {
        match self {
            Self::File { path, line } => Location::line(path, *line).with_key(key),
            Self::CommandLine => Location::default().with_key(format!("--set {key}")),
            Self::Default => Location::default().with_key(key),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                write!(f, "{}:{line}", name.to_string_lossy())
            }
            Self::CommandLine => f.write_str("--set"),
            Self::Default => f.write_str("default"),
        }
    }
}
