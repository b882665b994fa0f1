//! The header of a safetensors file, read as a stranger's bytes.
//!
//! A file is: the header's length as a little-endian u64, the header (JSON: tensor name to `dtype`, `shape`, `data_offsets`; `__metadata__`
//! to strings), then the tensors' bytes, which the offsets must cover without gap or overlap. Source: the format's description in the
//! repository `huggingface/safetensors`.

use crate::other_format::{is_lfs_pointer, other_format};
use crate::unique::UniqueMap;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use taper_diagnostics::Diagnose;

/// The longest header that is read, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More dimensions than any tensor of a model has.
const MAX_DIMENSIONS: usize = 16;
/// Bytes of the header's length.
const PREFIX: usize = 8;

/// Element types of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8 bits.
    U8,
    /// Signed 8 bits.
    I8,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// 8-bit float, 4 exponent bits.
    F8E4M3,
    /// Unsigned 16 bits.
    U16,
    /// Signed 16 bits.
    I16,
    /// Half precision.
    F16,
    /// Brain float.
    BF16,
    /// Unsigned 32 bits.
    U32,
    /// Signed 32 bits.
    I32,
    /// Single precision.
    F32,
    /// Unsigned 64 bits.
    U64,
    /// Signed 64 bits.
    I64,
    /// Double precision.
    F64,
}

impl Dtype {
    const NAMES: [(&'static str, Self); 15] = [
        ("BOOL", Self::Bool),
        ("U8", Self::U8),
        ("I8", Self::I8),
        ("F8_E5M2", Self::F8E5M2),
        ("F8_E4M3", Self::F8E4M3),
        ("U16", Self::U16),
        ("I16", Self::I16),
        ("F16", Self::F16),
        ("BF16", Self::BF16),
        ("U32", Self::U32),
        ("I32", Self::I32),
        ("F32", Self::F32),
        ("U64", Self::U64),
        ("I64", Self::I64),
        ("F64", Self::F64),
    ];

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E5M2 | Self::F8E4M3 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The name in the file.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, dtype)| *dtype == self).map_or("", |(name, _)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, dtype)| *dtype)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Row-major; `[]` for one number.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub range: Range<usize>,
}

/// What a file says of its tensors. Every range lies in the file and is as long as dtype and shape make it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Free text of whoever wrote the file, for example `format` = `pt`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// What is wrong with a file that should be safetensors.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SafetensorsError {
    /// A git-lfs pointer instead of the file that it points to.
    #[error("it is a git-lfs pointer of {bytes} bytes, not the file it points to")]
    LfsPointer {
        /// Bytes of the pointer.
        bytes: usize,
    },
    /// Another known format.
    #[error("it is {what}, not safetensors")]
    OtherFormat {
        /// What it is.
        what: &'static str,
    },
    /// Not even room for the header's length.
    #[error("it has {bytes} bytes, and the shortest safetensors file has 10")]
    TooShort {
        /// Bytes of the file.
        bytes: usize,
    },
    /// The header's length is over the limit.
    #[error("its header would be {length} bytes long, over the limit of {MAX_HEADER_BYTES}")]
    HeaderTooLong {
        /// What the file says.
        length: u64,
    },
    /// The header goes past the end of the file.
    #[error("it is cut off: the header ends at byte {end}, the file at {bytes}")]
    HeaderCutOff {
        /// The header's end.
        end: u64,
        /// Bytes of the file.
        bytes: usize,
    },
    /// The header is not the JSON it should be.
    #[error("its header is broken: {0}")]
    Json(String),
    /// An element type that is not known.
    #[error("tensor `{tensor}` has the unknown dtype `{dtype}`")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// What the file says.
        dtype: String,
    },
    /// A shape beyond all reason.
    #[error("tensor `{tensor}` has {dimensions} dimensions, over the limit of {MAX_DIMENSIONS}")]
    TooManyDimensions {
        /// The tensor.
        tensor: String,
        /// How many.
        dimensions: usize,
    },
    /// dtype and shape do not make the bytes that the offsets span.
    #[error("tensor `{tensor}` of {dtype} {shape:?} has data offsets {begin} to {end}, which do not fit")]
    WrongLength {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Where it would begin.
        begin: u64,
        /// Where it would end.
        end: u64,
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
    /// Bytes that belong to no tensor.
    #[error("{bytes} bytes before {before} belong to no tensor")]
    Hole {
        /// How many.
        bytes: usize,
        /// What follows them.
        before: String,
    },
}

impl Diagnose for SafetensorsError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::LfsPointer { .. } => "run `git lfs pull` in the repository it came from",
                Self::HeaderCutOff { .. } | Self::CutOff { .. } | Self::TooShort { .. } => {
                    "the download or copy did not finish: fetch the file again"
                }
                _ => "fetch the file again, or write it again with the safetensors library",
            }
            .into(),
        )
    }
}

impl Header {
    /// Read the header of a whole file, and check all of it against the file's length.
    ///
    /// # Errors
    /// When anything in it could lead a reader astray: see [`SafetensorsError`].
    pub fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        let json = header_text(file)?;
        let raw: RawHeader = serde_json::from_str(json).map_err(|e| SafetensorsError::Json(e.to_string()))?;
        let data_start = PREFIX + json.len();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in raw.tensors {
            let info = tensor.checked(&name, data_start, file.len())?;
            tensors.insert(name, info);
        }
        check_cover(&tensors, data_start, file.len())?;
        Ok(Self { metadata: raw.metadata.0, tensors })
    }
}

/// The JSON behind the length.
fn header_text(file: &[u8]) -> Result<&str, SafetensorsError> {
    if let Some(error) = of_another_format(file) {
        return Err(error);
    }
    let Some((length, rest)) = file.split_first_chunk::<PREFIX>() else {
        return Err(SafetensorsError::TooShort { bytes: file.len() });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(SafetensorsError::HeaderTooLong { length });
    }
    let Some(header) = rest.get(..length as usize) else {
        return Err(SafetensorsError::HeaderCutOff { end: PREFIX as u64 + length, bytes: file.len() });
    };
    if header.first() != Some(&b'{') {
        return Err(SafetensorsError::Json("it does not begin with `{`".into()));
    }
    std::str::from_utf8(header).map_err(|e| SafetensorsError::Json(e.to_string()))
}

/// Files that are often found under this name.
fn of_another_format(file: &[u8]) -> Option<SafetensorsError> {
    if is_lfs_pointer(file) {
        return Some(SafetensorsError::LfsPointer { bytes: file.len() });
    }
    // A length can look like the two bytes of a pickle; then the ninth byte opens the JSON.
    let plausible = file.get(PREFIX) == Some(&b'{');
    other_format(file).filter(|_| !plausible).map(|what| SafetensorsError::OtherFormat { what })
}

/// The tensors in the order of their bytes must follow each other without gap or overlap, to the end of the file.
fn check_cover(
    tensors: &BTreeMap<String, TensorInfo>,
    data_start: usize,
    file_len: usize,
) -> Result<(), SafetensorsError> {
    let mut order: Vec<(&String, &Range<usize>)> = tensors.iter().map(|(name, t)| (name, &t.range)).collect();
    order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut at = data_start;
    let mut last = None;
    for (name, range) in order {
        if range.start < at {
            let first = last.unwrap_or(name).clone();
            return Err(SafetensorsError::Overlap { first, second: name.clone() });
        }
        if range.start > at {
            return Err(SafetensorsError::Hole {
                bytes: range.start - at,
                before: format!("tensor `{name}`"),
            });
        }
        at = range.end;
        last = Some(name);
    }
    if at != file_len {
        return Err(SafetensorsError::Hole { bytes: file_len - at, before: "the end of the file".into() });
    }
    Ok(())
}

/// The header as it stands in the file.
struct RawHeader {
    metadata: UniqueMap<String>,
    tensors: BTreeMap<String, RawTensor>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn checked(self, name: &str, data_start: usize, file_len: usize) -> Result<TensorInfo, SafetensorsError> {
        let tensor = || name.escape_debug().to_string();
        let Some(dtype) = Dtype::parse(&self.dtype) else {
            let dtype = self.dtype.chars().take(32).collect::<String>().escape_debug().to_string();
            return Err(SafetensorsError::UnknownDtype { tensor: tensor(), dtype });
        };
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(SafetensorsError::TooManyDimensions {
                tensor: tensor(),
                dimensions: self.shape.len(),
            });
        }
        let (begin, end) = self.data_offsets;
        let bytes = self.shape.iter().try_fold(dtype.bytes() as u64, |product, &n| product.checked_mul(n));
        if bytes.is_none() || end.checked_sub(begin) != bytes {
            return Err(SafetensorsError::WrongLength {
                tensor: tensor(),
                dtype,
                shape: self.shape,
                begin,
                end,
            });
        }
        let Some(in_file) = end.checked_add(data_start as u64).filter(|&end| end <= file_len as u64) else {
            let end = end.saturating_add(data_start as u64);
            return Err(SafetensorsError::CutOff { tensor: tensor(), end, bytes: file_len });
        };
        // Both are at most the file's length, and a product that fits has factors that fit, or a zero among them.
        let range = data_start + begin as usize..in_file as usize;
        let shape = self.shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<usize>, _>>();
        match shape {
            Ok(shape) => Ok(TensorInfo { dtype, shape, range }),
            Err(_) => {
                Err(SafetensorsError::WrongLength { tensor: tensor(), dtype, shape: self.shape, begin, end })
            }
        }
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawHeader, A::Error> {
        let twice =
            |name: &str| serde::de::Error::custom(format!("`{}` is named twice", name.escape_debug()));
        let mut metadata = None;
        let mut tensors = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if tensors.contains_key(&name) || name == "__metadata__" && metadata.is_some() {
                access.next_value::<IgnoredAny>()?;
                return Err(twice(&name));
            }
            if name == "__metadata__" {
                // mlx writes null where it has nothing to say.
                metadata = Some(access.next_value::<Option<UniqueMap<String>>>()?.unwrap_or_default());
            } else {
                tensors.insert(name, access.next_value()?);
            }
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}

#[cfg(test)]
mod tests;
