//! Why a model or an adapter cannot be a GGUF file.

use std::path::PathBuf;
use taper_diagnostics::{Diagnose, ExitCode, Location};
use taper_hub::gguf::{TokenizerWriteError, WriteError};
use taper_quant::QuantError;

/// The errors of writing GGUF files and what goes with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// Something about a model that GGUF, or llama.cpp, has no word for.
    #[error("GGUF has no word for {what}")]
    Model {
        /// What it is, with its key.
        what: String,
    },
    /// A tensor that files of the architecture do not have.
    #[error("GGUF files of `{architecture}` models have no place for `{tensor}`")]
    Tensor {
        /// The Hub's name.
        tensor: String,
        /// GGUF's name of the architecture.
        architecture: &'static str,
    },
    /// Something about an adapter that GGUF adapters have no word for.
    #[error("a GGUF adapter cannot hold {what}")]
    Adapter {
        /// What it is, with its key.
        what: String,
    },
    /// A file that is no adapter, or none for this model.
    #[error("`{}` is no GGUF adapter for this model: {what}", path.display())]
    UnreadableAdapter {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A weight that its type cannot hold.
    #[error("failed to store `{tensor}`")]
    Encode {
        /// The tensor, by its name in the file.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// A tokenizer that GGUF has no word for.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerWriteError),
    /// The tokenizer in the file gives other ids.
    #[error("the tokenizer in the GGUF file reads {text:?} as {given:?}, the model's own as {expected:?}")]
    TokenizerDiffers {
        /// The text.
        text: String,
        /// The file's ids.
        given: Vec<u32>,
        /// The model's ids.
        expected: Vec<u32>,
    },
    /// The base's texts cannot be read.
    #[error("failed to read the base's tokenizer")]
    Text(#[from] taper_text::Error),
    /// A GGUF file cannot be read.
    #[error("failed to read a GGUF file")]
    Hub(#[from] taper_hub::Error),
    /// The file cannot be written.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// A name that a Modelfile cannot hold.
    #[error("a Modelfile cannot hold {what}")]
    Modelfile {
        /// What it is.
        what: String,
    },
}

/// Where to go when GGUF cannot say it.
const MERGED: &str = "export the \"merged\" folder instead: it holds the model as it is";
const MERGED_GGUF: &str = "export \"gguf\" instead: it holds the base with the adapter in its weights";

impl Diagnose for GgufError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Model { .. } | Self::Tensor { .. } | Self::TokenizerDiffers { .. } => Some(MERGED.into()),
            Self::Adapter { .. } => Some(MERGED_GGUF.into()),
            Self::Encode { source: QuantError::Range { .. }, .. } => {
                Some("f16 and the scales of blocks end at 65504: choose the type \"bf16\" or \"f32\"".into())
            }
            Self::Encode { source: QuantError::NotFinite { .. }, .. } => {
                Some("the training was not stable: lower `optimizer.learning_rate`".into())
            }
            Self::Tokenizer(source) => source.hint(),
            Self::Text(source) => source.hint(),
            Self::Hub(source) => source.hint(),
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Encode { tensor, .. } | Self::Tensor { tensor, .. } => {
                Some(Location::default().with_key(tensor))
            }
            Self::Write { path, .. } => Some(Location::file(path)),
            Self::Text(source) => source.location(),
            Self::Hub(source) => source.location(),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write { source, .. } => source.exit_code(),
            Self::Text(source) => source.exit_code(),
            Self::Hub(source) => source.exit_code(),
            _ => ExitCode::UserError,
        }
    }
}
