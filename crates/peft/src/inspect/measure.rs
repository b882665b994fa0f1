//! Norms of low-rank products without the products.

use crate::Result;
use crate::checks::MAX_RANK;
use crate::error::doing;
use candle_core::Tensor;
use taper_kernels::gemm;
use taper_nn::to_vec_f32;

/// `||B A||_F` of A `[r, in]` and B `[out, r]`; `None` when they are no such pair.
///
/// # Errors
/// When the values cannot be read.
pub(super) fn delta_norm(a: &Tensor, b: &Tensor) -> Result<Option<f64>> {
    let (&[r, n_in], &[n_out, columns]) = (a.dims(), b.dims()) else { return Ok(None) };
    // What is no rank that anything takes is not measured: r x r numbers are held.
    if r != columns || r > MAX_RANK || r == 0 || n_in == 0 || n_out == 0 {
        return Ok(None);
    }
    let values = |t: &Tensor| to_vec_f32(t).map_err(doing("read a factor of the adapter"));
    let (a, b) = (values(a)?, values(b)?);
    // Entries up to 1e19 would overflow as squares; scaled to 1 they do not, and nothing is lost.
    let (a, a_scale) = scaled(a);
    let (b, b_scale) = scaled(b);
    let (mut of_a, mut of_b) = (vec![0f32; r * r], vec![0f32; r * r]);
    gemm::matmul(&mut of_a, &a, &a, r, n_in, r, false, true, 1.0, false);
    gemm::matmul(&mut of_b, &b, &b, r, n_out, r, true, false, 1.0, false);
    let sum: f64 = of_a.iter().zip(&of_b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    // Rounding can leave a sum of cancelling terms a little below zero.
    Ok(Some(sum.max(0.0).sqrt() * a_scale * b_scale))
}

fn scaled(mut values: Vec<f32>) -> (Vec<f32>, f64) {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return (values, 0.0);
    }
    values.iter_mut().for_each(|v| *v /= largest);
    (values, f64::from(largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use taper_kernels::rng::CounterRng;

    #[test]
    fn the_norm_is_that_of_the_formed_product() {
        let device = Device::Cpu;
        for (r, n_in, n_out, size) in [(1, 3, 5, 1.0), (4, 7, 2, 1e-6), (8, 33, 17, 1e10)] {
            let normal = |stream: u64, rows: usize, columns: usize| {
                let mut values = vec![0f32; rows * columns];
                CounterRng::new(3, stream).fill_normal(0, 1.0, &mut values);
                Tensor::from_vec(values, (rows, columns), &device).unwrap()
            };
            let a = normal(1, r, n_in);
            let b = (normal(2, n_out, r) * size).unwrap();
            let norm = delta_norm(&a, &b).unwrap().unwrap();
            let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
            let product = b.matmul(&a).unwrap();
            let formed = product.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            assert!((norm / formed - 1.0).abs() < 1e-5, "{norm} {formed}");
        }
        let zero = Tensor::zeros((5, 2), DType::F32, &device).unwrap();
        let one = Tensor::ones((2, 3), DType::F32, &device).unwrap();
        assert_eq!(delta_norm(&one, &zero).unwrap(), Some(0.0));
        assert_eq!(delta_norm(&one, &one).unwrap(), None);
    }
}
