//! Write what was trained so that others can read it, and prove that it is what was trained.
//!
//! [`place_adapter`] puts PEFT's files and a card in a folder, [`write_mlx_adapter`] mlx-lm's; [`write_merged`] writes a whole model in the Hub's layout, tensor by tensor;
//! [`ReferenceLogits`] and [`ExportProof`] hold what is read back against the trained model. Every folder appears as a whole.

mod adapter;
mod error;
mod folder;
mod merged;
mod mlx;
mod proof;
mod section;
mod shards;
mod shift;

pub use adapter::{ModelCard, place_adapter, write_card};
pub use error::{Error, Result};
pub use merged::{MAX_SHARD_BYTES, MergeOptions, WrittenModel, write_merged};
pub use mlx::write_mlx_adapter;
pub use proof::{ExportProof, ReferenceLogits, kl_limit};
pub use section::{ExportFormat, ExportSection, MergedDtype};
pub use shift::LogitShift;
