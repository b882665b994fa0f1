//! Block formats of frozen weights: NF4, FP4 and int8 in bitsandbytes' layout, and GGML's types; encode and decode, on plain buffers.
//!
//! A matrix stays as it lies in its file. [`QuantizedTensor::decode`] gives any run of its elements in f32; the products in `kernels` ask
//! for one tile at a time, so that nowhere a whole matrix is wide. Encoding gives the bytes that bitsandbytes and llama.cpp give.

mod bytes;
mod decode;
pub mod dynamic;
mod encode;
mod error;
mod four_bit;
mod ggml;
mod int8;
pub mod plain;
mod tensor;

pub use bytes::Bytes;
pub use error::QuantError;
pub use four_bit::{Absmax, FourBit, FourBitType};
pub use ggml::GgmlType;
pub use int8::Int8Rows;
pub use tensor::{BlockFormat, Parts, QuantizedTensor};
