//! Block formats against bitsandbytes and gguf, and the fast decoders against the plain one.

mod bnb;
mod decode;
mod ggml;
mod hostile;
mod support;
