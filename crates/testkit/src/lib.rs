//! What tests of several crates share: golden numbers, real files, tiny checkpoints, gradient checks.
//!
//! These are helpers of tests: they panic with a text that says what to do, instead of returning errors.

mod close;
mod gguf;
mod gradient;
pub mod hostile;
mod locate;
mod tiny;

pub use close::{assert_close, largest_difference, root_mean_square_difference};
pub use gguf::GgufFile;
pub use gradient::{GradientCheck, gradient_check};
pub use locate::{golden, read_json, read_safetensors, real_data, real_data_or_skip};
pub use tiny::{TinySpec, tiny_checkpoint};
