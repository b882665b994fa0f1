//! GGUF files: a whole model for llama.cpp, Ollama and their kin, or an adapter for a base in that format.
//!
//! [`write_gguf`] writes the model with what is attached to it, tensor by tensor; [`write_gguf_adapter`] the low-rank factors alone.

mod adapter;
mod error;
mod metadata;
mod mix;
mod read_adapter;
mod tensors;
mod tokenizer;

pub use adapter::{GgufAdapterOptions, WrittenGgufAdapter, write_gguf_adapter};
pub use error::GgufError;
pub use mix::{Fallback, GgufType};
pub use read_adapter::read_gguf_adapter;
pub use tokenizer::{ChatTexts, chat_texts};

use crate::{Error, Result};
use std::path::{Path, PathBuf};
use taper_hub::ModelFiles;
use taper_hub::gguf::{Architecture, GgufWriter, Keys, PlannedTensor, WriteError, read_header};
use taper_models::CausalLm;
use taper_quant::GgmlType;

/// How a model is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufOptions {
    /// The type of the weights.
    pub gguf_type: GgufType,
    /// The model's name for people; the base's where none is given.
    pub name: Option<String>,
    /// A chat template that takes the place of the base's.
    pub chat_template: Option<PathBuf>,
}

impl Default for GgufOptions {
    fn default() -> Self {
        Self { gguf_type: GgufType::Q8_0, name: None, chat_template: None }
    }
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenGguf {
    /// The file.
    pub path: PathBuf,
    /// The type of most weights.
    pub gguf_type: GgufType,
    /// Tensors in it.
    pub tensors: usize,
    /// Its length.
    pub bytes: u64,
    /// Tensors that have another type than the mix gives them.
    pub fallbacks: Vec<Fallback>,
    /// For people: what the file, or llama.cpp with it, does otherwise than the model here.
    pub notes: Vec<String>,
}

/// Write the model with what is attached to it into one GGUF file: each adapter merged into its weight, trained biases, norms and embeddings
/// in place of the base's, the tokenizer and the chat template in the metadata.
///
/// Memory holds one tensor beside the model, and rows are coded by all threads. Weights of a quantised base that nothing was done to and
/// that get the type they have keep their bits. The tokenizer in the file is read back and compared before a tensor is made. The file
/// appears under its name when it is whole.
///
/// # Errors
/// When GGUF has no word for something in the model or its tokenizer, a weight does not fit its type, or the disk fails.
pub fn write_gguf(
    model: &mut dyn CausalLm,
    base: &ModelFiles,
    path: &Path,
    options: &GgufOptions,
) -> Result<WrittenGguf> {
    let plan = tensors::plan(model, options.gguf_type)?;
    let described = metadata::describe(model.config(), plan.own_head)?;
    let rows = model.config().vocab_size;
    let tokenizer = tokenizer::keys(base, rows, options.chat_template.as_deref())?;
    let architecture = metadata::architecture(model.config().model_type);
    let strips_right = tokenizer.as_ref().is_some_and(|written| written.strips_right);

    let mut keys = general(base, options, architecture, strips_right)?;
    keys.extend(described.keys);
    let mut notes = described.notes;
    let has_tokenizer = tokenizer.is_some();
    if !has_tokenizer {
        notes.push("the base has no tokenizer, and llama.cpp loads no file without one".into());
    }
    if let Some(written) = tokenizer {
        keys.extend(written.keys);
        notes.extend(written.notes);
    }
    let factors = described.factors.iter().map(|(name, factors)| PlannedTensor {
        name: (*name).to_owned(),
        ggml_type: GgmlType::F32,
        shape: vec![factors.len()],
    });
    let planned: Vec<PlannedTensor> = factors.chain(plan.tensors.iter().cloned()).collect();

    let failed = |source: WriteError| Error::from(GgufError::Write { path: path.to_owned(), source });
    let mut writer = GgufWriter::create(path, &keys, &planned).map_err(failed)?;
    for (name, factors) in &described.factors {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer.push(name, &bytes).map_err(failed)?;
    }
    if has_tokenizer {
        notes.extend(tokenizer::check(base, writer.temporary_path())?);
    }
    tensors::write(model, &plan, &mut writer, failed)?;
    let bytes = writer.finish().map_err(failed)?;
    Ok(WrittenGguf {
        path: path.to_owned(),
        gguf_type: options.gguf_type,
        tensors: planned.len(),
        bytes,
        fallbacks: plan.fallbacks,
        notes,
    })
}

/// The keys `general.*`. A base that is a GGUF file keeps what it says of its origin.
fn general(
    base: &ModelFiles,
    options: &GgufOptions,
    architecture: Architecture,
    strips_right: bool,
) -> Result<Keys> {
    const OURS: [&str; 6] =
        ["architecture", "type", "file_type", "quantization_version", "alignment", "name"];
    let mut keys = Keys::new();
    let mut name = options.name.clone();
    keys.text("general.architecture", architecture.name());
    keys.text("general.type", "model");
    if let Some(path) = &base.gguf {
        let header = read_header(path).map_err(GgufError::from)?;
        for (key, value) in header.metadata.iter() {
            let own = key.strip_prefix("general.").is_some_and(|key| !OURS.contains(&key));
            if own {
                keys.value(key, value);
            }
        }
        let known = header.metadata.text("general.name").ok().flatten();
        name = name.or_else(|| known.map(str::to_owned));
    }
    let folder = || base.root.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.or_else(folder).unwrap_or_else(|| architecture.name().to_owned());
    keys.text("general.name", &named(&name, strips_right));
    keys.number("general.file_type", options.gguf_type.file_type());
    keys.number("general.quantization_version", 2u32);
    Ok(keys)
}

/// llama.cpp lets special tokens take the space behind them along by this part of a model's name, and files have no other word for it: so
/// the name says it exactly when the tokenizer does.
fn named(name: &str, strips_right: bool) -> String {
    let lower = name.to_ascii_lowercase();
    let found = ["phi-3", "phi3"].into_iter().find_map(|part| Some((lower.find(part)?, part.len())));
    match (strips_right, found) {
        (true, None) => format!("{name} (phi-3)"),
        (false, Some((at, length))) => named(&format!("{}Phi 3{}", &name[..at], &name[at + length..]), false),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_what_the_tokenizer_does() {
        assert_eq!(named("tickets", false), "tickets");
        assert_eq!(named("tickets", true), "tickets (phi-3)");
        assert_eq!(named("My-PHI-3-mini", true), "My-PHI-3-mini");
        assert_eq!(named("é PHI-3 and phi3", false), "é Phi 3 and Phi 3");
    }
}
