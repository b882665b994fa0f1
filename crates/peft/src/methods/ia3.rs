//! (IA)³ (Liu et al. 2022): a factor for each input of feed-forward layers, for each output of the others.

use super::{AdapterMethod, Site, adapted, linear_target, slot, values};
use crate::keys::{Reader, as_names};
use crate::modules::{ModuleShape, TrainedParameter};
use crate::plan::Planned;
use crate::sizes::Sizes;
use crate::targets::{Names, TargetModules};
use crate::{AdapterConfig, ModuleNames, Result};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::{ForwardContext, Linear, LinearAdapter, ParameterKind, ops, to_device, with_f32};

/// What is (IA)³'s own in its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Ia3 {
    /// Targets whose inputs are scaled, not their outputs.
    pub feedforward_modules: Option<ModuleNames>,
    /// Whether factors begin at 1, and the adapter as nothing; else they are drawn.
    pub init_ia3_weights: bool,
}

impl Default for Ia3 {
    fn default() -> Self {
        Self { feedforward_modules: None, init_ia3_weights: true }
    }
}

impl Ia3 {
    /// The same with the targets spelled out where they were: PEFT wants each of these among them by name.
    pub(crate) fn among(&self, targets: &TargetModules) -> Result<Self> {
        let (Some(ModuleNames::List(_)), TargetModules::List(paths)) = (&self.feedforward_modules, targets)
        else {
            return Ok(self.clone());
        };
        let mut scaled = Vec::new();
        for path in paths {
            if self.is_feedforward(path)? {
                scaled.push(path.clone());
            }
        }
        Ok(Self { feedforward_modules: Some(ModuleNames::List(scaled)), ..self.clone() })
    }

    fn is_feedforward(&self, path: &str) -> Result<bool> {
        match &self.feedforward_modules {
            Some(names) => Names::new("feedforward_modules", names.clone())?.matches(path),
            None => Ok(false),
        }
    }
}

impl AdapterMethod for Ia3 {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader) {
        reader.exclude_modules(config);
        reader.must_be(
            "fan_in_fan_out",
            &json!(false),
            "it is for layers that store their weight as (in, out)",
        );
        self.feedforward_modules =
            reader.take("feedforward_modules", "a list of module names or a regular expression", as_names);
        self.init_ia3_weights = reader.take("init_ia3_weights", "a boolean", Value::as_bool).unwrap_or(true);
    }

    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value> {
        BTreeMap::from([
            ("exclude_modules", crate::config::names_or_null(config.exclude_modules.clone())),
            ("fan_in_fan_out", json!(false)),
            ("feedforward_modules", crate::config::names_or_null(self.feedforward_modules.clone())),
            ("init_ia3_weights", json!(self.init_ia3_weights)),
        ])
    }

    fn faults(&self, config: &AdapterConfig) -> Vec<(&'static str, String, &'static str)> {
        let (Some(ModuleNames::List(scaled)), Some(TargetModules::List(targets))) =
            (&self.feedforward_modules, &config.target_modules)
        else {
            return Vec::new();
        };
        let other = scaled.iter().find(|name| !targets.contains(name));
        let fault = |name| {
            let message =
                format!("`feedforward_modules` names `{name}`, which is not among `target_modules`");
            ("feedforward_modules", message, "name it as there, or leave it out")
        };
        other.map(fault).into_iter().collect()
    }

    fn adapt(&self, _config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned> {
        let (n_in, n_out, _) = linear_target(module)?;
        let shape = if self.is_feedforward(&module.path)? { [1, n_in] } else { [n_out, 1] };
        adapted(sizes, module, vec![slot(&module.path, "ia3_l", &shape, ParameterKind::Vector)])
    }

    fn initial(
        &self,
        _index: usize,
        slot: &TrainedParameter,
        _site: &Site<'_>,
        _made: &[Tensor],
        seed: u64,
    ) -> Result<Tensor> {
        let mut factors = vec![1.0; slot.shape.iter().product()];
        if !self.init_ia3_weights {
            CounterRng::new(seed, stream_of(&slot.name)).fill_normal(0, 1.0, &mut factors);
        }
        values(factors, &slot.shape)
    }

    fn layer(
        &self,
        _site: &Site<'_>,
        tensors: &[Tensor],
        _shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>> {
        let [factors] = tensors else { candle_core::bail!("an IA3 layer has one vector") };
        Ok(Arc::new(Ia3Layer { factors: factors.clone(), of_inputs: factors.dims()[0] == 1 }))
    }
}

/// `y = W (l x) + b`, or `y = l (W x + b)`.
#[derive(Debug)]
struct Ia3Layer {
    factors: Tensor,
    of_inputs: bool,
}

impl LinearAdapter for Ia3Layer {
    fn forward(&self, x: &Tensor, base: &Linear, _ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        if self.of_inputs {
            base.base_forward(&ops::scale_columns(x, &self.factors, None)?)
        } else {
            ops::scale_columns(&base.base_forward(x)?, &self.factors, None)
        }
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let (n_out, n_in) = base.weight().dims();
        let mut merged = with_f32(&base.weight().to_f32()?, <[f32]>::to_vec)?;
        with_f32(&self.factors, |factors| {
            for (row, values) in merged.chunks_exact_mut(n_in).enumerate() {
                for (column, value) in values.iter_mut().enumerate() {
                    *value *= factors[if self.of_inputs { column } else { row }];
                }
            }
        })?;
        Tensor::from_vec(merged, (n_out, n_in), self.factors.device())
    }

    fn merged_bias(&self, base: &Linear) -> taper_nn::Result<Option<Tensor>> {
        match base.bias() {
            Some(bias) if !self.of_inputs => {
                let factors = to_device(&self.factors.detach().flatten_all()?, &Device::Cpu)?;
                let merged = to_device(&bias, &Device::Cpu)?.mul(&factors)?;
                to_device(&merged, bias.device()).map(Some)
            }
            bias => Ok(bias),
        }
    }
}
