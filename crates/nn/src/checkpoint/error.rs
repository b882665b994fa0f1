//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, Location};
use taper_hub::IndexError;
use taper_hub::gguf::GgufError;
use taper_hub::safetensors::{Dtype, SafetensorsError};
use taper_quant::{GgmlType, QuantError};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is no sound safetensors file.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SafetensorsError,
    },
    /// The index is broken.
    #[error("cannot read `{}`", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        source: IndexError,
    },
    /// The index and the shards do not agree.
    #[error("`{}` says that `{tensor}` lies in `{shard}`, and it does not", path.display())]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file that the index names.
        shard: String,
    },
    /// Two shards hold a tensor of one name.
    #[error("`{}` and `{}` both hold `{tensor}`", first.display(), second.display())]
    Twice {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor is not there.
    #[error("no tensor `{tensor}` in `{}`", path.display())]
    Missing {
        /// The tensor.
        tensor: String,
        /// The file, or the folder of several.
        path: PathBuf,
        /// The name nearest to it, or the first names.
        near: Option<String>,
    },
    /// A tensor has another shape than the model needs.
    #[error("tensor `{tensor}` is {given:?}, the model needs {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// As stored.
        given: Vec<usize>,
        /// As needed.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that no tensor here can hold.
    #[error("tensor `{tensor}` is stored as {dtype}, which is not read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// As stored.
        dtype: Dtype,
    },
    /// A vector is stored in blocks.
    #[error("tensor `{tensor}` is stored as {ggml_type}, and only matrices are read in blocks")]
    Blocks {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// As stored.
        ggml_type: GgmlType,
    },
    /// The state beside a quantised tensor does not fit it.
    #[error("the quantisation state of tensor `{tensor}` is broken: {reason}")]
    State {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The codes of a quantised tensor do not fit its shape.
    #[error("cannot read the quantised tensor `{tensor}`")]
    Quantized {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: QuantError,
    },
    /// A weight cannot be quantised while it is read.
    #[error("cannot quantise `{tensor}`")]
    NotQuantizable {
        /// The tensor.
        tensor: String,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: QuantError,
    },
    /// Weights that are quantised are to be quantised again.
    #[error("tensor `{tensor}` is quantised in its file, and it is to be quantised while loading")]
    QuantizedTwice {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
    },
    /// A GGUF file is no sound one.
    #[error("cannot read `{}`", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// Finite weights would become infinite.
    #[error("tensor `{tensor}` has weights up to {largest:e}, and f16 ends at 65504")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The largest absolute value.
        largest: f32,
    },
    /// The conversion failed.
    #[error("cannot convert tensor `{tensor}`")]
    Candle {
        /// The tensor.
        tensor: String,
        /// What candle says.
        source: candle_core::Error,
    },
}

impl Diagnose for CheckpointError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File { source, .. } => source.hint(),
            Self::Missing { near, .. } => near.clone(),
            Self::Index { .. } | Self::NotInShard { .. } | Self::Twice { .. } => {
                Some("the files are not of one model: copy or download all of them again".into())
            }
            Self::Shape { .. } => Some("`config.json` and the weights are not of one model".into()),
            Self::Dtype { .. } => Some(
                "weights are read from f32, bf16, f16, and the 4-bit and 8-bit layouts of bitsandbytes".into(),
            ),
            Self::Gguf { source, .. } => source.hint(),
            Self::Blocks { .. } | Self::State { .. } | Self::Quantized { .. } => {
                Some("take the file from its source again".into())
            }
            Self::NotQuantizable { .. } => Some(
                "another format fits: \"nf4\", \"fp4\" and \"int8\" take rows of any length, \"q8_0\" and \"q4_0\" multiples of 32".into(),
            ),
            Self::QuantizedTwice { .. } => Some(
                "remove `model.quantize` (or `--quantize`): the base is trained as it lies; or name the model it was quantised from".into(),
            ),
            Self::Overflow { .. } => Some("use bf16, which has the range of f32".into()),
            Self::Io(_) | Self::Candle { .. } => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::File { path, .. } | Self::Index { path, .. } | Self::Gguf { path, .. } => {
                Some(Location::file(path))
            }
            Self::NotInShard { path, tensor, .. }
            | Self::Missing { path, tensor, .. }
            | Self::Shape { path, tensor, .. }
            | Self::Dtype { path, tensor, .. }
            | Self::Blocks { path, tensor, .. }
            | Self::State { path, tensor, .. }
            | Self::Quantized { path, tensor, .. }
            | Self::NotQuantizable { path, tensor, .. }
            | Self::QuantizedTwice { path, tensor } => Some(Location::file(path).with_key(tensor)),
            _ => None,
        }
    }
}
