//! Readers of foreign bytes, each with what it promises for any input: the one body of `fuzz/fuzz_targets` and of the
//! test that replays the seeds in `fuzz/corpus`.
//!
//! An entry returns whether the input was accepted by the reader. It panics when a promise is broken: a panic of the
//! reader itself, or an accepted input that is not what the reader's documentation says. Time and memory are limited by
//! whoever calls.

mod adapter;
mod adapter_config;
mod config;
mod gguf;
mod safetensors;
mod template;
mod tokenizer;

pub use adapter::adapter;
pub use adapter_config::adapter_config;
pub use config::config;
pub use gguf::gguf;
pub use safetensors::safetensors;
pub use template::template;
pub use tokenizer::tokenizer;

/// A reader of foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: the fuzz target and its folder of seeds.
    pub name: &'static str,
    /// Feeds it; tells whether the input was accepted.
    pub run: fn(&[u8]) -> bool,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "adapter", run: adapter },
    Target { name: "adapter_config", run: adapter_config },
    Target { name: "config", run: config },
    Target { name: "gguf", run: gguf },
    Target { name: "safetensors", run: safetensors },
    Target { name: "template", run: template },
    Target { name: "tokenizer", run: tokenizer },
];
