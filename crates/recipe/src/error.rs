//! What can be wrong with a recipe.

use std::path::PathBuf;
use taper_diagnostics::{Diagnose, Location, Problems};

/// A recipe that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{}`", path.display())]
    Read {
        /// The recipe.
        path: PathBuf,
        /// What the disk says.
        source: std::io::Error,
    },
    /// All that is wrong with what it says.
    #[error("{0}")]
    Problems(Problems),
}

impl Diagnose for RecipeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("`taper recipe ls` lists the built-in recipes, `taper recipe cp NAME` copies one".into())
            }
            Self::Problems(_) => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Read { path, .. } => Some(Location::file(path)),
            Self::Problems(_) => None,
        }
    }
}
