//! What a run will hold in memory, before anything is loaded.
//!
//! The passes of the driver are walked over tensors that have sizes and no numbers (`tape`), block by block and operation by operation
//! (`graph`, `pass`); a heap that only counts says what is alive, why, and when the most is. A run's peak is the largest of its phases
//! ([`Workload::memory`]), not their sum: weights and optimiser are there in all steps, the logits are gone before the blocks are
//! differentiated, an evaluation has no optimiser.
//!
//! On a GPU ([`Workload::memory_on_gpu`]) the same tensors lie in the device's memory, and `gpu` says what its products need beside them.

mod format;
mod gpu;
mod graph;
mod heap;
mod memory;
mod methods;
mod pass;
mod tape;

pub use format::{WeightFormat, weight_bytes};
pub use gpu::{DRIVER_BYTES, GpuWeights};
pub use graph::{ModuleKind, ModuleShape, modules};
pub use heap::{Bytes, Cause};
pub use memory::{
    EvaluationShape, MemoryPlan, Phase, PhaseName, Workload, activation_bytes, fully_trained, overhead_bytes,
};

use taper_data::Batch;

/// How large a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchShape {
    /// T.
    pub tokens: u64,
    /// Tokens with a target.
    pub target_tokens: u64,
}

impl From<&Batch> for BatchShape {
    fn from(batch: &Batch) -> Self {
        Self { tokens: batch.tokens() as u64, target_tokens: batch.target_tokens as u64 }
    }
}
