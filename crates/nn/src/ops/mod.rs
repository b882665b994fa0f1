//! Differentiable operations, one file each: the forward calls a kernel, the backward calls its twin.
//!
//! Activations are f32 or bf16 tensors on the CPU, gradients f32. While a [`crate::tape`] records, an op keeps what its backward reads, and a
//! small statistic where it says so; nothing else outlives its forward.

mod activation;
mod attention;
mod columns;
mod cross_entropy;
mod embedding;
mod experts;
mod linear;
mod lora;
mod norm;
mod rope;
mod soft_cap;
mod sum;

pub use activation::{Gate, gated};
pub use attention::{AttentionShape, attention};
pub use columns::columns;
pub use cross_entropy::{CrossEntropy, cross_entropy, cross_entropy_with_gradient};
pub use embedding::embedding;
pub use experts::{Routing, mix_experts, routing_weights, rows};
pub use linear::linear;
pub use lora::{LoraDropout, LoraTerms, lora_delta, lora_linear};
pub use norm::{rms_norm, rms_norm_trainable};
pub use rope::rope;
pub use soft_cap::soft_cap;
pub use sum::{add, add_bias, cast, scale};
