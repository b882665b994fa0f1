//! Everything on a GPU, held against the CPU: `cargo test --features cuda --test gpu`.
//!
//! Without a device the tests skip, and say so. On a machine without one they run on the emulated device of `scripts/cuda-emulator.sh`.
#![cfg(feature = "cuda")]

mod adapters;
mod decoding;
mod kernels;
mod memory;
mod ops;
mod optimizer;
mod support;
mod training;
