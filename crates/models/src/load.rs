//! From files, or from a seed, to a model.

use crate::weights::Weights;
use crate::{CausalLm, Decoder, Error, ModelConfig, Result};
use candle_core::DType;
use taper_hub::{DtypeChoice, ModelFiles};
use taper_nn::Checkpoint;

/// How weights are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The type that matrices are held in (f32, bf16 or f16); `None` for the one they are stored in. Norms and biases are always f32.
    pub dtype: Option<DType>,
}

impl From<DtypeChoice> for LoadOptions {
    fn from(choice: DtypeChoice) -> Self {
        let dtype = match choice {
            DtypeChoice::Auto => None,
            DtypeChoice::F32 => Some(DType::F32),
            DtypeChoice::Bf16 => Some(DType::BF16),
            DtypeChoice::F16 => Some(DType::F16),
        };
        Self { dtype }
    }
}

/// The model of a folder, frozen.
///
/// # Errors
/// When the configuration is not supported, there are no weights, or they do not fit: a tensor that is missing, of another shape, or left over.
pub fn load(files: &ModelFiles, options: LoadOptions) -> Result<Box<dyn CausalLm>> {
    let config = ModelConfig::read(&files.config)?;
    let weights = files.require_weights()?;
    let checkpoint = Checkpoint::open(weights, files.index.as_deref())
        .map_err(|source| Error::Checkpoint { root: files.root.clone(), source: Box::new(source) })?;
    let weights = Weights::stored(&checkpoint, &files.root, options.dtype);
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
    let dtype = dtype.or(config.dtype).unwrap_or(DType::F32);
    Ok(Box::new(Decoder::build(config.clone(), Weights::random(config, seed, dtype))?))
}
