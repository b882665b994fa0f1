//! GGUF: the header of a file, what it says in the Hub's words, and files that are written.
//!
//! A file is: `GGUF`, the version, the numbers of tensors and of metadata, the metadata (key, type, value), the tensors (name, sizes, type,
//! offset), padding up to the alignment, the tensors' bytes. Source: `docs/gguf.md` in the repository `ggml-org/ggml`.
//!
//! Nothing else in this workspace knows GGUF's names: from the metadata the texts of `config.json`, `tokenizer.json` and so on are made
//! ([`Companions`]), and the tensors are shown under the names that a checkpoint on the Hub has ([`hub_tensors`]).

mod architecture;
mod companions;
mod config;
mod error;
mod metadata;
mod read;
mod tensors;
mod tokenizer;
mod write;

pub use architecture::Architecture;
pub use companions::{Companions, RotaryFactors, read_companions, read_header};
pub use error::GgufError;
pub use metadata::{Array, Metadata, NumberType, Numbers, Texts, Value};
pub use read::MAX_HEADER_BYTES;
pub use tensors::{HubTensor, StoredName, Undo, hub_tensors, stored_name, unpermuted_row};
pub use tokenizer::{
    TokenizerParts, TokenizerWriteError, WrittenTokenizer, is_byte_token, strips_right, tokenizer_keys,
};
pub use write::{GgufNumber, GgufWriter, Keys, PlannedTensor, WriteError};

use crate::other_format::{is_lfs_pointer, other_format};
use read::{Reader, shown};
use std::collections::BTreeMap;
use std::ops::Range;
use taper_quant::GgmlType;

const MAGIC: &[u8] = b"GGUF";
/// How the names of such files end; compared without case.
const ENDING: &str = ".gguf";
/// The most keys; honest files have some dozens.
const MAX_KEYS: u64 = 1 << 16;
/// The most tensors; the largest mixtures of experts have some ten thousands.
const MAX_TENSORS: u64 = 1 << 17;
/// The most dimensions, GGML's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensors may begin, where the file does not say.
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// Row-major: the sizes of the file in reverse. `[]` for one number.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub range: Range<usize>,
}

/// What a file says of itself. Every range lies in the file, is as long as type and shape make it, and overlaps no other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    /// 2 or 3, which differ in nothing that is read here.
    pub version: u32,
    /// What describes the model and its tokenizer.
    pub metadata: Metadata,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Read the header of a whole file, and check all of it against the file's length.
    ///
    /// # Errors
    /// When anything in it could lead a reader astray: see [`GgufError`].
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        Self::parse_start(file, file.len())
    }

    /// [`Self::parse`] for the beginning of a file of `file_len` bytes. A header that goes on behind it is [`GgufError::HeaderCutOff`] with an
    /// `end` that the file has.
    fn parse_start(start: &[u8], file_len: usize) -> Result<Self, GgufError> {
        refuse_other_formats(start)?;
        let mut reader = Reader::new(start, file_len, MAGIC.len());
        let version = reader.u32(|| "the version".into())?;
        match version {
            2 | 3 => {}
            version if version & 0xffff == 0 && version != 0 => return Err(GgufError::BigEndian),
            version => return Err(GgufError::Version { version }),
        }
        // A tensor takes a length, a name, a number of dimensions, a type and an offset; a key a length, a type and a byte.
        let tensor_count = reader.count("tensors", 24, MAX_TENSORS)?;
        let key_count = reader.count("metadata keys", 13, MAX_KEYS)?;
        let metadata = read_metadata(&mut reader, key_count)?;
        if let Some(count) = metadata.size("split.count")?.filter(|count| *count > 1) {
            return Err(GgufError::Split { count });
        }
        let alignment = alignment(&metadata)?;
        let mut raw = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = RawTensor::read(&mut reader)?;
            if raw.insert(name.to_owned(), tensor).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: shown(name) });
            }
        }
        let data_start = reader.at().next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, tensor) in raw {
            let info = tensor.checked(&name, data_start, alignment, file_len)?;
            tensors.insert(name, info);
        }
        refuse_overlap(&tensors)?;
        Ok(Self { version, metadata, tensors })
    }
}

/// Whether a path's name says that it is a GGUF file.
pub(crate) fn is_gguf_name(name: &str) -> bool {
    let tail = name.len().checked_sub(ENDING.len()).and_then(|at| name.get(at..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(ENDING))
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.key()?;
        let value = reader.value(key)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(GgufError::DuplicateKey { key: shown(key) });
        }
    }
    Ok(Metadata(metadata))
}

fn alignment(metadata: &Metadata) -> Result<usize, GgufError> {
    const KEY: &str = "general.alignment";
    let Some(given) = metadata.size(KEY)? else { return Ok(DEFAULT_ALIGNMENT) };
    if !given.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&given) {
        return Err(GgufError::Value {
            key: KEY.into(),
            expected: format!("a power of two from 8 to {MAX_ALIGNMENT}"),
            given: given.to_string(),
        });
    }
    Ok(given as usize)
}

/// Files that are often found under this name.
fn refuse_other_formats(file: &[u8]) -> Result<(), GgufError> {
    if is_lfs_pointer(file) {
        return Err(GgufError::LfsPointer { bytes: file.len() });
    }
    if file.starts_with(MAGIC) {
        return Ok(());
    }
    let what = if file.is_empty() {
        "empty"
    } else if file.get(8) == Some(&b'{') {
        "a safetensors file"
    } else {
        other_format(file).unwrap_or("something else")
    };
    Err(GgufError::OtherFormat { what })
}

/// A tensor's entry as it stands in the file.
struct RawTensor {
    /// The file's order: the row's length first.
    sizes: Vec<u64>,
    type_id: u32,
    offset: u64,
}

impl RawTensor {
    fn read<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, Self), GgufError> {
        let name = reader.name()?;
        let what = || format!("the entry of tensor `{}`", shown(name));
        let dimensions = reader.u32(what)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(GgufError::TooMuch {
                what: format!("the number of dimensions of tensor `{}`", shown(name)),
                given: dimensions.into(),
                limit: MAX_DIMENSIONS.into(),
            });
        }
        let sizes = (0..dimensions).map(|_| reader.u64(what)).collect::<Result<_, _>>()?;
        Ok((name, Self { sizes, type_id: reader.u32(what)?, offset: reader.u64(what)? }))
    }

    fn checked(
        mut self,
        name: &str,
        data_start: usize,
        alignment: usize,
        file_len: usize,
    ) -> Result<TensorInfo, GgufError> {
        let tensor = || shown(name);
        let ggml_type = known_type(self.type_id, tensor)?;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned { tensor: tensor(), offset: self.offset, alignment });
        }
        let row = self.sizes.first().copied().unwrap_or(1);
        let elements = self.sizes.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let bytes = elements
            // Rows are whole blocks, and no size is 0.
            .filter(|&n| n > 0 && ggml_type.bytes_of(row).is_some())
            .and_then(|n| ggml_type.bytes_of(n));
        self.sizes.reverse();
        let shape = self.sizes.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<usize>, _>>();
        let (Some(bytes), Ok(shape)) = (bytes, shape) else {
            return Err(GgufError::Shape { tensor: tensor(), shape: self.sizes, ggml_type });
        };
        let start = self.offset.saturating_add(data_start as u64);
        let end = start.saturating_add(bytes);
        if end > file_len as u64 {
            return Err(GgufError::CutOff { tensor: tensor(), end, bytes: file_len });
        }
        // Both are at most the file's length.
        Ok(TensorInfo { ggml_type, shape, range: start as usize..end as usize })
    }
}

/// GGML's numbers that are not read, by the names people know from file names. Source: the `ggml_type` enumeration of GGML.
const UNREAD_TYPES: [(u32, &str); 21] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn known_type(id: u32, tensor: impl Fn() -> String) -> Result<GgmlType, GgufError> {
    match (GgmlType::from_id(id), UNREAD_TYPES.iter().find(|(unread, _)| *unread == id)) {
        (Some(ggml_type), _) => Ok(ggml_type),
        (None, Some((_, name))) => Err(GgufError::UnsupportedType { tensor: tensor(), name }),
        (None, None) => Err(GgufError::UnknownType { tensor: tensor(), id }),
    }
}

fn refuse_overlap(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), GgufError> {
    let mut order: Vec<(&String, &Range<usize>)> = tensors.iter().map(|(name, t)| (name, &t.range)).collect();
    order.sort_by_key(|(_, range)| (range.start, range.end));
    for pair in order.windows(2) {
        if let [(first, front), (second, behind)] = pair
            && behind.start < front.end
        {
            return Err(GgufError::Overlap { first: shown(first), second: shown(second) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
