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
    /// `taper.json` is not what it should be.
    #[error("`{}` is not the contract of an adapter: {reason}", path.display())]
    Contract {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A golden prompt that cannot be computed.
    #[error(
        "a golden prompt of the contract has {tokens} tokens, or ids that the model's {vocab_size} words do not have"
    )]
    GoldenPrompt {
        /// Its tokens.
        tokens: usize,
        /// Words of the model.
        vocab_size: usize,
    },
    /// A file of the base or the data.
    #[error(transparent)]
    Files(taper_hub::Error),
    /// The tokenizer.
    #[error(transparent)]
    Text(taper_text::Error),
    /// A type that models are not written in.
    #[error("the base's type `{given}` is not one that models are written in")]
    Dtype {
        /// As `config.json` says.
        given: String,
    },
    /// A part of an adapter that mlx-lm's layout cannot say.
    #[error("`{tensor}` has no place in an adapter of mlx-lm: {why}")]
    NotInMlx {
        /// The tensor.
        tensor: String,
        /// Why.
        why: &'static str,
    },
    /// The adapter's tensors cannot be written.
    #[error("failed to lay out the adapter")]
    Adapter {
        /// Why.
        source: taper_peft::Error,
    },
    /// A proof without a position.
    #[error("there is no token to prove the export on")]
    NothingToProve,
    /// What was written is not what was trained.
    #[error("the written model differs from the trained one: {0}")]
    Proof(Box<ExportProof>),
    /// What was written is the trained model, but rounding took what the training gave.
    #[error("the written model does not keep enough of what the adapter gained: {0}")]
    GainLost(Box<ExportProof>),
    /// A bias of the adapter in a layer that has none.
    #[error("the adapter has a bias for `{path}`, and the model has no place for one there")]
    BiasWithoutPlace {
        /// The layer.
        path: String,
    },
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
            Self::Contract { .. } => Some(
                "copy the adapter's folder again; without the file the adapter loads, and nothing is checked"
                    .into(),
            ),
            Self::GoldenPrompt { .. } => Some("the adapter belongs to another base".into()),
            Self::BiasWithoutPlace { .. } => {
                Some("export the adapter itself (\"peft\"), or train without `adapter.lora_bias`".into())
            }
            Self::NotInMlx { .. } => {
                Some("export \"merged\", and convert the model with `mlx_lm.convert`".into())
            }
            Self::Adapter { source } => source.hint(),
            Self::Files(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::Proof(_) => Some("this is a fault of taper: keep the files and report it".into()),
            Self::GainLost(proof) => Some(format!(
                "more bits keep more: {}; the adapter itself (\"peft\") loses nothing; or ask for less with `export.min_gain_kept`",
                match proof.kl_limit {
                    Some(_) => "set `export.merged_dtype` to \"f32\" (or \"f16\" in place of \"bf16\")",
                    None => "take a larger quantisation type, for example q8_0, or f16",
                }
            )),
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Gguf(source) => source.location(),
            Self::Config { path, .. } | Self::Contract { path, .. } => Some(Location::file(path)),
            Self::Files(error) => error.location(),
            Self::Text(error) => error.location(),
            Self::NotFinite { tensor, .. } | Self::NotInMlx { tensor, .. } => {
                Some(Location::default().with_key(tensor))
            }
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Gguf(source) => source.exit_code(),
            Self::Proof(_) | Self::Arithmetic { .. } => ExitCode::Fault,
            Self::GainLost(_) => ExitCode::GateFailed,
            _ => ExitCode::UserError,
        }
    }
}
