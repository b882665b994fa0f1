//! The low-rank delta of one linear layer.

use crate::{Error, InitLoraWeights, Result};
use candle_core::Tensor;
use taper_kernels::gemm;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::ops::{self, LoraDropout, LoraTerms};
use taper_nn::{ForwardContext, Linear, LinearAdapter, Weight, with_f32};

/// A `[r, in]` and B `[out, r]`, f32, with `y = base(x) + s (drop(x) A^T) B^T`.
///
/// In training A and B are the tensors of variables; in inference plain tensors, so that no graph is kept.
#[derive(Debug, Clone)]
pub struct LoraLayer {
    path: String,
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
}

impl LoraLayer {
    /// The delta of the layer at `path` with scale s and the input dropout of training.
    pub fn new(path: impl Into<String>, a: Tensor, b: Tensor, scale: f64, dropout: f64) -> Self {
        Self { path: path.into(), a, b, scale, dropout }
    }

    fn terms(&self, ctx: &ForwardContext<'_>) -> LoraTerms {
        let dropout = ctx.random().filter(|_| self.dropout > 0.0).map(|key| LoraDropout {
            p: self.dropout as f32,
            rng: key.rng(&format!("{}.lora_dropout", self.path)),
        });
        LoraTerms { scale: self.scale as f32, dropout }
    }
}

impl LinearAdapter for LoraLayer {
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        match base.weight() {
            Weight::Frozen(weight) => base.add_trainable_bias(ops::lora_linear(
                x,
                &self.a,
                &self.b,
                weight,
                base.frozen_bias(),
                self.terms(ctx),
                base.output_dtype(x),
            )?),
            Weight::Trainable(_) => {
                let delta = ops::lora_delta(x, &self.a, &self.b, self.terms(ctx), base.output_dtype(x))?;
                ops::add(&base.base_forward(x)?, &delta)
            }
        }
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let ((r, n_in), n_out) = (self.a.dims2()?, self.b.dims2()?.0);
        // As PEFT rounds it: the product, then the scale, then the sum.
        let mut merged = vec![0f32; n_out * n_in];
        with_f32(&self.b.contiguous()?, |b| {
            with_f32(&self.a.contiguous()?, |a| {
                gemm::matmul(&mut merged, b, a, n_out, r, n_in, false, false, 1.0, false);
            })
        })??;
        with_f32(&base.weight().to_f32()?, |weight| {
            for (m, w) in merged.iter_mut().zip(weight) {
                *m = w + *m * self.scale as f32;
            }
        })?;
        Tensor::from_vec(merged, (n_out, n_in), self.a.device())
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
        InitLoraWeights::Default | InitLoraWeights::Random => fill_kaiming(&rng, n_in, &mut values),
    }
    tensor(values, (r, n_in))
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
    tensor(values, (n_out, r))
}

/// Kaiming-uniform with a = sqrt(5), what torch gives a linear layer: uniform in ±1/sqrt(fan_in).
fn fill_kaiming(rng: &CounterRng, fan_in: usize, values: &mut [f32]) {
    let bound = 1.0 / (fan_in as f32).sqrt();
    rng.fill_uniform(0, -bound, bound, values);
}

fn tensor(values: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
        .map_err(|source| Error::Arithmetic { doing: "make the adapter's first values", source })
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
