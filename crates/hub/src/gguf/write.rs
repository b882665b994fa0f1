//! GGUF files written tensor by tensor: version 3, little-endian, as `docs/gguf.md` in the repository `ggml-org/ggml` has them.
//!
//! What a file will hold is planned first, so that the header stands before the first tensor is made; then each tensor is written at its
//! place, in any order, and memory holds one of them. The file appears under its name when it is whole (invariant 9).

use super::metadata::{Array, NumberType, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS};
use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use taper_diagnostics::{AtomicFile, Diagnose, ExitCode};
use taper_quant::GgmlType;

const VERSION: u32 = 3;
/// The longest name of a tensor: llama.cpp keeps 64 bytes and ends them with a zero.
const MAX_NAME_BYTES: usize = 63;
/// The longest key, the format's own limit.
const MAX_KEY_BYTES: usize = 65_535;
/// The numbers of the two types that are not of fixed size.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Why a GGUF file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A key that the format cannot hold.
    #[error("metadata key `{key}` is empty, longer than {MAX_KEY_BYTES} bytes, or given twice")]
    Key {
        /// The key.
        key: String,
    },
    /// A name that llama.cpp cuts off.
    #[error("tensor name `{tensor}` has {} bytes, and GGUF files have room for 1 to {MAX_NAME_BYTES}", tensor.len())]
    Name {
        /// The name.
        tensor: String,
    },
    /// Sizes that make no tensor of the type.
    #[error("tensor `{tensor}` of shape {shape:?} cannot be stored as {ggml_type}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Row-major.
        shape: Vec<usize>,
        /// Its type.
        ggml_type: GgmlType,
    },
    /// A tensor that is planned twice, or written twice.
    #[error("tensor `{tensor}` comes twice")]
    Twice {
        /// The tensor.
        tensor: String,
    },
    /// A tensor, or a part of one, that was not planned like this.
    #[error(
        "tensor `{tensor}` is written as part {part} of {parts} in {given} bytes, planned were {planned} bytes in all"
    )]
    Unplanned {
        /// The tensor.
        tensor: String,
        /// Which part.
        part: usize,
        /// Of how many.
        parts: usize,
        /// Bytes given.
        given: usize,
        /// Bytes planned for the whole; 0 for a tensor that is in no plan.
        planned: u64,
    },
    /// A planned tensor that nobody wrote.
    #[error("tensor `{tensor}` was planned and not written in full")]
    Missing {
        /// The tensor.
        tensor: String,
    },
    /// The disk failed.
    #[error("failed to write the file")]
    Io(#[from] io::Error),
}

impl Diagnose for WriteError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io(_) | Self::Name { .. } | Self::Shape { .. } | Self::Key { .. } => ExitCode::UserError,
            // Who plans and writes is this program.
            Self::Twice { .. } | Self::Unplanned { .. } | Self::Missing { .. } => ExitCode::Fault,
        }
    }
}

/// A number that a file's metadata can hold, of the width it has in the file.
pub trait GgufNumber: Copy {
    /// Its type.
    const TYPE: NumberType;

    /// Its bytes as they lie in the file.
    fn put(self, bytes: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($rust:ty => $gguf:ident),*) => {
        $(impl GgufNumber for $rust {
            const TYPE: NumberType = NumberType::$gguf;

            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
        })*
    };
}

numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

impl GgufNumber for bool {
    const TYPE: NumberType = NumberType::Bool;

    fn put(self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self));
    }
}

/// Metadata to be written, in the order given; a key that is given again takes the new value at its old place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<(String, Vec<u8>)>);

impl Keys {
    /// No key.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number or a truth value.
    pub fn number<N: GgufNumber>(&mut self, key: &str, value: N) {
        let mut bytes = N::TYPE.id().to_le_bytes().to_vec();
        value.put(&mut bytes);
        self.put(key, bytes);
    }

    /// Many numbers or truth values.
    pub fn numbers<N: GgufNumber>(&mut self, key: &str, values: &[N]) {
        let mut bytes = array_head(N::TYPE.id(), values.len());
        values.iter().for_each(|value| value.put(&mut bytes));
        self.put(key, bytes);
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) {
        let mut bytes = TEXT.to_le_bytes().to_vec();
        put_text(&mut bytes, value);
        self.put(key, bytes);
    }

    /// Many texts.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, values: impl ExactSizeIterator<Item = T>) {
        let mut bytes = array_head(TEXT, values.len());
        values.for_each(|value| put_text(&mut bytes, value.as_ref()));
        self.put(key, bytes);
    }

    /// A value as it was read from another file. A whole number by itself gets 32 bits where they hold it, which is what llama.cpp asks for
    /// wherever it asks for one.
    pub fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::Unsigned(n) => match u32::try_from(*n) {
                Ok(n) => self.number(key, n),
                Err(_) => self.number(key, *n),
            },
            Value::Signed(n) => match i32::try_from(*n) {
                Ok(n) => self.number(key, n),
                Err(_) => self.number(key, *n),
            },
            Value::F32(x) => self.number(key, *x),
            Value::F64(x) => self.number(key, *x),
            Value::Bool(flag) => self.number(key, *flag),
            Value::Text(text) => self.text(key, text),
            Value::Array(array) => {
                let mut bytes = ARRAY.to_le_bytes().to_vec();
                put_array(&mut bytes, array);
                self.put(key, bytes);
            }
        }
    }

    /// Every key of another list.
    pub fn extend(&mut self, other: Self) {
        for (key, bytes) in other.0 {
            self.put(&key, bytes);
        }
    }

    /// The keys in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    fn put(&mut self, key: &str, bytes: Vec<u8>) {
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = bytes,
            None => self.0.push((key.to_owned(), bytes)),
        }
    }
}

/// The type of a value that is an array, and the array's own head.
fn array_head(type_id: u32, count: usize) -> Vec<u8> {
    [&ARRAY.to_le_bytes()[..], &type_id.to_le_bytes(), &(count as u64).to_le_bytes()].concat()
}

/// An array without the type of the value that it is.
fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    let mut head = |type_id: u32, count: usize| {
        bytes.extend(type_id.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
    };
    match array {
        Array::Numbers(numbers) => {
            head(numbers.number_type.id(), numbers.len());
            bytes.extend(&numbers.bytes);
        }
        Array::Texts(texts) => {
            head(TEXT, texts.len());
            texts.iter().for_each(|text| put_text(bytes, text));
        }
        Array::Arrays(arrays) => {
            head(ARRAY, arrays.len());
            arrays.iter().for_each(|array| put_array(bytes, array));
        }
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored.
    pub ggml_type: GgmlType,
    /// Row-major; rows are whole blocks.
    pub shape: Vec<usize>,
}

impl PlannedTensor {
    /// Its bytes.
    ///
    /// # Errors
    /// When name or shape cannot be in a file.
    pub fn bytes(&self) -> Result<u64, WriteError> {
        if !(1..=MAX_NAME_BYTES).contains(&self.name.len()) {
            return Err(WriteError::Name { tensor: self.name.clone() });
        }
        let row = self.shape.last().copied().unwrap_or(0) as u64;
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        elements
            .filter(|&n| n > 0 && self.shape.len() <= MAX_DIMENSIONS as usize)
            .filter(|_| self.ggml_type.bytes_of(row).is_some())
            .and_then(|n| self.ggml_type.bytes_of(n))
            .ok_or_else(|| WriteError::Shape {
                tensor: self.name.clone(),
                shape: self.shape.clone(),
                ggml_type: self.ggml_type,
            })
    }
}

/// Where a planned tensor lies, and which of its parts are written.
#[derive(Debug)]
struct Place {
    /// From the start of the file.
    start: u64,
    bytes: u64,
    written: Vec<bool>,
}

/// A GGUF file in the making. Dropped before [`GgufWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    places: BTreeMap<String, Place>,
    bytes: u64,
}

impl GgufWriter {
    /// Begin the file that will be `path`: its header is written, and its length is that of the whole.
    ///
    /// # Errors
    /// When a key, a name or a shape cannot be in a file, or the disk fails.
    pub fn create(path: &Path, keys: &Keys, tensors: &[PlannedTensor]) -> Result<Self, WriteError> {
        let alignment = DEFAULT_ALIGNMENT as u64;
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((keys.0.len() as u64).to_le_bytes());
        for (key, value) in &keys.0 {
            if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
                return Err(WriteError::Key { key: key.chars().take(64).collect() });
            }
            put_text(&mut header, key);
            header.extend(value);
        }
        let (mut places, mut offset) = (BTreeMap::new(), 0u64);
        for tensor in tensors {
            let bytes = tensor.bytes()?;
            put_text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| header.extend((*size as u64).to_le_bytes()));
            header.extend(tensor.ggml_type.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let place = Place { start: offset, bytes, written: Vec::new() };
            if places.insert(tensor.name.clone(), place).is_some() {
                return Err(WriteError::Twice { tensor: tensor.name.clone() });
            }
            offset += bytes.next_multiple_of(alignment);
        }
        let data_start = (header.len() as u64).next_multiple_of(alignment);
        places.values_mut().for_each(|place| place.start += data_start);
        let mut file = AtomicFile::create(path)?;
        file.file().write_all(&header)?;
        // What lies between the tensors is zero.
        file.file().set_len(data_start + offset)?;
        Ok(Self { file, places, bytes: data_start + offset })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the file lies until it is finished: a reader finds the header there, and of the tensors those that are written.
    pub fn temporary_path(&self) -> &Path {
        self.file.temporary_path()
    }

    /// Write a whole tensor.
    ///
    /// # Errors
    /// When it was not planned like this or is there already, or the disk fails.
    pub fn push(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.push_part(name, (0, 1), bytes)
    }

    /// Write part `i` of `n` equal ones along the first dimension: one expert of many that lie in one tensor.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_part(&mut self, name: &str, (i, n): (usize, usize), bytes: &[u8]) -> Result<(), WriteError> {
        let unplanned = |planned: u64| WriteError::Unplanned {
            tensor: name.to_owned(),
            part: i,
            parts: n,
            given: bytes.len(),
            planned,
        };
        let place = self.places.get_mut(name).ok_or_else(|| unplanned(0))?;
        if place.written.is_empty() {
            place.written = vec![false; n];
        }
        let fits = (bytes.len() as u64).checked_mul(n as u64) == Some(place.bytes);
        if !fits || i >= n || place.written.len() != n {
            return Err(unplanned(place.bytes));
        }
        if std::mem::replace(&mut place.written[i], true) {
            return Err(WriteError::Twice { tensor: name.to_owned() });
        }
        let file = self.file.file();
        file.seek(SeekFrom::Start(place.start + (i * bytes.len()) as u64))?;
        file.write_all(bytes)?;
        Ok(())
    }

    /// Put the file in its place; gives its length in bytes.
    ///
    /// # Errors
    /// When a planned tensor is missing, or the disk fails.
    pub fn finish(self) -> Result<u64, WriteError> {
        let whole = |place: &Place| !place.written.is_empty() && place.written.iter().all(|part| *part);
        if let Some((tensor, _)) = self.places.iter().find(|(_, place)| !whole(place)) {
            return Err(WriteError::Missing { tensor: tensor.clone() });
        }
        self.file.commit()?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;

    fn planned(name: &str, ggml_type: GgmlType, shape: &[usize]) -> PlannedTensor {
        PlannedTensor { name: name.into(), ggml_type, shape: shape.into() }
    }

    fn every_type() -> Keys {
        let mut keys = Keys::new();
        keys.text("t", "naïve\n");
        keys.number("u8", 200u8);
        keys.number("i8", -3i8);
        keys.number("u16", 60_000u16);
        keys.number("i16", -300i16);
        keys.number("u32", u32::MAX);
        keys.number("i32", i32::MIN);
        keys.number("u64", u64::MAX);
        keys.number("i64", i64::MIN);
        keys.number("f32", 1e-5f32);
        keys.number("f64", -0.1f64);
        keys.number("b", true);
        keys.texts("texts", ["a", "", "ß"].iter());
        keys.numbers("i32s", &[1i32, -1]);
        keys.numbers("flags", &[true, false]);
        keys.numbers::<f32>("none", &[]);
        keys
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("sub").join("m.gguf");
        let tensors = [
            planned("a", GgmlType::F32, &[3]),
            planned("experts", GgmlType::Q8_0, &[2, 1, 32]),
            planned("b.weight", GgmlType::BF16, &[2, 2]),
        ];
        let mut writer = GgufWriter::create(&path, &every_type(), &tensors).unwrap();
        writer.push("b.weight", &[7; 8]).unwrap();
        writer.push_part("experts", (1, 2), &[2; 34]).unwrap();
        writer.push_part("experts", (0, 2), &[1; 34]).unwrap();
        writer.push("a", &[9; 12]).unwrap();
        assert!(!path.exists());
        let bytes = writer.finish().unwrap();
        let file = fs_err::read(&path).unwrap();
        assert_eq!(file.len() as u64, bytes);
        let header = Header::parse(&file).unwrap();
        assert_eq!((header.version, header.tensors.len()), (3, 3));
        let experts = &header.tensors["experts"];
        assert_eq!((experts.shape.as_slice(), experts.ggml_type), (&[2, 1, 32][..], GgmlType::Q8_0));
        assert_eq!(file[experts.range.clone()], [[1u8; 34], [2; 34]].concat());
        assert_eq!(file[header.tensors["a"].range.clone()], [9; 12]);
        assert_eq!(header.tensors["b.weight"].shape, [2, 2]);
        let m = &header.metadata;
        assert_eq!((m.text("t"), m.flag("b")), (Ok(Some("naïve\n")), Ok(Some(true))));
        assert_eq!(
            (m.size("u64"), m.size("u8"), m.size("u16")),
            (Ok(Some(u64::MAX)), Ok(Some(200)), Ok(Some(60_000)))
        );
        assert_eq!((m.get("i64"), m.get("i8")), (Some(&Value::Signed(i64::MIN)), Some(&Value::Signed(-3))));
        assert_eq!((m.number("f32"), m.number("f64")), (Ok(Some(1e-5)), Ok(Some(-0.1))));
        assert_eq!(m.texts("texts").unwrap().unwrap().iter().collect::<Vec<_>>(), ["a", "", "ß"]);
        assert_eq!(m.iter().count(), 16);
        // What was read is written again, value by value, and means the same.
        let mut again = Keys::new();
        m.iter().for_each(|(key, value)| again.value(key, value));
        let path = here.path().join("again.gguf");
        GgufWriter::create(&path, &again, &[]).unwrap().finish().unwrap();
        assert_eq!(&Header::parse(&fs_err::read(&path).unwrap()).unwrap().metadata, m);
    }

    #[test]
    fn what_no_file_can_hold_is_refused() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("m.gguf");
        let refused = |tensor: PlannedTensor| {
            GgufWriter::create(&path, &Keys::new(), &[tensor]).unwrap_err().to_string()
        };
        let long = "x".repeat(64);
        assert!(refused(planned(&long, GgmlType::F32, &[1])).contains("has 64 bytes"));
        assert!(refused(planned("", GgmlType::F32, &[1])).contains("1 to 63"));
        for shape in [&[][..], &[0], &[1, 1, 1, 1, 1], &[2, 33], &[usize::MAX, 32]] {
            let said = refused(planned("w", GgmlType::Q4_0, shape));
            assert!(said.contains("cannot be stored as Q4_0"), "{said}");
        }
        let twice = [planned("w", GgmlType::F32, &[1]), planned("w", GgmlType::F32, &[1])];
        assert!(matches!(GgufWriter::create(&path, &Keys::new(), &twice), Err(WriteError::Twice { .. })));
        let mut keys = Keys::new();
        keys.number("", 1u32);
        assert!(matches!(GgufWriter::create(&path, &keys, &[]), Err(WriteError::Key { .. })));
        assert!(fs_err::read_dir(here.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_file_is_whole_or_absent() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("m.gguf");
        let tensors = [planned("a", GgmlType::F32, &[2]), planned("b", GgmlType::F32, &[2, 1])];
        let mut writer = GgufWriter::create(&path, &Keys::new(), &tensors).unwrap();
        assert!(matches!(writer.push("c", &[0; 8]), Err(WriteError::Unplanned { planned: 0, .. })));
        assert!(matches!(writer.push("a", &[0; 4]), Err(WriteError::Unplanned { planned: 8, .. })));
        writer.push_part("b", (0, 2), &[0; 4]).unwrap();
        assert!(matches!(writer.push_part("b", (0, 2), &[0; 4]), Err(WriteError::Twice { .. })));
        assert!(matches!(writer.push("b", &[0; 8]), Err(WriteError::Unplanned { .. })));
        writer.push("a", &[0; 8]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(&error, WriteError::Missing { tensor } if tensor == "b"), "{error}");
        assert!(fs_err::read_dir(here.path()).unwrap().next().is_none());
    }
}
