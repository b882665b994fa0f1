//! The weights of a model by name, read from mapped files: a folder of safetensors, plain or in bitsandbytes' layout, or one GGUF file.
//!
//! Names, row order and values are those of the Hub's files whatever the file is, so that nobody else needs to know.

mod bitsandbytes;
mod error;
mod gguf;
#[cfg(test)]
mod tests;

pub use error::CheckpointError;

use crate::FrozenWeight;
use candle_core::{DType, Device, Tensor};
use gguf::rows_in_hub_order;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taper_diagnostics::{did_you_mean, list_names};
use taper_hub::ShardIndex;
use taper_hub::gguf::Undo;
use taper_hub::safetensors::{Dtype, Header};
use taper_kernels::MappedFile;
use taper_quant::{BlockFormat, Bytes, GgmlType, QuantizedTensor};

/// The tensors of one or more files.
///
/// Opening reads the headers alone. A dense tensor's bytes are read when it is asked for, into memory of its own; a quantised one's stay in
/// the mapped file.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Arc<MappedFile>,
}

/// How and where a tensor lies.
#[derive(Debug)]
struct Stored {
    shard: usize,
    element: Element,
    shape: Vec<usize>,
    range: Range<usize>,
    /// What makes its rows and values those of the Hub's file.
    undo: Undo,
}

/// What the elements of a matrix are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFormat {
    /// Floats by themselves.
    Dense(DType),
    /// Codes in blocks.
    Blocks(BlockFormat),
}

#[derive(Debug, Clone, Copy)]
enum Element {
    Plain(Dtype),
    /// One of the types that are quantised.
    Blocks(GgmlType),
}

impl Checkpoint {
    /// Open safetensors files, and hold them against their index when there is one.
    ///
    /// # Errors
    /// When a file is not sound, two hold a tensor of one name, or a tensor is not where the index says.
    pub fn open(files: &[PathBuf], index: Option<&Path>) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { shards: Vec::with_capacity(files.len()), tensors: BTreeMap::new() };
        for path in files {
            checkpoint.add_safetensors(path)?;
        }
        if let Some(path) = index {
            checkpoint.check_index(path)?;
        }
        Ok(checkpoint)
    }

    fn add_safetensors(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes())
            .map_err(|source| CheckpointError::File { path: path.into(), source })?;
        let shard = self.shards.len();
        for (name, info) in header.tensors {
            if let Some(first) = self.tensors.get(&name) {
                let first = self.shards[first.shard].path.clone();
                return Err(CheckpointError::Twice { tensor: name, first, second: path.into() });
            }
            let (element, undo) = (Element::Plain(info.dtype), Undo::Nothing);
            let stored = Stored { shard, element, shape: info.shape, range: info.range, undo };
            self.tensors.insert(name, stored);
        }
        self.shards.push(Shard { path: path.into(), map: Arc::new(map) });
        Ok(())
    }

    fn check_index(&self, path: &Path) -> Result<(), CheckpointError> {
        let text = fs_err::read_to_string(path)?;
        let index = ShardIndex::parse(&text)
            .map_err(|source| CheckpointError::Index { path: path.into(), source })?;
        for (tensor, shard) in index.weight_map {
            let there = self.tensors.get(&tensor).map(|stored| &self.shards[stored.shard].path);
            if there.and_then(|p| p.file_name()).is_none_or(|name| name != shard.as_str()) {
                return Err(CheckpointError::NotInShard { path: path.into(), tensor, shard });
            }
        }
        Ok(())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Hold the shape of a dense tensor against what a model needs.
    ///
    /// # Errors
    /// When it is not there or has another shape.
    pub fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<(), CheckpointError> {
        let stored = self.find(name)?;
        if stored.shape == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            tensor: name.into(),
            path: self.path_of(stored).into(),
            given: stored.shape.clone(),
            expected: expected.into(),
        })
    }

    /// Whether two tensors are stored alike, byte for byte.
    ///
    /// # Errors
    /// When one is not there.
    pub fn same_bytes(&self, one: &str, other: &str) -> Result<bool, CheckpointError> {
        Ok(self.bytes(self.find(one)?) == self.bytes(self.find(other)?))
    }

    /// A matrix as a frozen weight: quantised where the file has it so, else dense in `dtype`, or in the type it is stored in.
    ///
    /// # Errors
    /// When it is not there, has another shape, or its quantisation state is broken; and as [`Self::weight`].
    pub fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: Option<DType>,
    ) -> Result<FrozenWeight, CheckpointError> {
        if let Some(quantized) = bitsandbytes::read(self, name, shape)? {
            return Ok(FrozenWeight::quantized(quantized));
        }
        self.expect_shape(name, &shape)?;
        let stored = self.find(name)?;
        if let Element::Blocks(ggml_type) = stored.element {
            let quantized = self.blocks(name, stored, shape, ggml_type)?;
            return Ok(FrozenWeight::quantized(quantized));
        }
        let dense = self.weight(name, dtype)?;
        FrozenWeight::dense(&dense).map_err(|source| CheckpointError::Candle { tensor: name.into(), source })
    }

    /// How a matrix is held when [`Self::matrix`] reads it in the type it is stored in; `None` when it is not there or cannot be read.
    pub fn format(&self, name: &str) -> Option<StoredFormat> {
        if let Some(format) = bitsandbytes::format(self, name) {
            return Some(StoredFormat::Blocks(format));
        }
        match self.tensors.get(name)?.element {
            Element::Plain(Dtype::F32 | Dtype::F64) => Some(StoredFormat::Dense(DType::F32)),
            Element::Plain(Dtype::BF16) => Some(StoredFormat::Dense(DType::BF16)),
            Element::Plain(Dtype::F16) => Some(StoredFormat::Dense(DType::F16)),
            Element::Plain(_) => None,
            Element::Blocks(ggml_type) => Some(StoredFormat::Blocks(BlockFormat::Ggml(ggml_type))),
        }
    }

    /// Bytes in the files of the largest tensor that is copied out of them: those in blocks are not.
    pub fn largest_copied_bytes(&self) -> usize {
        let copied = self.tensors.values().filter(|stored| matches!(stored.element, Element::Plain(_)));
        copied.map(|stored| stored.range.len()).max().unwrap_or(0)
    }

    /// The names that belong to the quantisation state of a tensor.
    pub fn state_of(&self, name: &str) -> Vec<String> {
        bitsandbytes::state_names(self, name)
    }

    /// A weight in the type it is stored in, or in `dtype` when one is given; f64 becomes f32.
    ///
    /// # Errors
    /// When it is not there or no floating-point tensor, and when a finite weight would become infinite in f16.
    pub fn weight(&self, name: &str, dtype: Option<DType>) -> Result<Tensor, CheckpointError> {
        let stored = self.find(name)?;
        let path = || self.path_of(stored).into();
        let held = match stored.element {
            Element::Plain(Dtype::F32) => DType::F32,
            Element::Plain(Dtype::F64) => DType::F64,
            Element::Plain(Dtype::BF16) => DType::BF16,
            Element::Plain(Dtype::F16) => DType::F16,
            Element::Plain(dtype) => {
                return Err(CheckpointError::Dtype { tensor: name.into(), path: path(), dtype });
            }
            Element::Blocks(ggml_type) => {
                return Err(CheckpointError::Blocks { tensor: name.into(), path: path(), ggml_type });
            }
        };
        let bytes = self.bytes_in_hub_order(stored);
        let tensor = Tensor::from_raw_buffer(&bytes, held, &stored.shape, &Device::Cpu)
            .and_then(|tensor| if stored.undo == Undo::AddedOne { tensor - 1.0 } else { Ok(tensor) })
            .map_err(|source| CheckpointError::Candle { tensor: name.into(), source })?;
        self.release(stored);
        let wanted = dtype.unwrap_or(if held == DType::F64 { DType::F32 } else { held });
        converted(name, &tensor, wanted)
    }

    /// A matrix in blocks, as it lies; with its rows in another order it is a copy.
    fn blocks(
        &self,
        name: &str,
        stored: &Stored,
        [rows, columns]: [usize; 2],
        ggml_type: GgmlType,
    ) -> Result<QuantizedTensor, CheckpointError> {
        let bytes = match self.bytes_in_hub_order(stored) {
            Cow::Owned(reordered) => {
                self.release(stored);
                Bytes::new(reordered)
            }
            Cow::Borrowed(_) => self.mapped(stored),
        };
        QuantizedTensor::ggml(rows, columns, ggml_type, bytes)
            .map_err(|source| self.not_quantized(name, stored, source))
    }

    /// The bytes of a tensor where they lie, for as long as somebody holds them.
    fn mapped(&self, stored: &Stored) -> Bytes {
        let map = Arc::clone(&self.shards[stored.shard].map);
        Bytes::part_of(map, stored.range.clone()).unwrap_or_else(|| Bytes::new(Vec::new()))
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.shards[stored.shard].map.bytes()[stored.range.clone()]
    }

    fn bytes_in_hub_order(&self, stored: &Stored) -> Cow<'_, [u8]> {
        let bytes = self.bytes(stored);
        match stored.undo {
            Undo::RotaryRows { heads } => rows_in_hub_order(bytes, stored.shape[0], heads),
            Undo::Nothing | Undo::AddedOne => Cow::Borrowed(bytes),
        }
    }

    /// What was copied need not stay in memory twice.
    fn release(&self, stored: &Stored) {
        self.shards[stored.shard].map.release(stored.range.clone());
    }

    fn path_of(&self, stored: &Stored) -> &Path {
        &self.shards[stored.shard].path
    }

    fn not_quantized(&self, name: &str, stored: &Stored, source: taper_quant::QuantError) -> CheckpointError {
        CheckpointError::Quantized { tensor: name.into(), path: self.path_of(stored).into(), source }
    }

    fn find(&self, name: &str) -> Result<&Stored, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> CheckpointError {
        let near = match did_you_mean(name, self.names()) {
            _ if self.tensors.is_empty() => "it holds no tensor at all".into(),
            Some(near) => format!("the nearest name is `{near}`"),
            None => format!("it holds {}", list_names(self.names(), 5)),
        };
        let path = match self.shards.as_slice() {
            [one] => one.path.clone(),
            several => {
                several.first().and_then(|s| s.path.parent()).map(Path::to_path_buf).unwrap_or_default()
            }
        };
        CheckpointError::Missing { tensor: name.into(), path, near: Some(near) }
    }
}

/// The tensor in another type; a finite weight must not become infinite.
fn converted(name: &str, stored: &Tensor, dtype: DType) -> Result<Tensor, CheckpointError> {
    let narrows = dtype == DType::F16 && stored.dtype() != DType::F16;
    let converted = (|| {
        let largest = match narrows && stored.elem_count() > 0 {
            true => stored.to_dtype(DType::F32)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?,
            false => 0.0,
        };
        Ok((largest, stored.to_dtype(dtype)?))
    })();
    match converted {
        // 65520 is where rounding to nearest reaches infinity.
        Ok((largest, _)) if largest >= 65520.0 && largest.is_finite() => {
            Err(CheckpointError::Overflow { tensor: name.into(), largest })
        }
        Ok((_, tensor)) => Ok(tensor),
        Err(source) => Err(CheckpointError::Candle { tensor: name.into(), source }),
    }
}
