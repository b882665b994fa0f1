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
    y.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK)).for_each(|((y, gate), up)| block(gate, up, y));
}

type BackwardBlock = fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

fn backward(g: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32], block: BackwardBlock) {
    let n = g.len();
    assert_eq!((gate.len(), up.len(), dgate.len(), dup.len()), (n, n, n, n), "lengths of gate, up, dgate, dup against g");
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
