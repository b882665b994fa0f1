//! What can be wrong with a GGUF file.

use taper_diagnostics::{Diagnose, list_names};
use taper_quant::GgmlType;

/// What is wrong with a file that should be a model in GGUF.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GgufError {
    /// A git-lfs pointer instead of the file that it points to.
    #[error("it is a git-lfs pointer of {bytes} bytes, not the file it points to")]
    LfsPointer {
        /// Bytes of the pointer.
        bytes: usize,
    },
    /// Another known format, or none that is known.
    #[error("it is {what}, not GGUF")]
    OtherFormat {
        /// What it is.
        what: &'static str,
    },
    /// Numbers with the large end first.
    #[error("it is a big-endian GGUF file, and only little-endian ones are read")]
    BigEndian,
    /// A version that is not read.
    #[error("it is GGUF version {version}, and read are 2 and 3")]
    Version {
        /// What the file says.
        version: u32,
    },
    /// The header goes past the end of the file.
    #[error("it is cut off or broken: {what} would end at byte {end}, the file ends at {bytes}")]
    HeaderCutOff {
        /// What was being read.
        what: String,
        /// Its end.
        end: u64,
        /// Bytes of the file.
        bytes: usize,
    },
    /// More of something than any honest file has.
    #[error("{what} is {given}, over the limit of {limit}")]
    TooMuch {
        /// What was counted or measured.
        what: String,
        /// What the file says.
        given: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8 text")]
    NotText {
        /// What it should be.
        what: String,
    },
    /// A value of a type that the format does not have.
    #[error("metadata `{key}` has a value of the unknown type {id}")]
    ValueType {
        /// The key.
        key: String,
        /// The number of the type.
        id: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("metadata `{key}` holds a truth value of {given}, wanted 0 or 1")]
    Truth {
        /// The key.
        key: String,
        /// The byte.
        given: u8,
    },
    /// A key that comes twice.
    #[error("metadata `{key}` is given twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor that comes twice.
    #[error("tensor `{tensor}` is listed twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// Sizes that make no tensor of the type.
    #[error("tensor `{tensor}` has the shape {shape:?}, which makes no tensor of {ggml_type}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Row-major.
        shape: Vec<u64>,
        /// Its type.
        ggml_type: GgmlType,
    },
    /// An element type without a name.
    #[error("tensor `{tensor}` has the unknown type {id}")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The number of the type.
        id: u32,
    },
    /// An element type that is known and not read.
    #[error("tensor `{tensor}` is stored as {name}, which is not supported")]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// GGML's name of the type.
        name: &'static str,
    },
    /// An offset between the places where tensors may begin.
    #[error(
        "tensor `{tensor}` begins at offset {offset}, which is no multiple of the alignment, {alignment}"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// From the start of the tensors' bytes.
        offset: u64,
        /// The file's alignment in bytes.
        alignment: usize,
    },
    /// A tensor goes past the end of the file.
    #[error("it is cut off: tensor `{tensor}` ends at byte {end}, the file at {bytes}")]
    CutOff {
        /// The tensor.
        tensor: String,
        /// Its end, from the start of the file.
        end: u64,
        /// Bytes of the file.
        bytes: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The one in front.
        first: String,
        /// The one behind.
        second: String,
    },
    /// One file of several.
    #[error("it is one of {count} files that a model was split into, and split models are not read")]
    Split {
        /// How many files there are.
        count: u64,
    },
    /// Metadata that must be there.
    #[error("metadata `{key}` is missing, wanted {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Metadata of another type or out of range.
    #[error("metadata `{key}` is {given}, wanted {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        given: String,
    },
    /// Not the weights of a language model.
    #[error("it holds {what}, not a whole model")]
    NotAModel {
        /// What it holds.
        what: String,
    },
    /// An architecture that is not read.
    #[error(
        "it holds a model of the architecture `{given}`, supported are {}",
        list_names(known, usize::MAX)
    )]
    Architecture {
        /// `general.architecture`.
        given: String,
        /// The names that are read.
        known: Vec<String>,
    },
    /// A tensor that the architecture does not have.
    #[error("tensor `{tensor}` is not known in a model of the architecture `{architecture}`")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor that does not have the sizes that the metadata asks for.
    #[error("tensor `{tensor}` has the shape {shape:?}, wanted {expected}")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// Row-major.
        shape: Vec<usize>,
        /// What was wanted.
        expected: String,
    },
    /// A kind of tokenizer that is not made again.
    #[error("`{key}` is `{given}`, supported are {}", list_names(known, usize::MAX))]
    Tokenizer {
        /// The key that names the kind.
        key: &'static str,
        /// What it says.
        given: String,
        /// What is supported.
        known: Vec<String>,
    },
}

impl Diagnose for GgufError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::LfsPointer { .. } => "run `git lfs pull` in the repository it came from",
            Self::HeaderCutOff { .. } | Self::CutOff { .. } => {
                "the download or copy did not finish: fetch the file again"
            }
            Self::BigEndian | Self::Version { .. } => "convert the model again with a current llama.cpp",
            Self::UnsupportedType { .. } | Self::UnknownType { .. } => {
                "take a file in Q8_0, Q6_K, Q5_K_M, Q4_K_M, F16 or BF16 of the same model"
            }
            Self::Split { .. } => "join the files with llama.cpp's `llama-gguf-split --merge`",
            Self::NotAModel { .. } => "name the file that holds the model itself",
            Self::Architecture { .. } | Self::Tokenizer { .. } | Self::UnknownTensor { .. } => {
                "take the folder or hub id that the GGUF file was made from, if its `model_type` is supported"
            }
            Self::OtherFormat { .. } => "give the file that llama.cpp wrote",
            _ => "fetch the file again, or make it again with llama.cpp's converter",
        };
        Some(text.into())
    }
}
