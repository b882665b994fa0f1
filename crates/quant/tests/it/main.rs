//! Block formats against bitsandbytes and gguf, and the fast decoders against the plain one.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod bnb;
mod decode;
mod ggml;
mod hostile;
mod support;
