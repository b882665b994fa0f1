//! Differentiable blocks over candle tensors, dense or quantised weights, with a slot for an adapter.
//!
//! Shape letters, here and above: T tokens of a batch, H hidden size, N query heads, K key/value heads, D head
//! dimension, I width of the MLP, V vocabulary, r rank of an adapter.
//!
//! A batch is one flat run of T tokens cut in segments, one per sequence ([`SequenceLayout`]); there is no padding and
//! no `[B, S, …]` tensor, so that a batch, a single sequence and a packed row are the same computation.
//!
//! All contact with candle's internals (storages) is here. Each op in [`ops`] has a backward, tested against finite differences, and is recorded
//! on a [`tape`] of our own; candle-nn's fused ops have none and cut the gradient in silence.

mod cache;
mod checkpoint;
mod context;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod embedding;
mod held;
mod layout;
mod linear;
mod module;
mod norm;
pub mod ops;
mod parameter;
mod routes;
mod storage;
mod sums;
pub mod tape;
mod weight;

pub use cache::{CacheMeter, KvCache, KvPage, PAGE_TOKENS};
pub use checkpoint::{Checkpoint, CheckpointError, StoredFormat};
pub use context::{ForwardContext, RandomKey, RotaryTables};
pub use device::{
    DeviceError, DeviceMemory, bytes_asked_of_full_device, device_name, host_operations, memory_of, move_to,
    open_device, reset_peak_memory, to_device,
};
pub use embedding::{Embedding, EmbeddingAdapter};
pub use held::{constants_held, with_constants_held};
pub use layout::SequenceLayout;
pub use linear::{Linear, LinearAdapter, LowRankDelta};
pub use module::{ModuleMut, VisitModules};
pub use norm::{RmsNorm, with_f32_activations};
pub use parameter::{Parameter, ParameterKind};
pub use routes::{AdaptedModules, Route, RoutePart, Routes, number_modules, stack_rows};
pub use storage::{to_vec_f32, update_f32, with_f32};
pub use sums::{GradientSums, Moments};
pub use weight::{FrozenWeight, ReadWeight, Weight};

/// What the arithmetic returns: candle's own error, with the module that failed in its context.
pub type Result<T> = candle_core::Result<T>;
