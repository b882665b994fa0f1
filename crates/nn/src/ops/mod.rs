//! Differentiable operations, one file each: the forward calls a kernel, the backward calls its twin.
//!
//! Every op takes and gives f32 tensors on the CPU. An op keeps its inputs (candle does that for the graph) and, where it
//! says so, a small statistic; nothing else outlives its forward.

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
mod seed;
mod soft_cap;

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
pub use seed::backward_from;
pub use soft_cap::soft_cap;
