//! Beginnings that are made from a layer's weight: PiSSA, OLoRA and LoftQ.
//!
//! All three take `s B0 A0` off the weight and give it to the adapter, so that training begins at the base itself (LoftQ: as near to it as 4 bits and the rank allow). What is
//! trained belongs to that changed base; [`crate::Adapter::save`] writes it as plain LoRA of twice the rank over the base as it was.

use crate::error::doing;
use crate::linear_algebra::{Matrix, leading_columns, truncated_svd};
use crate::modules::TrainedParameter;
use crate::{Error, InitLoraWeights, Result};
use candle_core::{DType, Device, Tensor};
use taper_nn::{FrozenWeight, Linear, Weight, to_vec_f32};
use taper_quant::{BlockFormat, QuantizedTensor};

/// What a layer begins with.
pub(crate) struct Beginning {
    /// `[r, in]`.
    pub(crate) a: Tensor,
    /// `[out, r]`.
    pub(crate) b: Tensor,
    /// What is left of the weight.
    pub(crate) residual: Option<Weight>,
}

/// Rounds of LoftQ; its paper uses one and five.
const LOFTQ_ROUNDS: usize = 5;
/// The format that LoftQ quantises to: bitsandbytes' default.
const LOFTQ_FORMAT: BlockFormat = BlockFormat::Nf4 { block_size: 64, double_quant: false };

/// The beginning of a layer whose A is `slot`.
///
/// # Errors
/// When the weight is quantised, and what the arithmetic says.
pub(crate) fn begin(
    init: InitLoraWeights,
    layer: &Linear,
    slot: &TrainedParameter,
    scale: f64,
    seed: u64,
) -> Result<Beginning> {
    let (w, dtype) = dense(layer)?;
    let rank = slot.shape[0].min(w.rows).min(w.columns);
    if rank < slot.shape[0] {
        return Err(Error::Conflict {
            key: "r",
            what: format!(
                "`{}` is [{}, {}], and has no {} directions",
                layer.path(),
                w.rows,
                w.columns,
                slot.shape[0]
            ),
            remedy: "lower `r`, or give the layer a rank of its own in `rank_pattern`",
        });
    }
    let stream = taper_kernels::rng::CounterRng::new(seed, taper_kernels::rng::stream_of(&slot.name));
    let (a, b, residual) = match init {
        InitLoraWeights::Olora => {
            let q = leading_columns(&w, rank);
            let r = q.transposed_times(&w);
            let residual = w.minus(&q.times(&r), scale as f32);
            (r, q, dense_weight(&residual, dtype)?)
        }
        InitLoraWeights::Loftq => {
            let mut residual = quantized(&w)?;
            let (mut a, mut b) = factors(&w.minus(&decoded(&residual)?, 1.0), rank, scale, None, &stream);
            for _ in 1..LOFTQ_ROUNDS {
                residual = quantized(&w.minus(&b.times(&a), scale as f32))?;
                (a, b) = factors(&w.minus(&decoded(&residual)?, 1.0), rank, scale, None, &stream);
            }
            (a, b, Weight::Frozen(residual))
        }
        InitLoraWeights::Pissa { niter } => {
            let (a, b) = factors(&w, rank, scale, niter, &stream);
            let residual = w.minus(&b.times(&a), scale as f32);
            (a, b, dense_weight(&residual, dtype)?)
        }
        InitLoraWeights::Default | InitLoraWeights::Gaussian | InitLoraWeights::Random => {
            return Err(Error::Conflict {
                key: "init_lora_weights",
                what: "it is not made from the weight".to_owned(),
                remedy: "this is a fault of the program",
            });
        }
    };
    Ok(Beginning { a: tensor(a)?, b: tensor(b)?, residual: Some(residual) })
}

/// A and B with `s B A` the best of this rank: `sqrt(sigma / s)` to each side.
fn factors(
    w: &Matrix,
    rank: usize,
    scale: f64,
    niter: Option<usize>,
    stream: &taper_kernels::rng::CounterRng,
) -> (Matrix, Matrix) {
    let (mut u, sigma, mut v) = truncated_svd(w, rank, niter, stream);
    let roots: Vec<f32> = sigma.iter().map(|s| (s / scale).max(0.0).sqrt() as f32).collect();
    for (i, value) in u.values.iter_mut().enumerate() {
        *value *= roots[i % rank];
    }
    for (row, root) in v.values.chunks_exact_mut(v.columns).zip(&roots) {
        row.iter_mut().for_each(|value| *value *= root);
    }
    (v, u)
}

fn dense(layer: &Linear) -> Result<(Matrix, DType)> {
    let Weight::Frozen(weight) = layer.weight() else {
        return Err(of_dense_weights(layer, "trained itself"));
    };
    if weight.as_quantized().is_some() {
        return Err(of_dense_weights(layer, "quantised"));
    }
    let (rows, columns) = weight.dims();
    let values = weight.to_f32().and_then(|w| to_vec_f32(&w)).map_err(doing("read a weight"))?;
    Ok((Matrix { rows, columns, values }, weight.dtype()))
}

fn of_dense_weights(layer: &Linear, what: &str) -> Error {
    Error::Conflict {
        key: "init_lora_weights",
        what: format!(
            "the weight of `{}` is {what}, and such a beginning is made from dense weights",
            layer.path()
        ),
        remedy: "leave `model.quantize` out (\"loftq\" quantises the adapted layers itself), or begin with `init_lora_weights = true`",
    }
}

fn dense_weight(residual: &Matrix, dtype: DType) -> Result<Weight> {
    let make = || {
        let tensor = Tensor::from_slice(&residual.values, (residual.rows, residual.columns), &Device::Cpu)?;
        Ok(Weight::Frozen(FrozenWeight::dense(&tensor.to_dtype(dtype)?)?))
    };
    make().map_err(doing("take the adapter's beginning off the base"))
}

fn quantized(w: &Matrix) -> Result<FrozenWeight> {
    QuantizedTensor::quantize(&w.values, w.rows, w.columns, LOFTQ_FORMAT)
        .map(FrozenWeight::quantized)
        .map_err(|source| Error::Arithmetic {
            doing: "quantise a weight for LoftQ",
            source: candle_core::Error::Msg(source.to_string()),
        })
}

fn decoded(weight: &FrozenWeight) -> Result<Matrix> {
    let (rows, columns) = weight.dims();
    let values = weight.to_f32().and_then(|w| to_vec_f32(&w)).map_err(doing("read a weight"))?;
    Ok(Matrix { rows, columns, values })
}

fn tensor(matrix: Matrix) -> Result<Tensor> {
    Tensor::from_vec(matrix.values, (matrix.rows, matrix.columns), &Device::Cpu)
        .map_err(doing("make the adapter's first values"))
}
