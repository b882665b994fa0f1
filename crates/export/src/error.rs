//! What can go wrong while writing a model.

use crate::{ExportProof, GgufError};
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, ExitCode, Location};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight that is NaN or infinite, or becomes so in the asked type.
    #[error("{count} values of `{tensor}` are not finite in {dtype}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many.
        count: usize,
        /// The type it is written in.
        dtype: &'static str,
    },
    /// `config.json` is not what it should be.
    #[error("`{}` is not a model's configuration: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A type that models are not written in.
    #[error("the base's type `{given}` is not one that models are written in")]
    Dtype {
        /// As `config.json` says.
        given: String,
    },
    /// A proof without a position.
    #[error("there is no token to prove the export on")]
    NothingToProve,
    /// What was written is not what was trained.
    #[error("the written model differs from the trained one: {0}")]
    Proof(ExportProof),
    /// A GGUF file, a GGUF adapter or a Modelfile cannot be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The arithmetic failed.
    #[error("failed to {doing}")]
    Arithmetic {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: candle_core::Error,
    },
    /// The disk failed.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk failed.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `map_err` for candle: what was being done.
pub(crate) fn doing(doing: &'static str) -> impl Fn(candle_core::Error) -> Error {
    move |source| Error::Arithmetic { doing, source }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFinite { dtype: "f16", .. } => {
                Some("f16 ends at 65504: set `export.merged_dtype` to \"bf16\" or \"f32\"".into())
            }
            Self::NotFinite { .. } => {
                Some("the training was not stable: lower `optimizer.learning_rate`".into())
            }
            Self::Gguf(source) => source.hint(),
            Self::Dtype { .. } => Some("set `export.merged_dtype` to \"f32\", \"bf16\" or \"f16\"".into()),
            Self::Proof(_) => Some("this is a fault of taper: keep the files and report it".into()),
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Config { path, .. } => Some(Location::file(path)),
            Self::Gguf(source) => source.location(),
            Self::NotFinite { tensor, .. } => Some(Location::default().with_key(tensor)),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Gguf(source) => source.exit_code(),
            Self::Proof(_) | Self::Arithmetic { .. } => ExitCode::Fault,
            _ => ExitCode::UserError,
        }
    }
}
