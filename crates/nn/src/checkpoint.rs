//! The weights of a model folder by name, read from mapped files.

use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Diagnose, Location, did_you_mean, list_names};
use taper_hub::safetensors::{Dtype, Header, SafetensorsError, TensorInfo};
use taper_hub::{IndexError, ShardIndex};
use taper_kernels::MappedFile;

/// The tensors of one or more safetensors files.
///
/// Opening reads the headers alone; a tensor's bytes are read when it is asked for, into memory of its own.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    /// Name to shard.
    places: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: MappedFile,
    header: Header,
}

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
                "weights are read from f32, bf16 and f16: take the checkpoint that is not quantised".into(),
            ),
            Self::Overflow { .. } => Some("use bf16, which has the range of f32".into()),
            Self::Io(_) | Self::Candle { .. } => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::File { path, .. } | Self::Index { path, .. } => Some(Location::file(path)),
            Self::NotInShard { path, tensor, .. }
            | Self::Missing { path, tensor, .. }
            | Self::Shape { path, tensor, .. }
            | Self::Dtype { path, tensor, .. } => Some(Location::file(path).with_key(tensor)),
            _ => None,
        }
    }
}

impl Checkpoint {
    /// Open safetensors files, and hold them against their index when there is one.
    ///
    /// # Errors
    /// When a file is not sound, two hold a tensor of one name, or a tensor is not where the index says.
    pub fn open(files: &[PathBuf], index: Option<&Path>) -> Result<Self, CheckpointError> {
        let mut shards: Vec<Shard> = Vec::with_capacity(files.len());
        let mut places = BTreeMap::new();
        for path in files {
            let shard = Shard::open(path)?;
            for name in shard.header.tensors.keys() {
                if let Some(first) = places.insert(name.clone(), shards.len()) {
                    let first = shards[first].path.clone();
                    return Err(CheckpointError::Twice { tensor: name.clone(), first, second: path.clone() });
                }
            }
            shards.push(shard);
        }
        let checkpoint = Self { shards, places };
        if let Some(path) = index {
            checkpoint.check_index(path)?;
        }
        Ok(checkpoint)
    }

    fn check_index(&self, path: &Path) -> Result<(), CheckpointError> {
        let text = fs_err::read_to_string(path)?;
        let index = ShardIndex::parse(&text)
            .map_err(|source| CheckpointError::Index { path: path.into(), source })?;
        for (tensor, shard) in index.weight_map {
            let there = self.places.get(&tensor).map(|&at| &self.shards[at].path);
            if there.and_then(|p| p.file_name()).is_none_or(|name| name != shard.as_str()) {
                return Err(CheckpointError::NotInShard { path: path.into(), tensor, shard });
            }
        }
        Ok(())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// When it is not there.
    pub fn shape(&self, name: &str) -> Result<&[usize], CheckpointError> {
        Ok(&self.find(name)?.1.shape)
    }

    /// The element type that a tensor is stored in.
    ///
    /// # Errors
    /// When it is not there.
    pub fn dtype(&self, name: &str) -> Result<Dtype, CheckpointError> {
        Ok(self.find(name)?.1.dtype)
    }

    /// Hold a tensor's shape against what a model needs.
    ///
    /// # Errors
    /// When it is not there or has another shape.
    pub fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<(), CheckpointError> {
        let (shard, info) = self.find(name)?;
        if info.shape == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            tensor: name.into(),
            path: shard.path.clone(),
            given: info.shape.clone(),
            expected: expected.into(),
        })
    }

    /// The bytes of a tensor as they lie in the file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bytes(&self, name: &str) -> Result<&[u8], CheckpointError> {
        let (shard, info) = self.find(name)?;
        Ok(&shard.map.bytes()[info.range.clone()])
    }

    /// A tensor in the type it is stored in.
    ///
    /// # Errors
    /// When it is not there, or of a type that candle's CPU tensors do not compute with.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let (shard, info) = self.find(name)?;
        let Some(dtype) = candle_dtype(info.dtype) else {
            return Err(CheckpointError::Dtype {
                tensor: name.into(),
                path: shard.path.clone(),
                dtype: info.dtype,
            });
        };
        let bytes = &shard.map.bytes()[info.range.clone()];
        Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)
            .map_err(|source| CheckpointError::Candle { tensor: name.into(), source })
    }

    /// A tensor converted to `dtype`.
    ///
    /// # Errors
    /// As [`Self::tensor`], and when a finite weight would become infinite in f16.
    pub fn tensor_as(&self, name: &str, dtype: DType) -> Result<Tensor, CheckpointError> {
        let stored = self.tensor(name)?;
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

    /// A weight in the type it is stored in, or in `dtype` when one is given; f64 becomes f32.
    ///
    /// # Errors
    /// When it is not there or no floating-point tensor, and as [`Self::tensor_as`].
    pub fn weight(&self, name: &str, dtype: Option<DType>) -> Result<Tensor, CheckpointError> {
        let (shard, info) = self.find(name)?;
        let stored = match info.dtype {
            Dtype::F32 | Dtype::F64 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                let (tensor, path) = (name.into(), shard.path.clone());
                return Err(CheckpointError::Dtype { tensor, path, dtype: other });
            }
        };
        self.tensor_as(name, dtype.unwrap_or(stored))
    }

    fn find(&self, name: &str) -> Result<(&Shard, &TensorInfo), CheckpointError> {
        let shard = self.places.get(name).map(|&at| &self.shards[at]);
        match shard.and_then(|shard| shard.header.tensors.get(name).map(|info| (shard, info))) {
            Some(found) => Ok(found),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> CheckpointError {
        let near = match did_you_mean(name, self.names()) {
            _ if self.places.is_empty() => "it holds no tensor at all".into(),
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

impl Shard {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes())
            .map_err(|source| CheckpointError::File { path: path.into(), source })?;
        Ok(Self { path: path.into(), map, header })
    }
}

fn candle_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F64 => DType::F64,
        Dtype::U8 => DType::U8,
        Dtype::U32 => DType::U32,
        Dtype::I64 => DType::I64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn write(folder: &Path, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
        let path = folder.join(name);
        let map: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&map, &path).unwrap();
        path
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn tensors_come_back_as_stored_and_as_asked() {
        let here = tempfile::tempdir().unwrap();
        let values = [1.0f32, -2.5, 3.0];
        let half = tensor(&values).to_dtype(DType::BF16).unwrap();
        let a = write(here.path(), "a.safetensors", &[("x", tensor(&values))]);
        let b = write(here.path(), "b.safetensors", &[("y", half)]);
        let checkpoint = Checkpoint::open(&[a, b], None).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(checkpoint.tensor("x").unwrap().to_vec1::<f32>().unwrap(), values);
        assert_eq!(checkpoint.tensor("y").unwrap().dtype(), DType::BF16);
        let y = checkpoint.tensor_as("y", DType::F32).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), values);
        assert_eq!(checkpoint.shape("y").unwrap(), [3]);
    }

    #[test]
    fn a_missing_tensor_names_the_nearest_one() {
        let here = tempfile::tempdir().unwrap();
        let a = write(here.path(), "a.safetensors", &[("model.norm.weight", tensor(&[1.0]))]);
        let checkpoint = Checkpoint::open(std::slice::from_ref(&a), None).unwrap();
        let error = checkpoint.tensor("model.nrm.weight").unwrap_err();
        assert_eq!(error.to_string(), format!("no tensor `model.nrm.weight` in `{}`", a.display()));
        assert_eq!(error.hint().unwrap(), "the nearest name is `model.norm.weight`");
        let error = checkpoint.expect_shape("model.norm.weight", &[2]).unwrap_err();
        assert_eq!(error.to_string(), "tensor `model.norm.weight` is [1], the model needs [2]");
    }

    #[test]
    fn shards_must_agree_with_each_other_and_with_the_index() {
        let here = tempfile::tempdir().unwrap();
        let a = write(here.path(), "a.safetensors", &[("x", tensor(&[1.0]))]);
        let b = write(here.path(), "b.safetensors", &[("x", tensor(&[2.0]))]);
        let c = write(here.path(), "c.safetensors", &[("z", tensor(&[2.0]))]);
        assert!(matches!(Checkpoint::open(&[a.clone(), b], None), Err(CheckpointError::Twice { .. })));
        let index = here.path().join("index.json");
        fs_err::write(&index, r#"{"weight_map":{"x":"a.safetensors","z":"a.safetensors"}}"#).unwrap();
        let error = Checkpoint::open(&[a, c], Some(&index)).unwrap_err();
        assert!(matches!(&error, CheckpointError::NotInShard { tensor, .. } if tensor == "z"), "{error}");
    }

    #[test]
    fn f16_refuses_weights_beyond_its_range() {
        let here = tempfile::tempdir().unwrap();
        let a =
            write(here.path(), "a.safetensors", &[("big", tensor(&[7e4])), ("edge", tensor(&[-65504.0]))]);
        let checkpoint = Checkpoint::open(&[a], None).unwrap();
        assert!(matches!(checkpoint.tensor_as("big", DType::F16), Err(CheckpointError::Overflow { .. })));
        assert!(checkpoint.tensor_as("edge", DType::F16).is_ok());
        assert!(checkpoint.tensor_as("big", DType::BF16).is_ok());
    }

    #[test]
    fn weights_are_floating_point() {
        let here = tempfile::tempdir().unwrap();
        let packed = Tensor::new(&[1u8, 2], &Device::Cpu).unwrap();
        let double = tensor(&[0.5]).to_dtype(DType::F64).unwrap();
        let a = write(here.path(), "a.safetensors", &[("packed", packed), ("double", double)]);
        let checkpoint = Checkpoint::open(&[a], None).unwrap();
        let error = checkpoint.weight("packed", None).unwrap_err();
        assert_eq!(error.to_string(), "tensor `packed` is stored as U8, which is not read");
        assert_eq!(checkpoint.weight("double", None).unwrap().dtype(), DType::F32);
        assert_eq!(checkpoint.weight("double", Some(DType::BF16)).unwrap().dtype(), DType::BF16);
    }

    #[test]
    fn a_broken_file_is_named_with_what_is_wrong() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("model.safetensors");
        fs_err::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let error = Checkpoint::open(std::slice::from_ref(&path), None).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert!(error.hint().unwrap().contains("git lfs pull"));
    }
}
