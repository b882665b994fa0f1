//! Norms of the rows of a weight with its low-rank delta, which DoRA divides by.

use crate::storage::{Lent, with_f32};
use crate::{FrozenWeight, Result, to_device};
use candle_core::{Device, Tensor, bail};
use taper_kernels::{gemm, threads};

/// The squares of the rows of a weight, summed: `[out]`, in f64. They never change, so they are computed once.
///
/// # Errors
/// When the weight is not on the CPU.
pub fn row_squares(weight: &FrozenWeight) -> Result<Vec<f64>> {
    let (n_out, n_in) = weight.dims();
    let mut squares = vec![0f64; n_out];
    weight.with_view(|view| {
        threads::for_each_rows(&mut squares, 1, threads::rows_per_block(n_in), |first, block| {
            let mut row = vec![0f32; n_in];
            for (i, square) in block.iter_mut().enumerate() {
                view.widen((first + i) * n_in, &mut row);
                *square = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
            }
        });
    })?;
    Ok(squares)
}

/// `||W_i + s (B A)_i||` of each row: A `[r, in]`, B `[out, r]`, given the [`row_squares`] of W. Never differentiated, as in PEFT's DoRA (Liu et al. 2024,
/// section 4.3).
///
/// No `[out, in]` product is made: `||W_i||^2 + 2 s B_i (A W^T)_i + s^2 B_i (A A^T) B_i^T`.
///
/// # Errors
/// When the shapes do not fit.
pub fn adapted_row_norms(
    weight: &FrozenWeight,
    squares: &[f64],
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<Vec<f32>> {
    let ((n_out, n_in), (r, a_in)) = (weight.dims(), a.dims2()?);
    if a_in != n_in || b.dims() != [n_out, r] || squares.len() != n_out {
        bail!("factors {:?} and {:?} for a weight of [{n_out}, {n_in}]", a.dims(), b.dims())
    }
    let a = to_device(a, &Device::Cpu)?;
    let a = Lent::new(&a);
    let a = a.f32()?;
    let mut gram = vec![0f32; r * r];
    gemm::matmul(&mut gram, a, a, r, n_in, r, false, true, 1.0, false);
    let mut cross = vec![0f32; r * n_out];
    weight.with_view(|view| gemm::linear_forward(a, view, None, &mut cross, r, n_in, n_out))?;
    with_f32(b, |b| {
        let norm = |i: usize| {
            let row = &b[i * r..][..r];
            let (mut first, mut second) = (0f64, 0f64);
            for (k, b_k) in row.iter().enumerate() {
                first += f64::from(*b_k) * f64::from(cross[k * n_out + i]);
                let inner: f64 =
                    row.iter().zip(&gram[k * r..][..r]).map(|(b, g)| f64::from(*b) * f64::from(*g)).sum();
                second += f64::from(*b_k) * inner;
            }
            let s = f64::from(scale);
            // Rounding may take what is almost nothing below it.
            (squares[i] + 2.0 * s * first + s * s * second).max(0.0).sqrt() as f32
        };
        (0..n_out).map(norm).collect()
    })
}
