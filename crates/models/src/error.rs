//! Why a model cannot be loaded.

use crate::ModelType;
use std::io;
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, Location, list_names};
use taper_nn::CheckpointError;

/// The result of loading.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error("cannot use `{}`", path.display())]
    Config {
        /// `config.json`.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The folder's files.
    #[error(transparent)]
    Files(#[from] taper_hub::Error),
    /// The weights.
    #[error("cannot load the weights of `{}`", root.display())]
    Checkpoint {
        /// The folder.
        root: PathBuf,
        /// What is wrong.
        source: Box<CheckpointError>,
    },
    /// Tensors that the configuration has no place for: the model would not be what its weights say.
    #[error("the weights of `{}` hold tensors that `config.json` has no place for: {}", root.display(), list_names(names, 5))]
    Unexpected {
        /// The folder.
        root: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A tied model with a head of its own in the file.
    #[error("`config.json` of `{}` ties the head to the embedding, and the weights hold another `lm_head.weight`", root.display())]
    HeadNotTied {
        /// The folder.
        root: PathBuf,
    },
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The arithmetic.
    #[error("cannot build the model")]
    Candle(#[from] candle_core::Error),
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Config { source, .. } => source.hint(),
            Self::Files(error) => error.hint(),
            Self::Checkpoint { source, .. } => source.hint(),
            Self::Unexpected { .. } => Some(
                "`config.json` and the weights are not of one model, or the weights are quantised".into(),
            ),
            Self::HeadNotTied { .. } => Some("set `tie_word_embeddings` to false in `config.json`".into()),
            Self::Io(_) | Self::Candle(_) => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Config { path, .. } => Some(Location::file(path)),
            Self::Files(error) => error.location(),
            Self::Checkpoint { source, .. } => source.location(),
            _ => None,
        }
    }
}

/// What is wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// No `model_type`.
    #[error("it has no `model_type`")]
    NoModelType,
    /// An architecture that is not here.
    #[error("model_type `{given}` is not supported")]
    ModelType {
        /// What it says.
        given: String,
    },
    /// An architecture that is not here, whose checkpoint brings Python code of its own.
    #[error("model_type `{given}` runs Python code of its own (`auto_map`), which cannot be run here")]
    CustomCode {
        /// What it says.
        given: String,
    },
    /// The weights are quantised.
    #[error("the weights are quantised ({method}), which is not read")]
    Quantised {
        /// By which method.
        method: String,
    },
    /// Values that are missing, of a wrong type, out of range, or ask for what is not here. All of them.
    #[error("{}", faults.join("; "))]
    Values {
        /// One text a fault.
        faults: Vec<String>,
    },
}

impl Diagnose for ConfigError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoModelType => Some(
                "a base model's `config.json` names its architecture; an adapter's has another name".into(),
            ),
            Self::ModelType { .. } | Self::CustomCode { .. } => {
                Some(format!("supported are {}", list_names(ModelType::ALL.map(ModelType::name), 99)))
            }
            Self::Quantised { .. } => Some(
                "quantised bases are read as GGUF files and as bitsandbytes saves them (4 and 8 bits); or name the model it was quantised from and set `model.quantize`".into(),
            ),
            Self::Json(_) | Self::Values { .. } => None,
        }
    }
}
