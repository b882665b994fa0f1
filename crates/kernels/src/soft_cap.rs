//! The soft cap y = c tanh(x / c) and its gradient, g (1 - (y / c)^2).
//!
//! Source: Bello et al., "Neural combinatorial optimization with reinforcement learning", 2016, for logits; Gemma Team, "Gemma 2", 2024.

use crate::simd::tanh;
use rayon::prelude::*;

const BLOCK: usize = 16 * 1024;

/// `y = c tanh(x / c)`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn soft_cap_forward(x: &[f32], cap: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of x and y");
    if y.len() <= 2 * BLOCK {
        return forward_block(x, cap, y);
    }
    y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| forward_block(x, cap, y));
}

/// `dx = g (1 - (y / c)^2)` from the output y.
///
/// # Panics
/// When the lengths differ.
pub fn soft_cap_backward(g: &[f32], y: &[f32], cap: f32, dx: &mut [f32]) {
    assert_eq!((g.len(), y.len()), (dx.len(), dx.len()), "lengths of g and y against dx");
    if dx.len() <= 2 * BLOCK {
        return backward_block(g, y, cap, dx);
    }
    let inputs = g.par_chunks(BLOCK).zip(y.par_chunks(BLOCK));
    dx.par_chunks_mut(BLOCK).zip(inputs).for_each(|(dx, (g, y))| backward_block(g, y, cap, dx));
}

multiversion! {
    fn forward_block(x: &[f32], cap: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = cap * tanh(x / cap);
        }
    }
}

multiversion! {
    fn backward_block(g: &[f32], y: &[f32], cap: f32, dx: &mut [f32]) {
        for ((dx, &g), &y) in dx.iter_mut().zip(g).zip(y) {
            let part = y / cap;
            *dx = g * (1.0 - part * part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_any_threads, poisoned, random};

    #[test]
    fn both_passes_equal_the_plain_formula() {
        for n in [0, 1, 15, 16, 33, 50_001] {
            let (x, g): (Vec<f32>, _) = (random(n, 1).iter().map(|x| 40.0 * x).collect(), random(n, 2));
            let (mut y, mut dx) = (poisoned(n), poisoned(n));
            soft_cap_forward(&x, 30.0, &mut y);
            soft_cap_backward(&g, &y, 30.0, &mut dx);
            let part = |x: f32| (f64::from(x) / 30.0).tanh();
            let want: Vec<f64> = x.iter().map(|&x| 30.0 * part(x)).collect();
            assert_close(&y, &want, 1e-6, "capped");
            let want: Vec<f64> =
                x.iter().zip(&g).map(|(&x, &g)| f64::from(g) * (1.0 - part(x).powi(2))).collect();
            assert_close(&dx, &want, 2e-6, "gradient");
        }
    }

    #[test]
    fn extremes_stay_within_the_cap_and_nan_stays_nan() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, f32::NAN];
        let mut y = poisoned(6);
        soft_cap_forward(&x, 5.0, &mut y);
        assert_eq!(y[..5], [5.0, -5.0, 5.0, -5.0, 0.0]);
        assert!(y[5].is_nan());
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (x, g) = (random(100_000, 1), random(100_000, 2));
        assert_same_for_any_threads("soft cap", || {
            let (mut y, mut dx) = (poisoned(x.len()), poisoned(x.len()));
            soft_cap_forward(&x, 0.7, &mut y);
            soft_cap_backward(&g, &y, 0.7, &mut dx);
            [y, dx].concat()
        });
    }
}
