//! LoRA: a low-rank delta of a linear layer, with rsLoRA's scale and a bias of its own on request.

use super::{AdapterMethod, DoraLayer, Site, adapted, input_dropout, linear_target, slot, values, zeros};
use crate::keys::Reader;
use crate::modules::{ModuleKind, ModuleShape, TrainedParameter};
use crate::plan::Planned;
use crate::sizes::Sizes;
use crate::{AdapterConfig, Bias, Error, InitLoraWeights, Result};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_kernels::gemm;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::ops::{self, LoraTerms};
use taper_nn::{
    ForwardContext, Linear, LinearAdapter, LowRankDelta, ParameterKind, Weight, to_device, with_f32,
};

/// The method; its settings are [`AdapterConfig`]'s own.
pub(crate) struct Lora;

/// An embedding's adapter is A and B: what LoRA can have beyond them is for linear layers.
fn plain_embedding(config: &AdapterConfig, path: &str) -> Result<()> {
    let more = [
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("init_lora_weights", config.init_lora_weights.is_of_the_weight()),
    ];
    match more.into_iter().find(|(_, has)| *has) {
        Some((key, _)) => Err(Error::Conflict {
            key,
            what: format!("`{path}` is an embedding, which cannot be adapted with this `{key}`"),
            remedy: "take the embedding out of `target_modules`, or leave the key out",
        }),
        None => Ok(()),
    }
}

impl AdapterMethod for Lora {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader) {
        reader.lora(config);
    }

    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value> {
        config.lora_keys()
    }

    fn adapt(&self, config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned> {
        let path = &module.path;
        let rank = sizes.rank_of(path)?;
        let is_tied_or_table =
            matches!(module.kind, ModuleKind::Embedding { .. } | ModuleKind::Linear { tied: true, .. });
        if is_tied_or_table && config.ensure_weight_tying {
            return Err(Error::Conflict {
                key: "ensure_weight_tying",
                what: format!(
                    "`{path}` is a target, and adapters that act on both uses of a table are not supported"
                ),
                remedy: "leave `ensure_weight_tying` out, or train the table itself: `modules_to_save = [\"embed_tokens\"]`",
            });
        }
        if let ModuleKind::Embedding { rows, width } = module.kind {
            plain_embedding(config, path)?;
            let slots = vec![
                slot(path, "lora_embedding_A", &[rank, rows], ParameterKind::LoraEmbeddingA),
                slot(path, "lora_embedding_B", &[width, rank], ParameterKind::LoraEmbeddingB),
            ];
            return adapted(sizes, module, slots);
        }
        let (n_in, n_out, bias) = linear_target(module)?;
        let mut slots = vec![
            slot(path, "lora_A.weight", &[rank, n_in], ParameterKind::LoraA),
            slot(path, "lora_B.weight", &[n_out, rank], ParameterKind::LoraB),
        ];
        if config.lora_bias {
            slots.push(slot(path, "lora_B.bias", &[n_out], ParameterKind::LoraBias));
        }
        if config.use_dora {
            slots.push(slot(path, "lora_magnitude_vector", &[n_out], ParameterKind::Vector));
        }
        if bias && config.bias != Bias::None {
            slots.push(slot(path, "base_layer.bias", &[n_out], ParameterKind::Bias));
        }
        adapted(sizes, module, slots)
    }

    fn initial(
        &self,
        _index: usize,
        slot: &TrainedParameter,
        site: &Site<'_>,
        made: &[Tensor],
        seed: u64,
    ) -> Result<Tensor> {
        let init = site.config.init_lora_weights;
        match (slot.kind, slot.shape.as_slice()) {
            (ParameterKind::LoraA, &[r, n_in]) => initial_a(init, seed, &slot.name, r, n_in),
            (ParameterKind::LoraB, &[n_out, r]) => initial_b(init, seed, &slot.name, n_out, r),
            (ParameterKind::Vector, _) => DoraLayer::initial_magnitudes(site, &made[0], &made[1]),
            _ => zeros(&slot.shape),
        }
    }

    fn layer(
        &self,
        site: &Site<'_>,
        tensors: &[Tensor],
        _shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>> {
        let [a, b, rest @ ..] = tensors else { candle_core::bail!("a LoRA layer has two factors") };
        let plain = LoraLayer::new(site.path, a.clone(), b.clone(), site.scale, site.config.lora_dropout);
        Ok(match rest {
            [magnitudes] if site.config.use_dora => {
                Arc::new(DoraLayer::new(plain, magnitudes.clone(), site.base)?)
            }
            [bias] if site.config.lora_bias => Arc::new(LoraLayer { bias: Some(bias.clone()), ..plain }),
            _ => Arc::new(plain),
        })
    }
}

/// A `[r, in]` and B `[out, r]`, f32, with `y = base(x) + s ((drop(x) A^T) B^T + b)`, b `[out]` if there is one.
///
/// In training A, B and b are the tensors of variables; in inference plain tensors, so that no graph is kept.
#[derive(Debug, Clone)]
pub struct LoraLayer {
    pub(super) path: String,
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) scale: f64,
    pub(super) dropout: f64,
}

impl LoraLayer {
    /// The delta of the layer at `path` with scale s and the input dropout of training.
    pub fn new(path: impl Into<String>, a: Tensor, b: Tensor, scale: f64, dropout: f64) -> Self {
        Self { path: path.into(), a, b, bias: None, scale, dropout }
    }

    fn terms(&self, ctx: &ForwardContext<'_>) -> LoraTerms {
        LoraTerms { scale: self.scale as f32, dropout: input_dropout(self.dropout, &self.path, ctx) }
    }

    /// `s B A` `[out, in]`.
    pub(super) fn delta_weight(&self) -> taper_nn::Result<Vec<f32>> {
        let ((r, n_in), n_out) = (self.a.dims2()?, self.b.dims2()?.0);
        // As PEFT rounds it: the product, then the scale.
        let mut delta = vec![0f32; n_out * n_in];
        with_f32(&self.b.contiguous()?, |b| {
            with_f32(&self.a.contiguous()?, |a| {
                gemm::matmul(&mut delta, b, a, n_out, r, n_in, false, false, 1.0, false);
            })
        })??;
        delta.iter_mut().for_each(|v| *v *= self.scale as f32);
        Ok(delta)
    }
}

impl LinearAdapter for LoraLayer {
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let y = match base.weight() {
            Weight::Frozen(weight) => base.add_trainable_bias(ops::lora_linear(
                x,
                &self.a,
                &self.b,
                weight,
                base.frozen_bias(),
                self.terms(ctx),
                base.output_dtype(x),
            )?)?,
            Weight::Trainable(_) => {
                let delta = ops::lora_delta(x, &self.a, &self.b, self.terms(ctx), base.output_dtype(x))?;
                ops::add(&base.base_forward(x)?, &delta)?
            }
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => ops::add_bias(&y, &ops::scale(bias, self.scale)?),
        }
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let mut merged = self.delta_weight()?;
        with_f32(&base.weight().to_f32()?, |weight| {
            for (m, w) in merged.iter_mut().zip(weight) {
                *m += w;
            }
        })?;
        Tensor::from_vec(merged, base.weight().dims(), self.a.device())
    }

    fn low_rank(&self) -> Option<LowRankDelta<'_>> {
        Some(LowRankDelta { a: &self.a, b: &self.b, bias: self.bias.as_ref(), scale: self.scale })
    }

    fn merged_bias(&self, base: &Linear) -> taper_nn::Result<Option<Tensor>> {
        let Some(bias) = &self.bias else { return Ok(base.bias()) };
        let delta = (to_device(&bias.detach(), &Device::Cpu)? * self.scale)?;
        let merged = match base.bias() {
            None => delta,
            Some(own) => to_device(&own, &Device::Cpu)?.add(&delta)?,
        };
        to_device(&merged, bias.device()).map(Some)
    }
}

/// The first values of A `[r, in]`, from the counters keyed by the seed and the parameter's name.
///
/// # Errors
/// What the tensor's construction says.
pub(crate) fn initial_a(
    init: InitLoraWeights,
    seed: u64,
    name: &str,
    r: usize,
    n_in: usize,
) -> Result<Tensor> {
    let rng = CounterRng::new(seed, stream_of(name));
    let mut values = vec![0f32; r * n_in];
    match init {
        InitLoraWeights::Gaussian => rng.fill_normal(0, 1.0 / r as f32, &mut values),
        _ => fill_kaiming(&rng, n_in, &mut values),
    }
    self::values(values, &[r, n_in])
}

/// The first values of B `[out, r]`.
///
/// # Errors
/// What the tensor's construction says.
pub(crate) fn initial_b(
    init: InitLoraWeights,
    seed: u64,
    name: &str,
    n_out: usize,
    r: usize,
) -> Result<Tensor> {
    let mut values = vec![0f32; n_out * r];
    if init == InitLoraWeights::Random {
        fill_kaiming(&CounterRng::new(seed, stream_of(name)), r, &mut values);
    }
    self::values(values, &[n_out, r])
}

/// The first values of an embedding's B `[H, r]`, standard normal as in PEFT; its A is zero.
///
/// # Errors
/// What the tensor's construction says.
pub(crate) fn initial_embedding_b(seed: u64, name: &str, shape: &[usize]) -> Result<Tensor> {
    let mut drawn = vec![0f32; shape.iter().product()];
    CounterRng::new(seed, stream_of(name)).fill_normal(0, 1.0, &mut drawn);
    values(drawn, shape)
}

/// Kaiming-uniform with a = sqrt(5), what torch gives a linear layer: uniform in ±1/sqrt(fan_in).
pub(super) fn fill_kaiming(rng: &CounterRng, fan_in: usize, values: &mut [f32]) {
    let bound = 1.0 / (fan_in as f32).sqrt();
    rng.fill_uniform(0, -bound, bound, values);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        taper_nn::to_vec_f32(tensor).unwrap()
    }

    #[test]
    fn the_first_values_have_pefts_distributions_and_depend_on_seed_and_name_alone() {
        let a = values(&initial_a(InitLoraWeights::Default, 7, "x", 64, 400).unwrap());
        let bound = 1.0 / 20.0;
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.99 * bound));
        let variance = a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / a.len() as f64;
        assert!((variance / (f64::from(bound).powi(2) / 3.0) - 1.0).abs() < 0.03, "{variance}");
        assert_eq!(a, values(&initial_a(InitLoraWeights::Default, 7, "x", 64, 400).unwrap()));
        assert_ne!(a, values(&initial_a(InitLoraWeights::Default, 8, "x", 64, 400).unwrap()));
        assert_ne!(a, values(&initial_a(InitLoraWeights::Default, 7, "y", 64, 400).unwrap()));

        let gaussian = values(&initial_a(InitLoraWeights::Gaussian, 7, "x", 64, 400).unwrap());
        let variance = gaussian.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / gaussian.len() as f64;
        assert!((variance.sqrt() * 64.0 - 1.0).abs() < 0.03, "{variance}");

        for init in [InitLoraWeights::Default, InitLoraWeights::Gaussian] {
            assert!(values(&initial_b(init, 7, "x", 400, 64).unwrap()).iter().all(|v| v.to_bits() == 0));
        }
        let b = values(&initial_b(InitLoraWeights::Random, 7, "x", 400, 64).unwrap());
        assert!(b.iter().all(|v| v.abs() <= 0.125) && b.iter().any(|v| v.abs() > 0.12));
    }
}
