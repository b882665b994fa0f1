//! The table of token embeddings, with a slot for an adapter.

use crate::{Parameter, ParameterKind, Result, Weight, ops};
use candle_core::Tensor;
use std::sync::Arc;

/// What an adapter does to a table.
pub trait EmbeddingAdapter: Send + Sync + std::fmt::Debug {
    /// The rows of `ids`, `[T, H]` f32, the base's included.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn forward(&self, ids: &[u32], base: &Embedding) -> Result<Tensor>;

    /// The table with the adapter merged into it, f32 `[V, H]`.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn merged_weight(&self, base: &Embedding) -> Result<Tensor>;
}

/// A table `[V, H]` whose rows are looked up.
#[derive(Debug, Clone)]
pub struct Embedding {
    path: String,
    weight: Weight,
    adapter: Option<Arc<dyn EmbeddingAdapter>>,
}

impl Embedding {
    /// A table named as in the checkpoint (without `.weight`).
    pub fn new(path: impl Into<String>, weight: Weight) -> Self {
        Self { path: path.into(), weight, adapter: None }
    }

    /// The path in the checkpoint, without `.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The table, `[V, H]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    pub(crate) fn set_weight(&mut self, weight: Weight) {
        self.weight = weight;
    }

    /// Give the table an adapter, or take it away.
    pub fn set_adapter(&mut self, adapter: Option<Arc<dyn EmbeddingAdapter>>) {
        self.adapter = adapter;
    }

    /// The adapter in the slot.
    pub fn adapter(&self) -> Option<&Arc<dyn EmbeddingAdapter>> {
        self.adapter.as_ref()
    }

    /// Train the table.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Parameter> {
        let var = self.weight.make_trainable()?;
        Ok(Parameter { name: format!("{}.weight", self.path), kind: ParameterKind::Embedding, var })
    }

    /// The rows of `ids` with the adapter: `[T, H]`, f32.
    ///
    /// # Errors
    /// When an id is not below V.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.adapter {
            None => self.base_forward(ids),
            Some(adapter) => adapter.forward(ids, self),
        }
        .map_err(|e| e.context(format!("in `{}`", self.path)))
    }

    /// The rows of `ids` without the adapter: `[T, H]`, f32.
    ///
    /// # Errors
    /// When an id is not below V.
    pub fn base_forward(&self, ids: &[u32]) -> Result<Tensor> {
        ops::embedding(ids, &self.weight)
    }
}
