//! From files, or from a seed, to a model.

use crate::weights::{Draw, Residence, Weights};
use crate::{CausalLm, Decoder, Error, ModelConfig, Result};
use candle_core::DType;
use std::sync::Arc;
use taper_hub::{DtypeChoice, ModelFiles, ModelSection};
use taper_nn::Checkpoint;
use taper_quant::BlockFormat;

/// How weights are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The type that matrices are held in (f32, bf16 or f16); `None` for the one they are stored in. Norms and biases are always f32.
    ///
    /// With bf16 the activations between the norms are bf16 too, and products take bf16 on both sides; the residual stream, logits and gradients
    /// stay f32. With `None` that is so where the embedding is stored in bf16.
    pub dtype: Option<DType>,
    /// What linear layers are quantised to as they are read; `None` leaves them as they are stored.
    pub quantize: Option<Quantize>,
}

/// What frozen matrices are quantised to while they are read, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantize {
    /// The format of the linear layers.
    pub format: BlockFormat,
    /// Whether the embedding and the output head are quantised as well.
    pub embeddings: bool,
}

impl Quantize {
    /// Whether the weight of the module at `path` is quantised: that of a linear layer, but for the output head and, unless asked for, the
    /// embedding. The router of a mixture of experts never is: it is small, and a slip of it sends a token elsewhere.
    pub fn applies_to(&self, path: &str) -> bool {
        let name = path.rsplit('.').next().unwrap_or(path);
        match name {
            "embed_tokens" | "lm_head" => self.embeddings,
            "gate" => false,
            _ => true,
        }
    }
}

impl From<&ModelSection> for LoadOptions {
    fn from(section: &ModelSection) -> Self {
        let dtype = match section.dtype {
            DtypeChoice::Auto => None,
            DtypeChoice::F32 => Some(DType::F32),
            DtypeChoice::Bf16 => Some(DType::BF16),
            DtypeChoice::F16 => Some(DType::F16),
        };
        let embeddings = section.quantize_embeddings;
        Self { dtype, quantize: section.quantize_format().map(|format| Quantize { format, embeddings }) }
    }
}

/// The model of a folder or a GGUF file, frozen.
///
/// # Errors
/// When the configuration is not supported, there are no weights, or they do not fit: a tensor that is missing, of another shape, or left over.
/// Also when weights are to be quantised and are so in their file, or their rows are no whole blocks of the format.
pub fn load(files: &ModelFiles, options: LoadOptions) -> Result<Box<dyn CausalLm>> {
    open(files, options, Residence::Memory)
}

/// [`load`] with the matrices left on the disk: each is read, decoded and perhaps quantised whenever it is used, and let go of afterwards
/// ([`FrozenWeight::on_disk`](taper_nn::FrozenWeight::on_disk)). For what goes through a model once, as merging: it takes the memory
/// of the largest matrix, however large the model.
///
/// # Errors
/// As [`load`].
pub fn load_on_disk(files: &ModelFiles, options: LoadOptions) -> Result<Box<dyn CausalLm>> {
    open(files, options, Residence::Disk)
}

fn open(files: &ModelFiles, options: LoadOptions, residence: Residence) -> Result<Box<dyn CausalLm>> {
    let config = ModelConfig::read(&files.config)?;
    let opened = match &files.gguf {
        Some(path) => Checkpoint::open_gguf(path),
        None => Checkpoint::open(files.require_weights()?, files.index.as_deref()),
    };
    // What messages name: the file itself where it is the whole model.
    let root = files.gguf.as_ref().unwrap_or(&files.root);
    let checkpoint =
        opened.map_err(|source| Error::Checkpoint { root: root.clone(), source: Box::new(source) })?;
    let checkpoint = Arc::new(checkpoint);
    let weights = Weights::stored(&checkpoint, root, options, residence);
    Ok(Box::new(Decoder::build(config, weights)?))
}

/// A model of random weights, frozen: matrices normal with deviation `initializer_range`, norms 1, biases 0, as transformers makes them.
///
/// A number depends on the seed, the tensor's name and its place in it, so tensors do not depend on each other. `dtype` is `None` for the
/// one that the configuration names, else f32.
///
/// # Errors
/// What candle says.
pub fn init(config: &ModelConfig, seed: u64, dtype: Option<DType>) -> Result<Box<dyn CausalLm>> {
    init_with(config, seed, LoadOptions { dtype, quantize: None })
}

/// [`init`], held in another type or quantised.
///
/// # Errors
/// What candle says, and when rows are no whole blocks of the format.
pub fn init_with(config: &ModelConfig, seed: u64, options: LoadOptions) -> Result<Box<dyn CausalLm>> {
    drawn(config, seed, options, Draw::Normal)
}

/// [`init_with`] for measurements of speed and memory: the weights are uniform numbers, which are drawn many times faster.
///
/// # Errors
/// As [`init_with`].
pub fn init_to_measure(config: &ModelConfig, options: LoadOptions) -> Result<Box<dyn CausalLm>> {
    drawn(config, 1, options, Draw::Uniform)
}

fn drawn(config: &ModelConfig, seed: u64, options: LoadOptions, draw: Draw) -> Result<Box<dyn CausalLm>> {
    let dtype = options.dtype.or(config.dtype).unwrap_or(DType::F32);
    let options = LoadOptions { dtype: Some(dtype), ..options };
    Ok(Box::new(Decoder::build(config.clone(), Weights::random(config, seed, options, draw))?))
}
