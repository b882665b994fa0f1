//! Write what was trained so that others can read it, and prove that it is what was trained.
//!
//! [`place_adapter`] puts PEFT's files and a card in a folder; [`write_merged`] writes a whole model in the Hub's layout, tensor by tensor;
//! [`ReferenceLogits`] and [`ExportProof`] hold what is read back against the trained model. Every folder appears as a whole.

mod adapter;
mod error;
mod folder;
mod merged;
mod proof;
mod reference;
mod section;
mod shards;

pub use adapter::{ModelCard, place_adapter, write_card};
pub use error::{Error, Result};
pub use merged::{MAX_SHARD_BYTES, MergeOptions, WrittenModel, write_merged};
pub use proof::{Exactness, ExportProof, Gain, kl_limit};
pub use reference::{ProofText, REFERENCE_BYTES, ReferenceLogits, SupervisedLosses};
pub use section::{ExportFormat, ExportSection, MergedDtype};
