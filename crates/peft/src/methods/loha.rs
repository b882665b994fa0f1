//! LoHa (Hyeon-Woo et al. 2022, "FedPara"): the delta is the element-wise product of two low-rank ones.

use super::lora::fill_kaiming;
use super::{AdapterMethod, Site, adapted, linear_target, slot, values, zeros};
use crate::keys::Reader;
use crate::modules::{ModuleShape, TrainedParameter};
use crate::plan::Planned;
use crate::sizes::Sizes;
use crate::{AdapterConfig, Result};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::{ForwardContext, Linear, LinearAdapter, ParameterKind, ops, with_f32};

/// What LoHa and LoKr add to a configuration. The rank is `r`, the scale's numerator `lora_alpha` (in their files `alpha`).
#[derive(Debug, Clone, PartialEq)]
pub struct Loha {
    /// Whether the adapter begins as nothing; else as noise.
    pub init_weights: bool,
}

impl Default for Loha {
    fn default() -> Self {
        Self { init_weights: true }
    }
}

impl AdapterMethod for Loha {
    fn peft_type(&self) -> &'static str {
        "LOHA"
    }

    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader) {
        reader.lycoris(config);
        self.init_weights = reader.take("init_weights", "a boolean", Value::as_bool).unwrap_or(true);
    }

    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value> {
        let mut map = config.lycoris_keys();
        map.insert("init_weights", json!(self.init_weights));
        map
    }

    fn adapt(&self, _config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned> {
        let (path, (n_in, n_out, _)) = (&module.path, linear_target(module)?);
        let rank = sizes.rank_of(path)?;
        let of = |name: &str, shape: [usize; 2]| slot(path, name, &shape, ParameterKind::Factor);
        let slots = vec![
            of("hada_w1_a", [n_out, rank]),
            of("hada_w1_b", [rank, n_in]),
            of("hada_w2_a", [n_out, rank]),
            of("hada_w2_b", [rank, n_in]),
        ];
        adapted(sizes, module, slots)
    }

    fn initial(
        &self,
        index: usize,
        slot: &TrainedParameter,
        _site: &Site<'_>,
        _made: &[Tensor],
        seed: u64,
    ) -> Result<Tensor> {
        // One factor of zeros is enough for an adapter that begins as nothing.
        if index == 3 && self.init_weights { zeros(&slot.shape) } else { kaiming(slot, seed) }
    }

    fn layer(
        &self,
        site: &Site<'_>,
        tensors: &[Tensor],
        _shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>> {
        let [a1, b1, a2, b2] = tensors else { candle_core::bail!("a LoHa layer has four factors") };
        let factors = [a1, b1, a2, b2].map(Clone::clone);
        Ok(Arc::new(DeltaLayer { delta: LohaDelta(factors), scale: site.scale }))
    }
}

/// Uniform in ±1/sqrt(columns), as torch gives a linear layer.
pub(super) fn kaiming(slot: &TrainedParameter, seed: u64) -> Result<Tensor> {
    let mut drawn = vec![0.0; slot.shape.iter().product()];
    fill_kaiming(&CounterRng::new(seed, stream_of(&slot.name)), slot.shape[1], &mut drawn);
    values(drawn, &slot.shape)
}

#[derive(Debug)]
struct LohaDelta([Tensor; 4]);

impl Delta for LohaDelta {
    /// `(W1a W1b) (W2a W2b)`.
    fn weight(&self) -> taper_nn::Result<Tensor> {
        let [a1, b1, a2, b2] = &self.0;
        ops::multiply(&ops::matmul(a1, b1)?, &ops::matmul(a2, b2)?)
    }
}

/// A change of a weight that is made of some factors.
pub(super) trait Delta: std::fmt::Debug + Send + Sync {
    /// `[out, in]`, differentiable.
    fn weight(&self) -> taper_nn::Result<Tensor>;
}

/// `y = base(x) + s x D^T`: D `[out, in]` is made anew in each pass.
#[derive(Debug)]
pub(super) struct DeltaLayer<D> {
    pub(super) delta: D,
    pub(super) scale: f64,
}

impl<D: Delta> LinearAdapter for DeltaLayer<D> {
    fn forward(&self, x: &Tensor, base: &Linear, _ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let weight = ops::scale(&self.delta.weight()?, self.scale)?;
        let delta = ops::linear_over(x, &weight, base.output_dtype(x))?;
        ops::add(&base.base_forward(x)?, &delta)
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let delta = self.delta.weight()?;
        let mut merged = with_f32(&delta, <[f32]>::to_vec)?;
        with_f32(&base.weight().to_f32()?, |weight| {
            for (m, w) in merged.iter_mut().zip(weight) {
                *m = w + *m * self.scale as f32;
            }
        })?;
        Tensor::from_vec(merged, base.weight().dims(), delta.device())
    }
}
