//! The gated activations of the feed-forward block: y = act(gate) * up, with act SiLU (x * sigmoid(x)) or the tanh form of GELU.
//!
//! The exponential is our own (see the error that `simd` states: 2 ulp). Sources: Shazeer, "GLU variants improve transformer", 2020;
//! Hendrycks and Gimpel, "Gaussian error linear units", 2016.

use crate::simd::sigmoid;
use rayon::prelude::*;

const BLOCK: usize = 16 * 1024;
/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `y = silu(gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul_forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    forward(gate, up, y, silu_forward_block);
}

/// `dgate = g * up * silu'(gate)` and `dup = g * silu(gate)`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul_backward(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    backward(g, gate, up, dgate, dup, silu_backward_block);
}

/// `y = gelu(gate) * up` with gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
///
/// # Panics
/// When the lengths differ.
pub fn gelu_tanh_mul_forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    forward(gate, up, y, gelu_forward_block);
}

/// `dgate = g * up * gelu'(gate)` and `dup = g * gelu(gate)`.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_tanh_mul_backward(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    backward(g, gate, up, dgate, dup, gelu_backward_block);
}

fn forward(gate: &[f32], up: &[f32], y: &mut [f32], block: fn(&[f32], &[f32], &mut [f32])) {
    assert_eq!((gate.len(), up.len()), (y.len(), y.len()), "lengths of gate and up against y");
    if y.len() <= 2 * BLOCK {
        return block(gate, up, y);
    }
    y.par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK))
        .for_each(|((y, gate), up)| block(gate, up, y));
}

type BackwardBlock = fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

fn backward(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32], block: BackwardBlock) {
    let n = g.len();
    assert_eq!(
        (gate.len(), up.len(), dgate.len(), dup.len()),
        (n, n, n, n),
        "lengths of gate, up, dgate, dup against g"
    );
    if n <= 2 * BLOCK {
        return block(g, gate, up, dgate, dup);
    }
    let inputs = g.par_chunks(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK));
    let outputs = dgate.par_chunks_mut(BLOCK).zip(dup.par_chunks_mut(BLOCK));
    inputs.zip(outputs).for_each(|(((g, gate), up), (dgate, dup))| block(g, gate, up, dgate, dup));
}

multiversion! {
    fn silu_forward_block(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(gate) * up;
        }
    }
}

multiversion! {
    fn silu_backward_block(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((&g, &x), &up), dgate), dup) in g.iter().zip(gate).zip(up).zip(dgate).zip(dup) {
            let s = sigmoid(x);
            *dgate = g * up * (s * (1.0 + x * (1.0 - s)));
            *dup = g * (x * s);
        }
    }
}

/// (1 + tanh(u)) / 2 = sigmoid(2 u), which loses nothing to cancellation for negative u.
#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    sigmoid(2.0 * GELU_SCALE * (x + GELU_CUBIC * x * x * x))
}

multiversion! {
    fn gelu_forward_block(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * gelu_gate(gate) * up;
        }
    }
}

multiversion! {
    fn gelu_backward_block(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((&g, &x), &up), dgate), dup) in g.iter().zip(gate).zip(up).zip(dgate).zip(dup) {
            let s = gelu_gate(x);
            let slope = 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
            *dgate = g * up * (s + x * s * (1.0 - s) * slope);
            *dup = g * (x * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{assert_close, assert_same_for_any_threads, poisoned, random};

    type Forward = fn(&[f32], &[f32], &mut [f32]);
    type Backward = fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

    type Kind = (&'static str, Forward, Backward, fn(f64) -> f64);

    const KINDS: [Kind; 2] = [
        ("silu", silu_mul_forward, silu_mul_backward, plain::silu),
        ("gelu", gelu_tanh_mul_forward, gelu_tanh_mul_backward, plain::gelu_tanh),
    ];

    fn gates(n: usize) -> Vec<f32> {
        random(n, 1).iter().map(|x| 12.0 * x).collect()
    }

    #[test]
    fn both_passes_equal_the_plain_twin() {
        for n in [0, 1, 15, 16, 33, 50_001] {
            let (gate, up, g) = (gates(n), random(n, 2), random(n, 3));
            for (name, forward, backward, act) in KINDS {
                let (mut y, mut dgate, mut dup) = (poisoned(n), poisoned(n), poisoned(n));
                forward(&gate, &up, &mut y);
                backward(&g, &gate, &up, &mut dgate, &mut dup);
                let wide = |i: usize| (f64::from(gate[i]), f64::from(up[i]), f64::from(g[i]));
                let want: Vec<f64> = (0..n).map(|i| act(wide(i).0) * wide(i).1).collect();
                assert_close(&y, &want, 1e-6, name);
                let want: Vec<f64> = (0..n).map(|i| act(wide(i).0) * wide(i).2).collect();
                assert_close(&dup, &want, 1e-6, name);
                let slope = |x: f64| (act(x + 1e-5) - act(x - 1e-5)) / 2e-5;
                let want: Vec<f64> = (0..n).map(|i| slope(wide(i).0) * wide(i).1 * wide(i).2).collect();
                assert_close(&dgate, &want, 2e-6, name);
            }
        }
    }

    #[test]
    fn extremes_stay_finite_and_nan_stays_nan() {
        let gate = [1e4, -1e4, 1e30, -1e30, 100.0, -100.0, f32::NAN];
        for (name, forward, backward, _) in KINDS {
            let (mut y, mut dgate, mut dup) = (poisoned(7), poisoned(7), poisoned(7));
            forward(&gate, &[1.0; 7], &mut y);
            backward(&[1.0; 7], &gate, &[1.0; 7], &mut dgate, &mut dup);
            assert_eq!(
                [y[0], y[1], y[4], y[6].to_bits() as f32],
                [1e4, 0.0, 100.0, y[6].to_bits() as f32],
                "{name}"
            );
            assert!(y[..6].iter().all(|y| y.is_finite()), "{name}: {y:?}");
            assert!(y[6].is_nan() && dgate[6].is_nan() && dup[6].is_nan(), "{name}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let n = 100_000;
        let (gate, up, g) = (gates(n), random(n, 2), random(n, 3));
        for (name, forward, backward, _) in KINDS {
            assert_same_for_any_threads(name, || {
                let (mut y, mut dgate, mut dup) = (poisoned(n), poisoned(n), poisoned(n));
                forward(&gate, &up, &mut y);
                backward(&g, &gate, &up, &mut dgate, &mut dup);
                [y, dgate, dup].concat()
            });
        }
    }
}
