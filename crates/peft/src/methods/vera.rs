//! VeRA (Kopiczko et al. 2024): one random A and B for all layers, and two trained vectors in each.

use super::{AdapterMethod, Site, adapted, input_dropout, linear_target, slot, values, zeros};
use crate::keys::Reader;
use crate::modules::{ModuleShape, TrainedParameter};
use crate::plan::Planned;
use crate::sizes::Sizes;
use crate::{AdapterConfig, Result};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_kernels::gemm;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::{ForwardContext, FrozenWeight, Linear, LinearAdapter, ParameterKind, Weight, ops, with_f32};

/// What is VeRA's own in its configuration. The rank is `r`, the dropout `lora_dropout`.
#[derive(Debug, Clone, PartialEq)]
pub struct Vera {
    /// The seed of A and B. They are saved with the adapter, since other programs draw other numbers from it.
    pub projection_prng_key: u64,
    /// What d begins with.
    pub d_initial: f64,
}

impl Default for Vera {
    fn default() -> Self {
        Self { projection_prng_key: 0, d_initial: 0.1 }
    }
}

const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

impl AdapterMethod for Vera {
    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader) {
        reader.layers(config);
        config.r = reader.take_index("r").unwrap_or(256);
        config.lora_dropout = reader.take("vera_dropout", "a number", Value::as_f64).unwrap_or(0.0);
        self.projection_prng_key =
            reader.take("projection_prng_key", "a whole number", Value::as_u64).unwrap_or(0);
        self.d_initial = reader.take("d_initial", "a number", Value::as_f64).unwrap_or(0.1);
        reader.must_be(
            "fan_in_fan_out",
            &json!(false),
            "it is for layers that store their weight as (in, out)",
        );
        reader.must_be("bias", &json!("none"), "biases trained along with VeRA are not supported");
        reader.must_be("init_weights", &json!(true), "vectors of noise are for PEFT's own tests");
        reader.must_be(
            "save_projection",
            &json!(true),
            "the projections are not in the file, and only PyTorch's generator could draw them again",
        );
    }

    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value> {
        let mut map = config.layer_keys();
        map.extend([
            ("bias", json!("none")),
            ("d_initial", json!(self.d_initial)),
            ("fan_in_fan_out", json!(false)),
            ("init_weights", json!(true)),
            ("projection_prng_key", json!(self.projection_prng_key)),
            ("r", json!(config.r)),
            ("save_projection", json!(true)),
            ("vera_dropout", json!(config.lora_dropout)),
        ]);
        map
    }

    fn adapt(&self, config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned> {
        let (_, n_out, _) = linear_target(module)?;
        let slots = vec![
            slot(&module.path, "vera_lambda_b", &[n_out], ParameterKind::Vector),
            slot(&module.path, "vera_lambda_d", &[config.r], ParameterKind::Vector),
        ];
        adapted(sizes, module, slots)
    }

    /// As wide as the widest target: a layer takes the first columns of A and the first rows of B.
    fn shared(&self, config: &AdapterConfig, targets: &[&ModuleShape]) -> Vec<TrainedParameter> {
        let widths = targets.iter().filter_map(|target| linear_target(target).ok());
        let (n_in, n_out) =
            widths.fold((0, 0), |most, (n_in, n_out, _)| (most.0.max(n_in), most.1.max(n_out)));
        let of = |name: &str, shape: [usize; 2]| TrainedParameter {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: ParameterKind::Weight,
        };
        vec![of(A, [config.r, n_in]), of(B, [n_out, config.r])]
    }

    fn initial(
        &self,
        index: usize,
        slot: &TrainedParameter,
        _site: &Site<'_>,
        _made: &[Tensor],
        _seed: u64,
    ) -> Result<Tensor> {
        match index {
            0 => zeros(&slot.shape),
            _ => values(vec![self.d_initial as f32; slot.shape[0]], &slot.shape),
        }
    }

    /// Kaiming-uniform with gain sqrt(2), as PEFT: uniform in ±sqrt(6 / columns).
    fn initial_shared(&self, slot: &TrainedParameter) -> Result<Tensor> {
        let bound = (6.0 / slot.shape[1] as f32).sqrt();
        let mut drawn = vec![0.0; slot.shape.iter().product()];
        CounterRng::new(self.projection_prng_key, stream_of(&slot.name))
            .fill_uniform(0, -bound, bound, &mut drawn);
        values(drawn, &slot.shape)
    }

    fn layer(
        &self,
        site: &Site<'_>,
        tensors: &[Tensor],
        shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>> {
        let ([lambda_b, lambda_d], [a, b]) = (tensors, shared) else {
            candle_core::bail!("a VeRA layer has two vectors and two projections")
        };
        let (n_out, n_in) = site.base.weight().dims();
        // All columns are the shared matrix itself, not a copy.
        let a = if a.dims()[1] == n_in { a.clone() } else { ops::columns(a, 0..n_in)? };
        Ok(Arc::new(VeraLayer {
            path: site.path.to_owned(),
            a: FrozenWeight::dense(&a)?,
            b: FrozenWeight::dense(&b.narrow(0, 0, n_out)?)?,
            lambda_b: lambda_b.clone(),
            lambda_d: lambda_d.clone(),
            dropout: site.config.lora_dropout,
        }))
    }
}

/// `y = base(x) + b (B (d (A drop(x))))`, b and d vectors.
#[derive(Debug)]
struct VeraLayer {
    path: String,
    a: FrozenWeight,
    b: FrozenWeight,
    lambda_b: Tensor,
    lambda_d: Tensor,
    dropout: f64,
}

impl LinearAdapter for VeraLayer {
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let dropped = match input_dropout(self.dropout, &self.path, ctx) {
            Some(dropout) => ops::dropout(x, dropout)?,
            None => x.clone(),
        };
        let (a, b) = (Weight::Frozen(self.a.clone()), Weight::Frozen(self.b.clone()));
        // Each step in an expression of its own, so that what is scaled is let go.
        let low = ops::scale_columns(&ops::linear(&dropped, &a, None, x.dtype())?, &self.lambda_d, None)?;
        let high = ops::linear(&low, &b, None, base.output_dtype(x))?;
        drop(low);
        let delta = ops::scale_columns(&high, &self.lambda_b, None)?;
        drop(high);
        ops::add(&base.base_forward(x)?, &delta)
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let ((n_out, n_in), r) = (base.weight().dims(), self.a.dims().0);
        let scaled = |matrix: &FrozenWeight, factors: &Tensor| -> taper_nn::Result<Vec<f32>> {
            let width = matrix.dims().1;
            let mut values = with_f32(&matrix.to_f32()?, <[f32]>::to_vec)?;
            with_f32(factors, |factors| {
                for (row, factor) in values.chunks_exact_mut(width).zip(factors) {
                    row.iter_mut().for_each(|v| *v *= factor);
                }
            })?;
            Ok(values)
        };
        let (a, b) = (scaled(&self.a, &self.lambda_d)?, scaled(&self.b, &self.lambda_b)?);
        let mut merged = vec![0f32; n_out * n_in];
        gemm::matmul(&mut merged, &b, &a, n_out, r, n_in, false, false, 1.0, false);
        with_f32(&base.weight().to_f32()?, |weight| {
            merged.iter_mut().zip(weight).for_each(|(m, w)| *m += w);
        })?;
        Tensor::from_vec(merged, (n_out, n_in), self.lambda_b.device())
    }
}
