//! Write what was trained so that others can read it, and prove that it is what was trained.
//!
//! [`write_merged`] writes a whole model in the Hub's layout, tensor by tensor; [`write_gguf`] and [`write_gguf_adapter`] write files for
//! llama.cpp, [`write_modelfile`] what Ollama needs beside them. [`ReferenceLogits`] and [`ExportProof`] hold what is
//! read back against the trained model, and what it keeps of the adapter's gain; a [`Contract`] beside an adapter says what it was
//! trained over; [`write_mlx_adapter`] writes an adapter in mlx-lm's layout; a [`ModelCard`] tells people all of that. Every folder appears as a whole.

mod card;
mod contract;
mod error;
mod folder;
mod gguf;
mod merged;
mod mlx;
mod ollama;
mod proof;
mod reference;
mod section;
mod shards;
mod shift;

pub use card::{BaseTerms, CardData, CardKind, ModelCard, write_card};
pub use contract::{
    BaseFacts, BaseInUse, CONTRACT_FILE, CONTRACT_SCHEMA, Contract, DataFacts, Difference, FileFacts,
    GoldenOutcome, GoldenPrompt, LayerScale, ScaleFacts, Score, SpecialToken, TemplateText, TokenizerFacts,
    TopLogit,
};
pub use error::{Error, Result};
pub use gguf::{
    ChatTexts, Fallback, GgufAdapterOptions, GgufError, GgufOptions, GgufType, WrittenGguf,
    WrittenGgufAdapter, chat_texts, read_gguf_adapter, write_gguf, write_gguf_adapter,
};
pub use merged::{MAX_SHARD_BYTES, MergeOptions, WrittenModel, declared_dtype, write_merged};
pub use mlx::write_mlx_adapter;
pub use ollama::{Modelfile, ModelfileSource, TemplateFamily, WrittenModelfile, write_modelfile};
pub use proof::{Exactness, ExportProof, Gain, kl_limit};
pub use reference::{ProofText, REFERENCE_BYTES, ReferenceLogits, SupervisedLosses};
pub use section::{ExportFormat, ExportSection, MergedDtype};
pub use shift::LogitShift;
