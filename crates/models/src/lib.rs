//! Decoder architectures by `model_type`, built from `nn`.
//!
//! Letters: T tokens of a packed batch, H hidden size, N query heads, K key/value heads, D head dimension, I width of the MLP, V vocabulary.
//!
//! There is one decoder ([`Decoder`]), with switches for what architectures differ in. An architecture is a file that reads its own
//! `config.json` keys into these switches ([`ModelConfig`]); here: Llama (Llama 2 and 3, SmolLM, TinyLlama, and the like), Mistral, Qwen 2
//! (also 1.5 and 2.5), Qwen 3 with and without experts, Gemma 2, the text models of Gemma 3, Phi 3 (also 3.5 and 4-mini), OLMo 2 and
//! Granite 3. The names of modules and tensors are the checkpoint's own.
//!
//! Models do not know adapters: they show their modules through [`taper_nn::VisitModules`], and whoever visits may fill the slots.

mod attention;
mod causal_lm;
mod config;
mod decoder;
mod error;
mod experts;
mod fields;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod load;
mod mistral;
mod mlp;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rotary;
mod switches;
mod weights;
mod windows;

pub use causal_lm::{CausalLm, forward_hidden, forward_logits, state_tensors};
pub use config::{ModelConfig, ModelType};
pub use decoder::Decoder;
pub use error::{ConfigError, Error, Result};
pub use load::{LoadOptions, Quantize, init, init_to_measure, init_with, load, load_on_disk};
pub use rotary::{RopeConfig, RopeScaling, RotaryEmbedding};
pub use switches::{EmbeddingScale, ExpertsConfig, NormNames, NormPlacement, QkNorm};
