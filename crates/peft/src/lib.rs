//! Attach, count, save, load and merge low-rank adapters in PEFT's own format.
//!
//! LoRA (Hu et al. 2021): a frozen weight W gets a low-rank delta, `y = x W^T + s (drop(x) A^T) B^T`, with A `[r, in]`,
//! B `[out, r]` and `s = lora_alpha / r` (or `lora_alpha / sqrt(r)`, Kalajdzievski 2023). Adapters are f32 over any base.
//!
//! A model is seen through [`taper_nn::VisitModules`] alone: paths and slots. Names of modules, keys and files are PEFT's,
//! so that what is written here loads there and the reverse.

mod attach;
mod checks;
mod combine;
mod config;
mod error;
mod files;
mod foreign;
mod init;
mod inspect;
mod keys;
mod linear_algebra;
mod methods;
mod modules;
mod named;
mod outfit;
mod plan;
mod section;
mod sizes;
mod targets;

pub use attach::{AdaptedLayer, Adapter, attach, merged_weight};
pub use combine::{Combination, CombinationType, MajoritySign, WeightedAdapter, combine};
pub use config::{AdapterConfig, Bias, InitLoraWeights, TokenIndices};
pub use error::{Error, Result};
pub use files::{
    AdapterWeights, CONFIG_FILE, LoadMode, WEIGHTS_FILE, load, load_for, load_parts, read_parts, write_files,
};
pub use foreign::{AdapterFile, HeadLayout, Layout, NameChange};
pub use inspect::{Consumer, InspectedModule, Inspection, Verdict, inspect};
pub use methods::{Ia3, Loha, Lokr, LoraLayer, Method, Vera};
pub use modules::{ModuleKind, ModuleShape, TrainedModule, TrainedParameter, inventory, trained_modules};
pub use section::{AdapterSection, PeftType};
pub use targets::{ModuleNames, TargetModules};

/// What PEFT puts before the path of every module in a saved adapter.
pub const PREFIX: &str = "base_model.model.";
