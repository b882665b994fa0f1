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
pub fn rms_norm_forward(
    x: &[f32],
    w: &[f32],
    offset: f32,
    eps: f32,
    y: &mut [f32],
    t: usize,
    h: usize,
    inv_rms: &mut [f32],
) {
    assert_eq!(
        (x.len(), y.len(), w.len(), inv_rms.len()),
        (t * h, t * h, h, t),
        "lengths of x, y, w, inv_rms for T={t} H={h}"
    );
    if x.is_empty() {
        return;
    }
    let rows = threads::rows_per_block(h);
    y.par_chunks_mut(rows * h).zip(inv_rms.par_chunks_mut(rows)).zip(x.par_chunks(rows * h)).for_each(
        |((y, inv), x)| {
            for ((y, inv), x) in y.chunks_exact_mut(h).zip(inv).zip(x.chunks_exact(h)) {
                *inv = forward_row(x, w, offset, eps, y);
            }
        },
    );
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
    let columns = |first: usize, dw: &mut [f32]| {
        dw.fill(0.0);
        for (row, &inv) in inv_rms.iter().enumerate() {
            let at = row * h + first..row * h + first + dw.len();
            weight_row(&g[at.clone()], &x[at], inv, dw);
        }
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
                rms_norm_backward(&g, &x, &w, offset, &inv, &mut dx, Some(&mut dw), t, h);
                let (wide_x, wide_w) = (plain::widen(&x), plain::widen(&w));
                let loss = |x: &[f64], w: &[f64]| -> f64 {
                    let y = plain::rms_norm(x, w, f64::from(offset), f64::from(EPS), h);
                    y.iter().zip(&g).map(|(y, &g)| y * f64::from(g)).sum()
                };
                // With one element the true gradient is a difference of nearly equal numbers.
                let tolerance = if h == 1 { 1e-4 } else { 1e-5 };
                assert_close(&dx, &plain::numeric_gradient(&wide_x, |x| loss(x, &wide_w)), tolerance, "dx");
                assert_close(&dw, &plain::numeric_gradient(&wide_w, |w| loss(&wide_x, w)), tolerance, "dw");
                let mut alone = poisoned(t * h);
                rms_norm_backward(&g, &x, &w, offset, &inv, &mut alone, None, t, h);
                assert_eq!(alone, dx);
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
            rms_norm_backward(&g, &x, &w, 1.0, &inv, &mut dx, Some(&mut dw), t, h);
            [y, inv, dx, dw].concat()
        });
    }
}
