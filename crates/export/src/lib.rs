//! Write what was trained so that others can read it, and prove that it is what was trained.
//!
//! [`place_adapter`] puts PEFT's files and a card in a folder; [`write_merged`] writes a whole model in the Hub's layout, tensor by tensor;
//! [`write_gguf`] and [`write_gguf_adapter`] write files for llama.cpp, [`write_modelfile`] what Ollama needs beside them.
//! [`ReferenceLogits`] and [`ExportProof`] hold what is read back against the trained model. Every folder appears as a whole.

mod adapter;
mod error;
mod folder;
mod gguf;
mod merged;
mod ollama;
mod proof;
mod section;
mod shards;

pub use adapter::{ModelCard, place_adapter, write_card};
pub use error::{Error, Result};
pub use gguf::{
    ChatTexts, Fallback, GgufAdapterOptions, GgufError, GgufOptions, GgufType, WrittenGguf,
    WrittenGgufAdapter, chat_texts, write_gguf, write_gguf_adapter,
};
pub use merged::{MAX_SHARD_BYTES, MergeOptions, WrittenModel, write_merged};
pub use ollama::{Modelfile, ModelfileSource, TemplateFamily, WrittenModelfile, write_modelfile};
pub use proof::{ExportProof, ReferenceLogits, kl_limit};
pub use section::{ExportFormat, ExportSection, MergedDtype};
