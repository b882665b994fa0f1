//! What a run trains, and how it lies in a file.

use crate::error::{Doing, Error, Result};
use crate::tensor_file::{self, NamedTensor, TensorFile};
use std::path::Path;
use taper_nn::{ModuleMut, Parameter, VisitModules, Weight, to_vec_f32, update_f32};
use taper_peft::Adapter;

/// File of an adapter's weights, PEFT's name.
const ADAPTER_FILE: &str = "adapter_model.safetensors";
/// File of all weights, transformers' name.
const MODEL_FILE: &str = "model.safetensors";

/// The parameters of a run and where they come from.
#[derive(Debug)]
pub struct Trained {
    parameters: Vec<Parameter>,
    adapter: Option<Adapter>,
}

impl Trained {
    /// An adapter that is attached to a model.
    pub fn adapter(adapter: Adapter) -> Self {
        Self { parameters: adapter.parameters.clone(), adapter: Some(adapter) }
    }

    /// Every weight of `model`, made trainable in f32. A head that shares the embedding's table is trained through it.
    ///
    /// # Errors
    /// When a weight is quantised, or there is no memory for it.
    pub fn full(model: &mut dyn VisitModules) -> Result<Self> {
        if let Some(path) = first_quantized(model)? {
            return Err(Error::QuantizedWeight { path });
        }
        let mut parameters = Vec::new();
        model
            .visit_modules(&mut |module| {
                match module {
                    ModuleMut::Linear(linear) if linear.is_tied() => {
                        parameters.extend(linear.make_bias_trainable()?);
                    }
                    ModuleMut::Linear(linear) => parameters.extend(linear.make_trainable()?),
                    ModuleMut::Embedding(embedding) => parameters.push(embedding.make_trainable()?),
                    ModuleMut::RmsNorm(norm) => parameters.push(norm.make_trainable()?),
                }
                Ok(())
            })
            .doing(|| "make the model trainable".into())?;
        Ok(Self { parameters, adapter: None })
    }

    /// The parameters, in the order of the forward pass.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The adapter, unless all weights are trained.
    pub fn as_adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The adapter itself, to take it off the model or write it elsewhere; `None` when all weights are trained.
    pub fn into_adapter(self) -> Option<Adapter> {
        self.adapter
    }

    /// Numbers that are trained.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.var.elem_count()).sum()
    }

    /// Write the parameters into `folder`: an adapter as PEFT does, a whole model as `model.safetensors` in f32.
    ///
    /// # Errors
    /// What the disk says.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if let Some(adapter) = &self.adapter {
            return Ok(adapter.save_state(folder)?);
        }
        let values = self.values()?;
        let tensors = self.parameters.iter().zip(&values).map(|(p, values)| NamedTensor {
            name: p.name.clone(),
            shape: p.var.dims().to_vec(),
            values: values.into(),
        });
        tensor_file::write(&folder.join(MODEL_FILE), &tensors.collect::<Vec<_>>())
    }

    /// Put the values that [`Self::save`] wrote back, bit for bit.
    ///
    /// # Errors
    /// When the file is not there, or lacks a parameter.
    pub fn restore(&self, folder: &Path) -> Result<()> {
        let name = if self.adapter.is_some() { ADAPTER_FILE } else { MODEL_FILE };
        let file = TensorFile::open(&folder.join(name))?;
        let read = |p: &Parameter| file.values(&p.name, p.var.dims());
        let values = self.parameters.iter().map(read).collect::<Result<Vec<_>>>()?;
        self.set_values(&values)
    }

    /// Copies of all values, in the order of [`Self::parameters`].
    ///
    /// # Errors
    /// What candle says.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        let read = |p: &Parameter| to_vec_f32(p.var.as_tensor()).doing(|| format!("read `{}`", p.name));
        self.parameters.iter().map(read).collect()
    }

    /// Set all values, in the order of [`Self::parameters`].
    ///
    /// # Errors
    /// What candle says.
    ///
    /// # Panics
    /// When one has another number of elements: a fault of the caller.
    pub fn set_values(&self, values: &[Vec<f32>]) -> Result<()> {
        for (p, values) in self.parameters.iter().zip(values) {
            update_f32(&p.var, |target| target.copy_from_slice(values))
                .doing(|| format!("set `{}`", p.name))?;
        }
        Ok(())
    }
}

/// The path of the first module whose weight is coded in blocks.
fn first_quantized(model: &mut dyn VisitModules) -> Result<Option<String>> {
    let mut found = None;
    let visited = model.visit_modules(&mut |module| {
        let path = module.path().to_owned();
        let weight = match &module {
            ModuleMut::Linear(linear) => linear.weight(),
            ModuleMut::Embedding(embedding) => embedding.weight(),
            ModuleMut::RmsNorm(_) => return Ok(()),
        };
        if matches!(weight, Weight::Frozen(frozen) if frozen.as_quantized().is_some()) {
            found.get_or_insert(path);
        }
        Ok(())
    });
    visited.doing(|| "look at the model's weights".into())?;
    Ok(found)
}
