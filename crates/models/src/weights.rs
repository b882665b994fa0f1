//! Where a model's weights come from: a checkpoint, or a random generator keyed by the tensors' names.

use crate::{Error, LoadOptions, ModelConfig, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_kernels::threads;
use taper_nn::{
    Checkpoint, CheckpointError, Embedding, FrozenWeight, Linear, RmsNorm, StoredFormat, Weight, with_f32,
};
use taper_quant::QuantizedTensor;

/// Gives weights by name and remembers which were asked for.
pub(crate) struct Weights<'a> {
    source: Source<'a>,
    options: LoadOptions,
}

enum Source<'a> {
    Stored { checkpoint: &'a Arc<Checkpoint>, root: PathBuf, asked: BTreeSet<String>, residence: Residence },
    Random { seed: u64, std: f32, draw: Draw },
}

/// How random weights are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Draw {
    /// Normal, as a model begins to train.
    Normal,
    /// Uniform with the same deviation: many times faster, for measurements.
    Uniform,
}

/// Where the matrices of a checkpoint are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residence {
    /// Read once.
    Memory,
    /// Read whenever they are used.
    Disk,
}

impl<'a> Weights<'a> {
    pub(crate) fn stored(
        checkpoint: &'a Arc<Checkpoint>,
        root: &Path,
        options: LoadOptions,
        residence: Residence,
    ) -> Self {
        let source = Source::Stored { checkpoint, root: root.into(), asked: BTreeSet::new(), residence };
        Self { source, options }
    }

    pub(crate) fn random(config: &ModelConfig, seed: u64, options: LoadOptions, draw: Draw) -> Self {
        Self { source: Source::Random { seed, std: config.initializer_range as f32, draw }, options }
    }

    /// A layer `inputs -> outputs`, with a bias or without.
    pub(crate) fn linear(&mut self, path: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.matrix(path, outputs, inputs)?;
        let bias = if bias { Some(self.vector(&format!("{path}.bias"), outputs, 0.0)?) } else { None };
        Ok(Linear::new(path, weight, bias))
    }

    pub(crate) fn embedding(&mut self, path: &str, vocab: usize, width: usize) -> Result<Embedding> {
        Ok(Embedding::new(path, self.matrix(path, vocab, width)?))
    }

    /// A norm whose file holds the gain less `offset`.
    pub(crate) fn norm(&mut self, path: &str, width: usize, eps: f64, offset: f32) -> Result<RmsNorm> {
        Ok(RmsNorm::new(path, self.vector(&format!("{path}.weight"), width, 1.0 - offset)?, eps, offset))
    }

    /// Whether a tied head that the file holds all the same is the embedding.
    pub(crate) fn check_tied(&mut self, head: &str, embedding: &str) -> Result<()> {
        let Source::Stored { checkpoint, root, asked, .. } = &mut self.source else { return Ok(()) };
        if !checkpoint.contains(head) {
            return Ok(());
        }
        asked.insert(head.into());
        match checkpoint.same_bytes(head, embedding).map_err(|e| fault(root, e))? {
            true => Ok(()),
            false => Err(Error::HeadNotTied { root: root.clone() }),
        }
    }

    /// The type that matrices are held in, where it was asked for.
    pub(crate) fn dtype(&self) -> Option<DType> {
        self.options.dtype
    }

    /// That nothing in the checkpoint was left unread.
    pub(crate) fn finish(self) -> Result<()> {
        let Source::Stored { checkpoint, root, asked, .. } = self.source else { return Ok(()) };
        // Older checkpoints store the rotary frequencies, which follow from the configuration.
        let computed = |name: &str| name.ends_with(".rotary_emb.inv_freq");
        let names: Vec<String> = checkpoint
            .names()
            .filter(|name| !asked.contains(*name) && !computed(name))
            .map(str::to_owned)
            .collect();
        if names.is_empty() { Ok(()) } else { Err(Error::Unexpected { root, names }) }
    }

    fn matrix(&mut self, path: &str, rows: usize, columns: usize) -> Result<Weight> {
        let name = format!("{path}.weight");
        let plan = Matrix { name: name.clone(), dims: [rows, columns], options: self.options_of(path) };
        let weight = match &mut self.source {
            Source::Random { .. } => {
                let dense = self.tensor(&name, &[rows, columns], self.options.dtype, None)?;
                plan.quantized(FrozenWeight::dense(&dense)?, Path::new("random weights"))?
            }
            Source::Stored { checkpoint, root, asked, residence } => {
                asked.extend(checkpoint.state_of(&name));
                let weight = match residence {
                    Residence::Memory => plan.read(checkpoint, root)?,
                    Residence::Disk => plan.on_disk(checkpoint, root)?,
                };
                asked.insert(name);
                weight
            }
        };
        Ok(Weight::Frozen(weight))
    }

    /// The options of one matrix: not all of them are quantised.
    fn options_of(&self, path: &str) -> LoadOptions {
        let quantize = self.options.quantize.filter(|quantize| quantize.applies_to(path));
        LoadOptions { quantize, ..self.options }
    }

    /// In f32, whatever the matrices are held in: vectors are small and their precision counts. Random ones are all `initial`.
    fn vector(&mut self, name: &str, len: usize, initial: f32) -> Result<Tensor> {
        self.tensor(name, &[len], Some(DType::F32), Some(initial))
    }

    fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: Option<DType>,
        initial: Option<f32>,
    ) -> Result<Tensor> {
        match &mut self.source {
            Source::Stored { checkpoint, root, asked, .. } => {
                asked.insert(name.into());
                checkpoint
                    .expect_shape(name, shape)
                    .and_then(|()| checkpoint.weight(name, dtype))
                    .map_err(|e| fault(root, e))
            }
            Source::Random { seed, std, draw } => {
                let mut values = vec![initial.unwrap_or(0.0); shape.iter().product()];
                let rng = CounterRng::new(*seed, stream_of(name));
                match draw {
                    _ if initial.is_some() => {}
                    Draw::Normal => rng.fill_normal(0, *std, &mut values),
                    Draw::Uniform => {
                        let most = *std * 3f32.sqrt();
                        threads::for_each_rows(&mut values, 1, 64 << 10, |first, part| {
                            rng.fill_uniform(first as u64, -most, most, part);
                        });
                    }
                }
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
                Ok(tensor.to_dtype(dtype.unwrap_or(DType::F32))?)
            }
        }
    }
}

/// One matrix of a checkpoint, and how it is asked for.
#[derive(Debug, Clone)]
struct Matrix {
    name: String,
    dims: [usize; 2],
    options: LoadOptions,
}

impl Matrix {
    fn read(&self, checkpoint: &Checkpoint, root: &Path) -> Result<FrozenWeight> {
        let weight = checkpoint.matrix(&self.name, self.dims, self.options.dtype);
        self.quantized(weight.map_err(|e| fault(root, e))?, root)
    }

    /// The weight coded in the format that is asked for; the dense one is dropped with its caller's.
    fn quantized(&self, weight: FrozenWeight, root: &Path) -> Result<FrozenWeight> {
        let Some(quantize) = self.options.quantize else { return Ok(weight) };
        let (tensor, path) = (self.name.clone(), root.to_path_buf());
        if weight.as_quantized().is_some() {
            return Err(fault(root, CheckpointError::QuantizedTwice { tensor, path }));
        }
        let values = weight.to_f32()?;
        let [rows, columns] = self.dims;
        let coded =
            with_f32(&values, |values| QuantizedTensor::quantize(values, rows, columns, quantize.format))?;
        coded
            .map(FrozenWeight::quantized)
            .map_err(|source| fault(root, CheckpointError::NotQuantizable { tensor, path, source }))
    }

    /// The same, read when it is used. What can be wrong with it is found now: a dense matrix by its header; codes in blocks, which stay
    /// in the mapped file, by reading their state once.
    fn on_disk(&self, checkpoint: &Arc<Checkpoint>, root: &Path) -> Result<FrozenWeight> {
        let dense = match checkpoint.format(&self.name) {
            Some(StoredFormat::Dense(held)) => Some(self.options.dtype.unwrap_or(held)),
            _ => None,
        };
        match dense {
            Some(_) => {
                checkpoint.expect_shape(&self.name, &self.dims).map_err(|e| fault(root, e))?;
            }
            None => drop(self.read(checkpoint, root)?),
        }
        let dtype = dense.filter(|_| self.options.quantize.is_none()).unwrap_or(DType::F32);
        let (matrix, checkpoint, root) = (self.clone(), Arc::clone(checkpoint), root.to_path_buf());
        let read = move || {
            let read = matrix.read(&checkpoint, &root);
            read.map_err(|error| candle_core::Error::wrap(error).context(format!("read `{}`", matrix.name)))
        };
        let [rows, columns] = self.dims;
        Ok(FrozenWeight::on_disk((rows, columns), dtype, Arc::new(read)))
    }
}

fn fault(root: &Path, source: CheckpointError) -> Error {
    Error::Checkpoint { root: root.into(), source: Box::new(source) }
}
