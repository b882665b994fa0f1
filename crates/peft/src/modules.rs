//! The modules of a model by path and shape, and which of them an adapter trains.

use crate::plan::{Author, plan};
use crate::{AdapterConfig, Result};
use taper_nn::{ModuleMut, ParameterKind, VisitModules};

/// A module of a model without its weights: what a configuration is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleShape {
    /// The path in the checkpoint, without `.weight`.
    pub path: String,
    /// What it is, and its sizes.
    pub kind: ModuleKind,
}

/// What a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear layer.
    Linear {
        /// Width of its input.
        n_in: usize,
        /// Width of its output.
        n_out: usize,
        /// Whether it has a bias.
        bias: bool,
        /// Whether its weight is the embedding's table.
        tied: bool,
        /// Whether an adapter sits on it already.
        occupied: bool,
    },
    /// A table.
    Embedding {
        /// Tokens.
        rows: usize,
        /// Width of a row.
        width: usize,
    },
    /// A norm.
    RmsNorm {
        /// Elements of its gain.
        width: usize,
    },
}

/// A module of which something is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedModule {
    /// The module's path, without PEFT's prefix.
    pub path: String,
    /// What is trained of it: for an adapter A, B and perhaps the bias.
    pub parameters: Vec<TrainedParameter>,
}

/// One tensor of the adapter's file.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedParameter {
    /// Its key in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParameterKind,
}

/// The modules of a model in the order of its forward pass.
///
/// # Errors
/// What the visit says.
pub fn inventory(model: &mut dyn VisitModules) -> Result<Vec<ModuleShape>> {
    let mut modules = Vec::new();
    model
        .visit_modules(&mut |module| {
            let kind = match &module {
                ModuleMut::Linear(m) => ModuleKind::Linear {
                    n_in: m.in_features(),
                    n_out: m.out_features(),
                    bias: m.bias().is_some(),
                    tied: m.is_tied(),
                    occupied: m.adapter().is_some(),
                },
                ModuleMut::Embedding(m) => {
                    let (rows, width) = m.weight().dims();
                    ModuleKind::Embedding { rows, width }
                }
                ModuleMut::RmsNorm(m) => ModuleKind::RmsNorm { width: m.weight().elem_count() },
            };
            modules.push(ModuleShape { path: module.path().to_owned(), kind });
            Ok(())
        })
        .map_err(crate::error::doing("look at the model's modules"))?;
    Ok(modules)
}

/// What [`attach`](crate::attach) would train of a model with `modules`, in the order of its forward pass; needs no weights.
///
/// # Errors
/// When the configuration does not fit the model, as `attach`.
pub fn trained_modules(
    config: &AdapterConfig,
    modules: &[ModuleShape],
    model_type: &str,
) -> Result<Vec<TrainedModule>> {
    let plan = plan(config, modules, Some(model_type), Author::User)?;
    let trained = plan.modules.into_iter().map(|p| TrainedModule { path: p.path, parameters: p.slots });
    Ok(trained.collect())
}
