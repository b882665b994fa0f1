//! Root-mean-square normalisation over the last axis.
//!
//! y = x / sqrt(mean(x^2) + eps) * (offset + w), with offset 0 for most models and 1 for Gemma, whose weights are stored less one.
//! Source: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.

use crate::simd::{LANES, dot};
use crate::threads;
use rayon::prelude::*;

/// Columns of the weight gradient that one task sums.
const COLUMN_BLOCK: usize = 256;

/// y `[T,H]` from x `[T,H]` and w `[H]`; `inv_rms` `[T]` receives 1 / sqrt(mean(x^2) + eps) for the backward pass.
///
/// # Panics
/// When a length does not fit `t` and `h`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rms_norm_forward(x: &[f32], w: &[f32], offset: f32, eps: f32, y: &mut [f32], t: usize, h: usize, inv_rms: &mut [f32]) {
    assert_eq!((x.len(), y.len(), w.len(), inv_rms.len()), (t * h, t * h, h, t), "lengths of x, y, w, inv_rms for T={t} H={h}");
    if x.is_empty() {
        return;
    }
    let rows = threads::rows_per_block(h);
    y.par_chunks_mut(rows * h).zip(inv_rms.par_chunks_mut(rows)).zip(x.par_chunks(rows * h)).for_each(|((y, inv), x)| {
        for ((y, inv), x) in y.chunks_exact_mut(h).zip(inv).zip(x.chunks_exact(h)) {
            *inv = forward_row(x, w, offset, eps, y);
        }
    });
}

/// The gradients of [`rms_norm_forward`]: dx `[T,H]`, and dw `[H]` where the weight is trained. Both are overwritten.
///
/// With n = x * inv_rms and s = g * (offset + w): dx = inv_rms * (s - n * mean(s * n)), dw = sum over rows of g * n.
///
/// # Panics
/// When a length does not fit `t` and `h`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rms_norm_backward(
    g: &[f32],
    x: &[f32],
    w: &[f32],
    offset: f32,
    inv_rms: &[f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    t: usize,
    h: usize,
) {
    assert_eq!((g.len(), x.len(), dx.len()), (t * h, t * h, t * h), "lengths of g, x, dx for T={t} H={h}");
    assert_eq!((w.len(), inv_rms.len()), (h, t), "lengths of w, inv_rms for T={t} H={h}");
    let rows = threads::rows_per_block(h);
    threads::for_each_rows(dx, h, rows, |first, block| {
        for (r, dx) in block.chunks_exact_mut(h).enumerate() {
            let at = (first + r) * h..(first + r + 1) * h;
            backward_row(&g[at.clone()], &x[at], w, offset, inv_rms[first + r], dx);
        }
    });
    let Some(dw) = dw else { return };
    assert_eq!(dw.len(), h, "length of dw for H={h}");
    let shared = |first: usize, dw: &mut [f32]| {
        dw.fill(0.0);
        for row in 0..t {
            let at = row * h + first..row * h + first + dw.len();
            weight_row(&g[at.clone()], &x[at], inv_rms[row], dw);
        }
    };
    if t * h < 32 * 1024 {
        shared(0, dw);
    } else {
        dw.par_chunks_mut(COLUMN_BLOCK).enumerate().for_each(|(i, dw)| shared(i * COLUMN_BLOCK, dw));
    }
}

multiversion! {
    fn forward_row(x: &[f32], w: &[f32], offset: f32, eps: f32, y: &mut [f32]) -> f32 {
        let inv = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
            *y = x * inv * (offset + w);
        }
        inv
    }
}

multiversion! {
    fn backward_row(g: &[f32], x: &[f32], w: &[f32], offset: f32, inv: f32, dx: &mut [f32]) {
        let mut lanes = [0.0f32; LANES];
        let whole = x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (g, x, w) = (&g[at..at + LANES], &x[at..at + LANES], &w[at..at + LANES]);
            for l in 0..LANES {
                lanes[l] += g[l] * (offset + w[l]) * x[l];
            }
        }
        let mut sum = crate::simd::sum_lanes(lanes);
        for ((g, w), x) in g[whole..].iter().zip(&w[whole..]).zip(&x[whole..]) {
            sum += g * (offset + w) * x;
        }
        let mean = sum * inv * inv / x.len() as f32;
        for (((dx, &g), &x), &w) in dx.iter_mut().zip(g).zip(x).zip(w) {
            *dx = inv * (g * (offset + w) - x * mean);
        }
    }
}

multiversion! {
    fn weight_row(g: &[f32], x: &[f32], inv: f32, dw: &mut [f32]) {
        for ((dw, &g), &x) in dw.iter_mut().zip(g).zip(x) {
            *dw += g * x * inv;
        }
    }
}
