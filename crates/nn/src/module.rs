//! How `peft` and `train` reach the modules of a model without knowing its architecture.

use crate::{Embedding, Linear, Result, RmsNorm};

/// A module that can be adapted or trained. Each knows its path, for example `model.layers.0.mlp.up_proj`.
pub enum ModuleMut<'a> {
    /// A linear layer.
    Linear(&'a mut Linear),
    /// An embedding table.
    Embedding(&'a mut Embedding),
    /// A norm.
    RmsNorm(&'a mut RmsNorm),
}

impl ModuleMut<'_> {
    /// The module's path in the checkpoint, without `.weight`.
    pub fn path(&self) -> &str {
        match self {
            Self::Linear(m) => m.path(),
            Self::Embedding(m) => m.path(),
            Self::RmsNorm(m) => m.path(),
        }
    }
}

/// A model that shows its modules, in the order of the forward pass.
///
/// A head that shares the embedding's table is shown as a [`Linear`] of its own (its adapter slot is its own), and must
/// use the embedding's weight again after each visit: [`Linear::is_tied`] tells.
pub trait VisitModules {
    /// Show every module to `visit`, which may change it.
    ///
    /// # Errors
    /// The first error of `visit`.
    fn visit_modules(&mut self, visit: &mut dyn FnMut(ModuleMut<'_>) -> Result<()>) -> Result<()>;
}
