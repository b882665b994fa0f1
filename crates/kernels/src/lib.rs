//! The fast arithmetic of taper: plain slices in, plain slices out, no tensor library.
//!
//! Letters: T tokens of a packed batch, H hidden width, N query heads, K key/value heads, D head width, V vocabulary.
//! All slices are row-major and contiguous; activations are `f32` or `bf16`
//! ([`floats::Floats`]), weights `f32`, `bf16`, `f16` or coded in blocks ([`gemm::WeightView`]), gradients `f32`.
//!
//! Three promises hold for every function:
//!
//! - The result has the same bits for any number of threads: work is cut on boundaries that depend on the shapes alone, and every output
//!   element is summed by one task in one order. The bits may differ between processors with different vector units.
//! - Outputs are written, never read, unless the function says that it adds. A buffer full of NaN is a valid output.
//! - A NaN or an infinity in an input is passed on, never masked away.
//!
//! Slices of a wrong length are a fault of the caller and panic with the lengths. Every kernel has its twin in [`plain`]: the formula
//! written down in `f64` loops, against which it is tested.

#[macro_use]
mod simd;
#[cfg(test)]
mod testing;

pub mod activation;
pub mod adamw;
pub mod adamw8bit;
mod allocator;
pub mod attention;
pub mod columns;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(target_arch = "x86_64")]
mod decode;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod floats;
pub mod gemm;
pub mod kronecker;
pub mod linear;
pub mod low_rank;
mod mapped_file;
pub mod norm;
pub mod plain;
mod product;
pub mod reduce;
pub mod rng;
pub mod rope;
pub mod routing;
pub mod rows;
mod shared;
pub mod soft_cap;
pub mod softmax_weights;
pub mod threads;

pub use allocator::keep_freed_pages;
pub use mapped_file::MappedFile;
