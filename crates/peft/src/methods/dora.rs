//! DoRA (Liu et al. 2024): the rows of `W + s B A` are given lengths of their own.

use super::lora::LoraLayer;
use super::{Site, input_dropout, values};
use crate::Result;
use crate::error::doing;
use candle_core::{Tensor, bail};
use std::sync::{Mutex, OnceLock, PoisonError};
use taper_nn::ops::{self, LoraTerms};
use taper_nn::{ForwardContext, FrozenWeight, Linear, LinearAdapter, Weight, constants_held, with_f32};

/// `y = (m / n) (W x + s B A x) + b` with magnitudes m `[out]` and n the lengths of the rows of `W + s B A`, which the backward takes for constant, as
/// PEFT does.
///
/// With dropout, as in PEFT, only the adapter's part sees the dropped input: `y = W x + b + (m / n) (W x' + s B A x') - W x'`.
#[derive(Debug)]
pub(crate) struct DoraLayer {
    lora: LoraLayer,
    magnitudes: Tensor,
    /// Of the rows of W.
    squares: Vec<f64>,
    /// n, where nothing is trained.
    norms: OnceLock<Vec<f32>>,
    /// n as first computed where it is held, and by which call.
    held: Mutex<Option<(u64, Vec<f32>)>>,
}

impl DoraLayer {
    pub(super) fn new(lora: LoraLayer, magnitudes: Tensor, base: &Linear) -> taper_nn::Result<Self> {
        let squares = ops::row_squares(frozen(base)?)?;
        Ok(Self { lora, magnitudes, squares, norms: OnceLock::new(), held: Mutex::new(None) })
    }

    /// The lengths of the rows of `W + s B A`: the adapter begins as nothing.
    pub(super) fn initial_magnitudes(site: &Site<'_>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let norms = || -> taper_nn::Result<Vec<f32>> {
            let weight = frozen(site.base)?;
            ops::adapted_row_norms(weight, &ops::row_squares(weight)?, a, b, site.scale as f32)
        };
        let norms = norms().map_err(doing("compute the lengths of a weight's rows"))?;
        let n = norms.len();
        values(norms, &[n])
    }

    fn norms(&self, weight: &FrozenWeight) -> taper_nn::Result<Vec<f32>> {
        let LoraLayer { a, b, scale, .. } = &self.lora;
        let compute = || {
            let mut norms = ops::adapted_row_norms(weight, &self.squares, a, b, *scale as f32)?;
            // A row of zeros, as tables are filled up with, has no direction: it stays zero.
            norms.iter_mut().filter(|norm| **norm == 0.0).for_each(|norm| *norm = 1.0);
            Ok(norms)
        };
        if let Some(call) = constants_held() {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            return match &*held {
                Some((of, norms)) if *of == call => Ok(norms.clone()),
                _ => {
                    let norms = compute()?;
                    *held = Some((call, norms.clone()));
                    Ok(norms)
                }
            };
        }
        if a.is_variable() {
            return compute();
        }
        if let Some(norms) = self.norms.get() {
            return Ok(norms.clone());
        }
        let norms = compute()?;
        Ok(self.norms.get_or_init(|| norms).clone())
    }
}

fn frozen(base: &Linear) -> taper_nn::Result<&FrozenWeight> {
    match base.weight() {
        Weight::Frozen(weight) => Ok(weight),
        Weight::Trainable(_) => bail!("DoRA over a weight that is trained itself"),
    }
}

impl LinearAdapter for DoraLayer {
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let weight = frozen(base)?;
        let LoraLayer { path, a, b, scale, dropout, .. } = &self.lora;
        let (output, norms) = (base.output_dtype(x), self.norms(weight)?);
        let terms = LoraTerms { scale: *scale as f32, dropout: None };
        let Some(dropout) = input_dropout(*dropout, path, ctx) else {
            let sum = ops::lora_linear(x, a, b, weight, None, terms, output)?;
            let scaled = ops::scale_columns(&sum, &self.magnitudes, Some(norms))?;
            let with_bias = match base.frozen_bias() {
                Some(bias) => ops::add_bias(&scaled, bias)?,
                None => scaled,
            };
            return base.add_trainable_bias(with_bias);
        };
        let dropped = ops::dropout(x, dropout)?;
        let straight = ops::linear(&dropped, base.weight(), None, output)?;
        let low = ops::lora_delta(&dropped, a, b, terms, output)?;
        let scaled = ops::scale_columns(&ops::add(&straight, &low)?, &self.magnitudes, Some(norms))?;
        let change = ops::add(&scaled, &ops::scale(&straight, -1.0)?)?;
        ops::add(&base.base_forward(x)?, &change)
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        let (n_out, n_in) = base.weight().dims();
        let mut merged = self.lora.delta_weight()?;
        with_f32(&base.weight().to_f32()?, |weight| {
            merged.iter_mut().zip(weight).for_each(|(m, w)| *m += w);
        })?;
        with_f32(&self.magnitudes, |magnitudes| {
            for (row, m) in merged.chunks_exact_mut(n_in).zip(magnitudes) {
                let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32;
                let factor = if norm > 0.0 { m / norm } else { 0.0 };
                row.iter_mut().for_each(|v| *v *= factor);
            }
        })?;
        Tensor::from_vec(merged, (n_out, n_in), self.magnitudes.device())
    }
}
