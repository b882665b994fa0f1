//! Root-mean-square normalisation over the last axis.
//!
//! y = x / sqrt(mean(x^2) + eps) * (offset + w), with offset 0 for most models and 1 for Gemma, whose weights are stored less one.
//! Source: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.

#![expect(unsafe_code, reason = "tasks write rows of their own")]

use crate::floats::{Floats, FloatsMut, SharedFloats, with_scratch};
use crate::shared::SharedMut;
use crate::simd::{LANES, dot};
use crate::threads::{self, for_each_block};
use rayon::prelude::*;

/// Columns of the weight gradient that one task sums.
const COLUMN_BLOCK: usize = 256;

/// y `[T,H]` from x `[T,H]` and w `[H]`; `inv_rms` `[T]` receives 1 / sqrt(mean(x^2) + eps) for the backward pass.
///
/// # Panics
/// When a length does not fit `t` and `h`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rms_norm_forward<'a>(
    x: impl Into<Floats<'a>>,
    w: &[f32],
    offset: f32,
    eps: f32,
    y: impl Into<FloatsMut<'a>>,
    t: usize,
    h: usize,
    inv_rms: &mut [f32],
) {
    let (x, y) = (x.into(), y.into());
    assert_eq!(
        (x.len(), y.len(), w.len(), inv_rms.len()),
        (t * h, t * h, h, t),
        "lengths of x, y, w, inv_rms for T={t} H={h}"
    );
    if x.is_empty() {
        return;
    }
    let rows = threads::rows_per_block(h);
    let (y, inv_rms) = (SharedFloats::new(y), SharedMut::new(inv_rms));
    for_each_block(t.div_ceil(rows), t * h, |block| {
        with_scratch(h, |[wide, out]| {
            for row in block * rows..t.min((block + 1) * rows) {
                let x = x.read(row * h, h, wide);
                // SAFETY: this task alone writes this row.
                let inv = unsafe { y.write(row * h, h, out, |y| forward_row(x, w, offset, eps, y)) };
                // SAFETY: as above.
                let inv_rms = unsafe { inv_rms.part(row, 1) };
                inv_rms[0] = inv;
            }
        });
    });
}

/// The gradient of the input of [`rms_norm_forward`], dx `[T,H]`, added to what is there with `accumulate`.
///
/// With n = x * inv_rms and s = g * (offset + w): dx = inv_rms * (s - n * mean(s * n)).
///
/// # Panics
/// When a length does not fit `t` and `h`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rms_norm_backward<'a>(
    g: &[f32],
    x: impl Into<Floats<'a>>,
    w: &[f32],
    offset: f32,
    inv_rms: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    t: usize,
    h: usize,
) {
    let x = x.into();
    assert_eq!((g.len(), x.len(), dx.len()), (t * h, t * h, t * h), "lengths of g, x, dx for T={t} H={h}");
    assert_eq!((w.len(), inv_rms.len()), (h, t), "lengths of w, inv_rms for T={t} H={h}");
    let rows = threads::rows_per_block(h);
    threads::for_each_rows(dx, h, rows, |first, block| {
        with_scratch(h, |[wide]| {
            for (r, dx) in block.chunks_exact_mut(h).enumerate() {
                let at = (first + r) * h;
                let x = x.read(at, h, wide);
                backward_row(&g[at..at + h], x, w, offset, inv_rms[first + r], dx, accumulate);
            }
        });
    });
}

/// The gradient of the gain of [`rms_norm_forward`], dw `[H]` = sum over the rows of g * x * inv_rms.
///
/// # Panics
/// When a length does not fit `t` and `h`.
pub fn rms_norm_backward_weight<'a>(
    g: &[f32],
    x: impl Into<Floats<'a>>,
    inv_rms: &[f32],
    dw: &mut [f32],
    t: usize,
    h: usize,
) {
    let x = x.into();
    assert_eq!((g.len(), x.len()), (t * h, t * h), "lengths of g and x for T={t} H={h}");
    assert_eq!((dw.len(), inv_rms.len()), (h, t), "lengths of dw and inv_rms for T={t} H={h}");
    let columns = |first: usize, dw: &mut [f32]| {
        dw.fill(0.0);
        with_scratch(dw.len(), |[wide]| {
            for (row, &inv) in inv_rms.iter().enumerate() {
                let at = row * h + first;
                weight_row(&g[at..at + dw.len()], x.read(at, dw.len(), wide), inv, dw);
            }
        });
    };
    if t * h < 32 * 1024 {
        columns(0, dw);
    } else {
        dw.par_chunks_mut(COLUMN_BLOCK).enumerate().for_each(|(i, dw)| columns(i * COLUMN_BLOCK, dw));
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
    fn backward_row(g: &[f32], x: &[f32], w: &[f32], offset: f32, inv: f32, dx: &mut [f32], accumulate: bool) {
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
        if accumulate {
            for (((dx, &g), &x), &w) in dx.iter_mut().zip(g).zip(x).zip(w) {
                *dx += inv * (g * (offset + w) - x * mean);
            }
        } else {
            for (((dx, &g), &x), &w) in dx.iter_mut().zip(g).zip(x).zip(w) {
                *dx = inv * (g * (offset + w) - x * mean);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{assert_close, assert_same_for_any_threads, poisoned, random};

    const EPS: f32 = 1e-5;

    #[test]
    fn forward_equals_the_plain_twin() {
        for (t, h) in [(0, 5), (1, 1), (3, 7), (2, 64), (5, 33), (40, 2048), (1, 100_003)] {
            for offset in [0.0, 1.0] {
                let (x, w) = (random(t * h, 1), random(h, 2));
                let (mut y, mut inv) = (poisoned(t * h), poisoned(t));
                rms_norm_forward(&x, &w, offset, EPS, &mut y, t, h, &mut inv);
                let wide = plain::widen(&x);
                let want = plain::rms_norm(&wide, &plain::widen(&w), f64::from(offset), f64::from(EPS), h);
                assert_close(&y, &want, 2e-6, &format!("y for T={t} H={h}"));
                let ones = vec![1.0; h];
                for (row, inv) in inv.iter().enumerate() {
                    let n = plain::rms_norm(&wide[row * h..][..h], &ones, 0.0, f64::from(EPS), h);
                    assert!((f64::from(*inv) * wide[row * h] - n[0]).abs() < 1e-5, "inv_rms of row {row}");
                }
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences_of_the_plain_twin() {
        for (t, h) in [(1, 1), (3, 7), (2, 17), (4, 40)] {
            for offset in [0.0, 1.0] {
                let (x, w, g) = (random(t * h, 1), random(h, 2), random(t * h, 3));
                let (mut y, mut inv) = (poisoned(t * h), poisoned(t));
                rms_norm_forward(&x, &w, offset, EPS, &mut y, t, h, &mut inv);
                let (mut dx, mut dw) = (poisoned(t * h), poisoned(h));
                rms_norm_backward(&g, &x, &w, offset, &inv, &mut dx, false, t, h);
                rms_norm_backward_weight(&g, &x, &inv, &mut dw, t, h);
                let (wide_x, wide_w) = (plain::widen(&x), plain::widen(&w));
                let loss = |x: &[f64], w: &[f64]| -> f64 {
                    let y = plain::rms_norm(x, w, f64::from(offset), f64::from(EPS), h);
                    y.iter().zip(&g).map(|(y, &g)| y * f64::from(g)).sum()
                };
                // With one element the true gradient is a difference of nearly equal numbers.
                let tolerance = if h == 1 { 1e-4 } else { 1e-5 };
                assert_close(&dx, &plain::numeric_gradient(&wide_x, |x| loss(x, &wide_w)), tolerance, "dx");
                assert_close(&dw, &plain::numeric_gradient(&wide_w, |w| loss(&wide_x, w)), tolerance, "dw");
                let mut alone = dx.clone();
                rms_norm_backward(&g, &x, &w, offset, &inv, &mut alone, true, t, h);
                assert!(alone.iter().zip(&dx).all(|(sum, dx)| *sum == dx + dx));
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (t, h) = (150, 700);
        let (x, w, g) = (random(t * h, 1), random(h, 2), random(t * h, 3));
        assert_same_for_any_threads("rms_norm", || {
            let (mut y, mut inv, mut dx, mut dw) =
                (poisoned(t * h), poisoned(t), poisoned(t * h), poisoned(h));
            rms_norm_forward(&x, &w, 1.0, EPS, &mut y, t, h, &mut inv);
            rms_norm_backward(&g, &x, &w, 1.0, &inv, &mut dx, false, t, h);
            rms_norm_backward_weight(&g, &x, &inv, &mut dw, t, h);
            [y, inv, dx, dw].concat()
        });
    }
}
