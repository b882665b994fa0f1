//! Differentiable operations, one file each: the forward calls a kernel, the backward calls its twin.
//!
//! Activations are f32 or bf16 tensors on the CPU, gradients f32. While a [`crate::tape`] records, an op keeps what its backward reads, and a
//! small statistic where it says so; nothing else outlives its forward.

mod activation;
mod attention;
mod columns;
mod cross_entropy;
mod dropout;
mod embedding;
mod experts;
mod linear;
mod lora;
mod norm;
mod products;
mod rope;
mod row_norms;
mod rows;
mod scale_columns;
mod soft_cap;
mod sum;
mod tokens;

pub use activation::{Gate, gated};
pub use attention::{AttentionShape, attention};
pub use columns::columns;
pub use cross_entropy::{CrossEntropy, cross_entropy, cross_entropy_with_gradient};
pub use dropout::{LoraDropout, dropout};
pub use embedding::embedding;
pub use experts::{Routing, mix_experts, routing_weights, rows};
pub use linear::{linear, linear_over};
pub use lora::{LoraTerms, lora_delta, lora_linear};
pub use norm::{rms_norm, rms_norm_trainable};
pub use products::{kronecker, matmul, multiply};
pub use rope::rope;
pub use row_norms::{adapted_row_norms, row_squares};
pub use rows::{put_rows, take_rows, zeros_like};
pub use scale_columns::scale_columns;
pub use soft_cap::soft_cap;
pub use sum::{add, add_bias, cast, scale};
pub use tokens::{embedding_columns, replace_columns, replace_rows};
