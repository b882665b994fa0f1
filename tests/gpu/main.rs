//! Everything on a GPU, held against the CPU: `cargo test --features cuda --test gpu`.
//!
//! Without a device the tests skip, and say so. On a machine without one they run on the emulated device of `scripts/cuda-emulator.sh`.
#![cfg(feature = "cuda")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test that cannot go on has failed, and says what it found"
)]

mod adapters;
mod decoding;
mod kernels;
mod memory;
mod ops;
mod optimizer;
mod streaming;
mod support;
mod training;
