//! Turn a model reference (a folder, a GGUF file, a hub id) into verified local files.
//!
//! Nothing here looks inside a weight; what is read is names, sizes and the headers that say where tensors lie. The network is used only
//! for a hub id that the user named (invariant 10), and never when [`HubOptions::offline`] is set.

mod error;
mod fetch;
mod files;
mod fingerprint;
pub mod gguf;
mod hash_cache;
mod index;
mod other_format;
pub mod safetensors;
mod section;
mod source;
mod unique;

pub use error::{Error, Result};
pub use files::ModelFiles;
pub use fingerprint::Fingerprint;
pub use hash_cache::HashCache;
pub use index::{IndexError, ShardIndex};
pub use section::{DtypeChoice, InitChoice, ModelSection, QuantizeChoice, bytes_of};
pub use source::{HubOptions, ModelSource};
