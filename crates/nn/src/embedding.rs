//! The table of token embeddings.

use crate::{Parameter, ParameterKind, Result, Weight, ops};
use candle_core::Tensor;

/// A table `[V, H]` whose rows are looked up.
#[derive(Debug, Clone)]
pub struct Embedding {
    path: String,
    weight: Weight,
}

impl Embedding {
    /// A table named as in the checkpoint (without `.weight`).
    pub fn new(path: impl Into<String>, weight: Weight) -> Self {
        Self { path: path.into(), weight }
    }

    /// The path in the checkpoint, without `.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The table, `[V, H]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Train the table.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Parameter> {
        let var = self.weight.make_trainable()?;
        Ok(Parameter { name: format!("{}.weight", self.path), kind: ParameterKind::Embedding, var })
    }

    /// The rows of `ids`: `[T, H]`, f32.
    ///
    /// # Errors
    /// When an id is not below V.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        ops::embedding(ids, &self.weight).map_err(|e| e.context(format!("in `{}`", self.path)))
    }
}
