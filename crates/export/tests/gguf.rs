//! GGUF files, read back by our own loader and held against what they were made from.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "gguf/adapter.rs"]
mod adapter;
#[path = "gguf/models.rs"]
mod models;
#[path = "gguf/support.rs"]
mod support;
#[path = "gguf/tokenizers.rs"]
mod tokenizers;
