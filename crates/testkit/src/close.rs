//! How far two tensors are apart.

use candle_core::Tensor;
use taper_nn::to_vec_f32;

/// The largest absolute difference of two tensors of one shape, computed in f64; NaN when either holds one.
///
/// # Panics
/// When the shapes differ.
pub fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    pairs(a, b)
        .into_iter()
        .fold(0.0, |worst: f64, d| if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d.abs()) })
}

/// The root of the mean squared difference of two tensors of one shape.
///
/// # Panics
/// When the shapes differ.
pub fn root_mean_square_difference(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = pairs(a, b);
    (pairs.iter().map(|d| d * d).sum::<f64>() / pairs.len().max(1) as f64).sqrt()
}

/// Hold `given` to `expected` within an absolute tolerance. Gives the largest difference.
///
/// # Panics
/// When they are further apart, or either holds a NaN, or the shapes differ.
#[track_caller]
pub fn assert_close(what: &str, given: &Tensor, expected: &Tensor, tolerance: f64) -> f64 {
    let difference = largest_difference(given, expected);
    assert!(difference <= tolerance, "{what}: off by {difference:.3e}, tolerance {tolerance:.0e}");
    difference
}

#[track_caller]
fn pairs(a: &Tensor, b: &Tensor) -> Vec<f64> {
    assert_eq!(a.dims(), b.dims(), "shapes");
    let values = |t: &Tensor| to_vec_f32(t).expect("a tensor that converts to f32");
    values(a).into_iter().zip(values(b)).map(|(x, y)| f64::from(x) - f64::from(y)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_nan_is_never_close() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        assert_eq!(largest_difference(&tensor(&[1.0, 2.0]), &tensor(&[1.5, 2.0])), 0.5);
        for (a, b) in [([f32::NAN, 1.0], [0.0, 9.0]), ([0.0, f32::NAN], [5.0, 0.0])] {
            assert!(largest_difference(&tensor(&a), &tensor(&b)).is_nan());
            let panics = std::panic::catch_unwind(|| assert_close("x", &tensor(&a), &tensor(&b), 1e9));
            assert!(panics.is_err());
        }
    }
}
