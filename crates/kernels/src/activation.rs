//! The gated activations of the feed-forward block: y = act(gate) * up, with act SiLU (x * sigmoid(x)) or the tanh form of GELU.
//!
//! The exponential is our own (see the error that `simd` states: 2 ulp). Sources: Shazeer, "GLU variants improve transformer", 2020;
//! Hendrycks and Gimpel, "Gaussian error linear units", 2016.

#![expect(unsafe_code, reason = "tasks write chunks of their own")]

use crate::floats::{CHUNK, Floats, FloatsMut, SharedFloats, with_scratch};
use crate::shared::SharedMut;
use crate::simd::sigmoid;
use crate::threads::for_each_block;

const BLOCK: usize = 16 * 1024;
/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// Which function gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x sigmoid(x)`: SwiGLU, `hidden_act` "silu".
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: GeGLU, `hidden_act` "gelu_pytorch_tanh".
    GeluTanh,
}

/// `y = act(gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gated_forward<'a>(
    act: Gate,
    gate: impl Into<Floats<'a>>,
    up: impl Into<Floats<'a>>,
    y: impl Into<FloatsMut<'a>>,
) {
    let (gate, up, y) = (gate.into(), up.into(), y.into());
    let n = y.len();
    assert_eq!((gate.len(), up.len()), (n, n), "lengths of gate and up against y");
    let y = SharedFloats::new(y);
    for_each_chunk(n, |at, len| {
        with_scratch(CHUNK, |[wide_gate, wide_up, out]| {
            let (gate, up) = (gate.read(at, len, wide_gate), up.read(at, len, wide_up));
            // SAFETY: this task alone writes this chunk.
            unsafe {
                y.write(at, len, out, |y| match act {
                    Gate::Silu => silu_forward_block(gate, up, y),
                    Gate::GeluTanh => gelu_forward_block(gate, up, y),
                });
            }
        });
    });
}

/// `dgate = g * up * act'(gate)` and `dup = g * act(gate)`.
///
/// # Panics
/// When the lengths differ.
pub fn gated_backward<'a>(
    act: Gate,
    g: &[f32],
    gate: impl Into<Floats<'a>>,
    up: impl Into<Floats<'a>>,
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let (gate, up) = (gate.into(), up.into());
    let n = g.len();
    assert_eq!(
        (gate.len(), up.len(), dgate.len(), dup.len()),
        (n, n, n, n),
        "lengths of gate, up, dgate, dup against g"
    );
    let (dgate, dup) = (SharedMut::new(dgate), SharedMut::new(dup));
    for_each_chunk(n, |at, len| {
        with_scratch(CHUNK, |[wide_gate, wide_up]| {
            let (gate, up) = (gate.read(at, len, wide_gate), up.read(at, len, wide_up));
            // SAFETY: this task alone writes this chunk.
            let (dgate, dup) = unsafe { (dgate.part(at, len), dup.part(at, len)) };
            match act {
                Gate::Silu => silu_backward_block(&g[at..at + len], gate, up, dgate, dup),
                Gate::GeluTanh => gelu_backward_block(&g[at..at + len], gate, up, dgate, dup),
            }
        });
    });
}

/// Calls `body` with the start and length of each chunk of `0..n`, in parallel.
fn for_each_chunk(n: usize, body: impl Fn(usize, usize) + Sync + Send) {
    for_each_block(n.div_ceil(BLOCK), n, |block| {
        let end = n.min((block + 1) * BLOCK);
        for at in (block * BLOCK..end).step_by(CHUNK) {
            body(at, CHUNK.min(end - at));
        }
    });
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

    type Kind = (&'static str, Gate, fn(f64) -> f64);

    const KINDS: [Kind; 2] = [("silu", Gate::Silu, plain::silu), ("gelu", Gate::GeluTanh, plain::gelu_tanh)];

    fn gates(n: usize) -> Vec<f32> {
        random(n, 1).iter().map(|x| 12.0 * x).collect()
    }

    #[test]
    fn both_passes_equal_the_plain_twin() {
        for n in [0, 1, 15, 16, 33, 50_001] {
            let (gate, up, g) = (gates(n), random(n, 2), random(n, 3));
            for (name, kind, act) in KINDS {
                let (mut y, mut dgate, mut dup) = (poisoned(n), poisoned(n), poisoned(n));
                gated_forward(kind, &gate, &up, &mut y);
                gated_backward(kind, &g, &gate, &up, &mut dgate, &mut dup);
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
        for (name, kind, _) in KINDS {
            let (mut y, mut dgate, mut dup) = (poisoned(7), poisoned(7), poisoned(7));
            gated_forward(kind, &gate[..], &[1.0; 7][..], &mut y);
            gated_backward(kind, &[1.0; 7], &gate[..], &[1.0; 7][..], &mut dgate, &mut dup);
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
        for (name, kind, _) in KINDS {
            assert_same_for_any_threads(name, || {
                let (mut y, mut dgate, mut dup) = (poisoned(n), poisoned(n), poisoned(n));
                gated_forward(kind, &gate, &up, &mut y);
                gated_backward(kind, &g, &gate, &up, &mut dgate, &mut dup);
                [y, dgate, dup].concat()
            });
        }
    }
}
