//! Named tensors of f32 or bytes in a safetensors file.

use crate::error::{Error, Result};
use fs_err as fs;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use taper_hub::safetensors::{self as stored, Header};

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct NamedTensor<'a> {
    /// Its key in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: TensorValues<'a>,
}

/// Elements of a tensor.
#[derive(Debug, Clone)]
pub enum TensorValues<'a> {
    /// f32.
    F32(Cow<'a, [f32]>),
    /// Codes.
    U8(Cow<'a, [u8]>),
}

impl From<Vec<f32>> for TensorValues<'_> {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values.into())
    }
}

impl<'a> From<&'a Vec<f32>> for TensorValues<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values.into())
    }
}

impl From<Vec<u8>> for TensorValues<'_> {
    fn from(values: Vec<u8>) -> Self {
        Self::U8(values.into())
    }
}

impl View for &NamedTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            TensorValues::F32(_) => Dtype::F32,
            TensorValues::U8(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            TensorValues::F32(values) => Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            TensorValues::U8(values) => Cow::Borrowed(values),
        }
    }

    fn data_len(&self) -> usize {
        match &self.values {
            TensorValues::F32(values) => 4 * values.len(),
            TensorValues::U8(values) => values.len(),
        }
    }
}

/// Write `path`, with the metadata that Hugging Face's tools ask for. Not atomic: the folder around it is.
///
/// # Errors
/// What the disk says.
pub(crate) fn write(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|t| (t.name.clone(), t));
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| Error::Disk {
        doing: "write",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

/// A file that was read whole.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Header,
}

impl TensorFile {
    /// Read `path` and check its header.
    ///
    /// # Errors
    /// When it cannot be read or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes =
            fs::read(path).map_err(|source| Error::Disk { doing: "read", path: path.to_owned(), source })?;
        let header = Header::parse(&bytes)
            .map_err(|error| Error::Checkpoint { path: path.to_owned(), what: error.to_string() })?;
        Ok(Self { path: path.to_owned(), bytes, header })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The elements of a tensor.
    ///
    /// # Errors
    /// When there is none of that name, or it is not f32 of that shape.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let words = self.data(name, shape, stored::Dtype::F32)?.as_chunks::<4>().0;
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// The same of a tensor of bytes.
    ///
    /// # Errors
    /// When there is none of that name, or it is not u8 of that shape.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        Ok(self.data(name, shape, stored::Dtype::U8)?.to_vec())
    }

    fn data(&self, name: &str, shape: &[usize], dtype: stored::Dtype) -> Result<&[u8]> {
        let fault = |what| Error::Checkpoint { path: self.path.clone(), what };
        let Some(info) = self.header.tensors.get(name) else {
            return Err(fault(format!("there is no `{name}`")));
        };
        if info.dtype != dtype || info.shape != shape {
            let wanted = format!("{dtype:?}").to_lowercase();
            let what = format!("`{name}` is {:?} of {:?}, not {wanted} of {shape:?}", info.shape, info.dtype);
            return Err(fault(what));
        }
        Ok(&self.bytes[info.range.clone()])
    }
}
