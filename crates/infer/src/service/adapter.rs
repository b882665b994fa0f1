//! An adapter in memory, as the passes of a batch take it.

use super::AdapterError;
use std::path::Path;
use std::sync::Arc;
use taper_diagnostics::Diagnose;
use taper_models::{CausalLm, ModelConfig, ModelType};
use taper_nn::{AdaptedModules, to_vec_f32};
use taper_peft::{Adapter, HeadLayout, LoadMode};
use taper_text::ContentHash;

/// An adapter in memory.
pub struct ServedAdapter {
    name: String,
    peft_type: &'static str,
    sha256: [u8; 32],
    modules: Arc<AdaptedModules>,
    /// A copy of the model with the adapter on it, where the modules alone do not say all.
    copy: Option<Box<dyn CausalLm>>,
    bytes: usize,
}

impl std::fmt::Debug for ServedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedAdapter").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServedAdapter {
    /// Read the adapter in `folder` for `base`, a numbered model that stays as it is.
    ///
    /// # Errors
    /// When it does not fit the model.
    pub(crate) fn read(name: &str, folder: &Path, base: &dyn CausalLm) -> Result<Self, AdapterError> {
        let (mut plain, mut copy) = (base.clone_boxed(), base.clone_boxed());
        let heads = head_layout(base.config());
        let refused = |reason: String| AdapterError::refused(name, folder, &reason);
        let loaded = taper_peft::load_for(folder, copy.as_mut(), LoadMode::Inference, heads)
            .map_err(|error| refused(told(&error)))?;
        let modules = AdaptedModules::of(plain.as_mut(), copy.as_mut(), base.activation_dtype())
            .map_err(|error| refused(error.to_string()))?;
        let file_bytes: usize = loaded.weights().iter().map(|(_, tensor)| 4 * tensor.elem_count()).sum();
        let needs_copy = modules.unrouted().is_some() || modules.has_embedding();
        Ok(Self {
            name: name.to_owned(),
            peft_type: loaded.config.method.peft_type(),
            sha256: content_hash(&loaded).map_err(|error| refused(error.to_string()))?,
            bytes: if needs_copy { file_bytes.max(modules.bytes()) } else { modules.bytes() },
            modules: Arc::new(modules),
            copy: needs_copy.then_some(copy),
        })
    }

    /// The name it is asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PEFT's name of its method.
    pub fn peft_type(&self) -> &'static str {
        self.peft_type
    }

    /// A hash over its configuration and tensors.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first module that is more than a low-rank delta; with one, the adapter is used at scale 1 and alone.
    pub fn first_whole(&self) -> Option<&str> {
        self.modules.first_whole()
    }

    pub(crate) fn modules(&self) -> &Arc<AdaptedModules> {
        &self.modules
    }

    /// The model with the adapter on it, where its rows cannot share a pass with others.
    pub(crate) fn own_pass(&self) -> Option<&dyn CausalLm> {
        self.modules.unrouted().and(self.copy.as_deref())
    }

    /// The model with the adapter on it, where it looks ids up otherwise.
    pub(crate) fn embeds(&self) -> Option<&dyn CausalLm> {
        if self.modules.has_embedding() { self.copy.as_deref() } else { None }
    }
}

/// An error, its causes and what to do about it, in a line.
fn told(error: &taper_peft::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let lines = std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).chain(error.hint());
    lines.collect::<Vec<_>>().join(": ")
}

fn content_hash(adapter: &Adapter) -> taper_nn::Result<[u8; 32]> {
    let mut hash = ContentHash::new("taper served adapter");
    hash.add(adapter.config.to_json().as_bytes());
    for (name, tensor) in adapter.weights().iter() {
        hash.add(name.as_bytes());
        tensor.dims().iter().for_each(|&size| hash.add_number(size as u64));
        let values: Vec<u8> = to_vec_f32(tensor)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        hash.add(&values);
    }
    Ok(hash.finish())
}

/// How torchtune orders the rows of query and key; `None` for what it does not train, or trains under other names.
pub fn head_layout(config: &ModelConfig) -> Option<HeadLayout> {
    match config.model_type {
        ModelType::Llama | ModelType::Mistral | ModelType::Gemma2 => Some(HeadLayout::Interleaved {
            query: config.num_attention_heads,
            key: config.num_key_value_heads,
        }),
        ModelType::Qwen2 => Some(HeadLayout::Halves),
        _ => None,
    }
}
