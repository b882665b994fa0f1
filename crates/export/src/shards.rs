//! Safetensors files written tensor by tensor, so that no more than one tensor is in memory twice.

use crate::error::doing;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use fs_err::File;
use serde_json::{Map, Value, json};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

impl Entry {
    fn bytes(&self, dtype: DType) -> u64 {
        (self.shape.iter().product::<usize>() * dtype.size_in_bytes()) as u64
    }
}

/// Writes tensors in the order in which they were planned, into one file or several with an index.
///
/// A file: the header's length (u64, little endian), the header (JSON, padded with spaces to a multiple of 8), the tensors' bytes.
pub(crate) struct ShardWriter {
    folder: PathBuf,
    dtype: DType,
    shards: Vec<Vec<Entry>>,
    shard: usize,
    written: usize,
    file: Option<BufWriter<File>>,
}

impl ShardWriter {
    /// Plan the files: a tensor goes to the next one when it would grow over `most_bytes`.
    pub(crate) fn new(folder: &Path, entries: Vec<Entry>, dtype: DType, most_bytes: u64) -> Self {
        let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
        let mut bytes = 0;
        for entry in entries {
            let more = entry.bytes(dtype);
            if bytes + more > most_bytes && !shards[shards.len() - 1].is_empty() {
                shards.push(Vec::new());
                bytes = 0;
            }
            bytes += more;
            let last = shards.len() - 1;
            shards[last].push(entry);
        }
        Self { folder: folder.to_owned(), dtype, shards, shard: 0, written: 0, file: None }
    }

    /// Write the next tensor, converted to the file's type.
    pub(crate) fn push(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        if self.written == self.shards[self.shard].len() {
            self.close()?;
            self.shard += 1;
            self.written = 0;
        }
        let planned = self.shards.get(self.shard).and_then(|entries| entries.get(self.written));
        if planned.is_none_or(|entry| entry.name != name || entry.shape != tensor.dims()) {
            let message = format!("`{name}` was not planned at this place");
            return Err(doing("write the weights in the planned order")(candle_core::Error::Msg(message)));
        }
        let (path, dtype) = (self.path(), self.dtype);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let header = self.header();
                self.file.insert(open(&path, &header)?)
            }
        };
        write_tensor(name, tensor, dtype, &mut |bytes| {
            file.write_all(bytes).map_err(|source| Error::Write { path: path.clone(), source })
        })?;
        self.written += 1;
        Ok(())
    }

    /// Close the last file and write the index when there are several; gives the files and the bytes of all tensors.
    pub(crate) fn finish(mut self) -> Result<(Vec<PathBuf>, u64)> {
        if self.shard + 1 != self.shards.len() || self.written != self.shards[self.shard].len() {
            let message = "a planned tensor is missing".to_owned();
            return Err(doing("write the weights in the planned order")(candle_core::Error::Msg(message)));
        }
        self.close()?;
        let total: u64 = self.shards.iter().flatten().map(|entry| entry.bytes(self.dtype)).sum();
        let mut files: Vec<PathBuf> =
            (0..self.shards.len()).map(|i| self.folder.join(self.name(i))).collect();
        if self.shards.len() > 1 {
            files.push(self.write_index(total)?);
        }
        Ok((files, total))
    }

    fn write_index(&self, total: u64) -> Result<PathBuf> {
        let mut names: Vec<(String, String)> = Vec::new();
        for (i, entries) in self.shards.iter().enumerate() {
            names.extend(entries.iter().map(|entry| (entry.name.clone(), self.name(i))));
        }
        names.sort();
        let map: Map<String, Value> =
            names.into_iter().map(|(name, file)| (name, Value::from(file))).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let path = self.folder.join("model.safetensors.index.json");
        let text = format!("{index:#}\n");
        fs_err::write(&path, text).map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(path)
    }

    fn close(&mut self) -> Result<()> {
        let path = self.path();
        match self.file.take() {
            Some(mut file) => file.flush().map_err(|source| Error::Write { path, source }),
            None => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.name(self.shard))
    }

    fn name(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".into(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    fn header(&self) -> String {
        let dtype = file_dtype(self.dtype);
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut start = 0;
        for entry in &self.shards[self.shard] {
            let end = start + entry.bytes(self.dtype);
            let info = json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [start, end] });
            header.insert(entry.name.clone(), info);
            start = end;
        }
        let mut text = Value::Object(header).to_string();
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        text
    }
}

fn open(path: &Path, header: &str) -> Result<BufWriter<File>> {
    let named = |source| Error::Write { path: path.to_owned(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(named)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(named)?;
    file.write_all(header.as_bytes()).map_err(named)?;
    Ok(file)
}

/// The name of a type in a safetensors header.
fn file_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        _ => "F32",
    }
}

/// Elements that are converted at a time: a table of a billion must not stand there twice.
const ELEMENTS_AT_A_TIME: usize = 1 << 20;

/// Little-endian bytes, rounded to nearest even, some at a time; every value finite.
fn write_tensor(
    name: &str,
    tensor: &Tensor,
    dtype: DType,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let read = doing("read a weight");
    let flat = tensor.flatten_all().map_err(&read)?;
    let (total, mut not_finite) = (flat.elem_count(), 0);
    for start in (0..total).step_by(ELEMENTS_AT_A_TIME) {
        let some = flat.narrow(0, start, ELEMENTS_AT_A_TIME.min(total - start));
        let (bytes, bad) = some.and_then(|some| to_bytes(&some.to_dtype(dtype)?)).map_err(&read)?;
        not_finite += bad;
        write(&bytes)?;
    }
    if not_finite > 0 {
        let dtype = dtype.as_str();
        return Err(Error::NotFinite { tensor: name.to_owned(), count: not_finite, dtype });
    }
    Ok(())
}

/// The bytes, and how many values are not finite.
fn to_bytes(flat: &Tensor) -> candle_core::Result<(Vec<u8>, usize)> {
    Ok(match flat.dtype() {
        DType::BF16 => {
            let values = flat.to_vec1::<half::bf16>()?;
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            (values.iter().flat_map(|v| v.to_le_bytes()).collect(), bad)
        }
        DType::F16 => {
            let values = flat.to_vec1::<half::f16>()?;
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            (values.iter().flat_map(|v| v.to_le_bytes()).collect(), bad)
        }
        _ => {
            let values = flat.to_vec1::<f32>()?;
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            (values.iter().flat_map(|v| v.to_le_bytes()).collect(), bad)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use taper_hub::safetensors::Header;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn write(folder: &Path, dtype: DType, most_bytes: u64) -> Vec<PathBuf> {
        let tensors =
            [("b.weight", tensor(&[1.0, -2.0])), ("a.weight", tensor(&[0.1])), ("c", tensor(&[3.0; 4]))];
        let entries =
            tensors.iter().map(|(name, t)| Entry { name: (*name).into(), shape: t.dims().to_vec() });
        let mut writer = ShardWriter::new(folder, entries.collect(), dtype, most_bytes);
        for (name, tensor) in &tensors {
            writer.push(name, tensor).unwrap();
        }
        writer.finish().unwrap().0
    }

    #[test]
    fn a_file_holds_what_was_pushed_and_is_the_same_every_time() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = write(one.path(), DType::F32, u64::MAX);
        assert_eq!(paths, [one.path().join("model.safetensors")]);
        let bytes = fs_err::read(&paths[0]).unwrap();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        let a = &header.tensors["a.weight"];
        assert_eq!(&bytes[a.range.clone()], 0.1f32.to_le_bytes());
        assert_eq!(a.range.start % 4, 0);
        assert_eq!(bytes, fs_err::read(&write(two.path(), DType::F32, u64::MAX)[0]).unwrap());
    }

    #[test]
    fn shards_are_cut_at_the_limit_and_indexed() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), DType::BF16, 6);
        let names: Vec<_> =
            paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(
            names,
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json"
            ]
        );
        let index: Value = serde_json::from_slice(&fs_err::read(&paths[2]).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 14);
        assert_eq!(index["weight_map"]["c"], names[1].as_str());
        assert_eq!(index["weight_map"]["a.weight"], names[0].as_str());
        let second = Header::parse(&fs_err::read(&paths[1]).unwrap()).unwrap();
        assert_eq!(second.tensors.len(), 1);
    }

    #[test]
    fn a_value_that_the_type_cannot_hold_is_refused_by_name() {
        for (value, dtype, refused) in
            [(7e4, DType::F16, true), (7e4, DType::BF16, false), (f32::NAN, DType::F32, true)]
        {
            let folder = tempfile::tempdir().unwrap();
            let entry = Entry { name: "w".into(), shape: vec![1] };
            let mut writer = ShardWriter::new(folder.path(), vec![entry], dtype, u64::MAX);
            let outcome = writer.push("w", &tensor(&[value]));
            assert_eq!(outcome.is_err(), refused, "{value} in {dtype:?}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains("`w`"), "{error}");
            }
        }
    }

    #[test]
    fn tensors_out_of_order_or_missing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let entries =
            || vec![Entry { name: "a".into(), shape: vec![1] }, Entry { name: "b".into(), shape: vec![1] }];
        let mut writer = ShardWriter::new(folder.path(), entries(), DType::F32, u64::MAX);
        assert!(writer.push("b", &tensor(&[1.0])).is_err());
        writer.push("a", &tensor(&[1.0])).unwrap();
        assert!(writer.finish().is_err());
    }
}
