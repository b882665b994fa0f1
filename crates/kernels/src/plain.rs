//! The slow plain twins: each formula once, in `f64` loops over every index, with no blocking, no threads and no tricks.
//!
//! The fast kernels are tested against these, and their backward passes against finite differences of these
//! ([`numeric_gradient`]). They are public so that tests of other crates can stand on them too.

use crate::attention::{AttentionShape, Segment};

/// Each element as `f64`.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// c `[m,n]` = a b, where a is `[m,k]` (`[k,m]` with `trans_a`) and b is `[k,n]` (`[n,k]` with `trans_b`).
pub fn matmul(a: &[f64], b: &[f64], m: usize, k: usize, n: usize, trans_a: bool, trans_b: bool) -> Vec<f64> {
    let a_at = |i: usize, p: usize| if trans_a { a[p * m + i] } else { a[i * k + p] };
    let b_at = |p: usize, j: usize| if trans_b { b[j * k + p] } else { b[p * n + j] };
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|p| a_at(i, p) * b_at(p, j)).sum());
        }
    }
    c
}

/// y `[T,out]` = x `[T,in]` W^T + b, W `[out,in]`.
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>, t: usize, n_in: usize, n_out: usize) -> Vec<f64> {
    let mut y = matmul(x, w, t, n_in, n_out, false, true);
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(n_out) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    y
}

/// y = x / sqrt(mean(x^2) + eps) * (offset + w), per row of width h.
pub fn rms_norm(x: &[f64], w: &[f64], offset: f64, eps: f64, h: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(h) {
        let rms = (row.iter().map(|x| x * x).sum::<f64>() / h as f64 + eps).sqrt();
        y.extend(row.iter().zip(w).map(|(x, w)| x / rms * (offset + w)));
    }
    y
}

/// Half-split rotary embedding of x `[T, heads * head_dim]`, with cos and sin `[T, rotary_dim / 2]`.
pub fn rope(
    x: &[f64],
    cos: &[f64],
    sin: &[f64],
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
) -> Vec<f64> {
    let half = rotary_dim / 2;
    let mut y = x.to_vec();
    for (row, head) in (0..x.len() / head_dim).map(|i| (i / heads, i * head_dim)) {
        for i in 0..half {
            let (c, s) = (cos[row * half + i], sin[row * half + i]);
            let (a, b) = (x[head + i], x[head + half + i]);
            y[head + i] = a * c - b * s;
            y[head + half + i] = b * c + a * s;
        }
    }
    y
}

/// x * sigmoid(x)
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / core::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

/// The loss of each row of logits `[n,V]`: ln(sum of e^l) - l_target.
pub fn cross_entropy(logits: &[f64], targets: &[u32], v: usize) -> Vec<f64> {
    let rows = logits.chunks_exact(v).zip(targets);
    rows.map(|(row, &target)| {
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter().map(|l| (l - highest).exp()).sum::<f64>().ln() + highest - row[target as usize]
    })
    .collect()
}

/// w = e^((l - highest) / temperature)
pub fn softmax_weights(logits: &[f32], highest: f32, temperature: f64, weights: &mut [f64]) {
    for (logit, weight) in logits.iter().zip(weights) {
        *weight = ((f64::from(*logit) - f64::from(highest)) / temperature).exp();
    }
}

/// Causal attention: out `[T, N*D]` and the log of each softmax's denominator `[T,N]`.
///
/// Query i of a segment sees key j of the same segment when j <= i and, with a window w, j > i - w.
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    segments: &[Segment],
    shape: &AttentionShape,
) -> (Vec<f64>, Vec<f64>) {
    let (n, kv, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    let t = q.len() / (n * d);
    let (mut out, mut lse) = (vec![0.0; t * n * d], vec![0.0; t * n]);
    for segment in segments {
        for i in 0..segment.q_len {
            for head in 0..n {
                let row = segment.q_start + i;
                let first = shape.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let at = |j: usize| ((segment.q_start + j) * kv + head / (n / kv)) * d;
                let query = &q[(row * n + head) * d..][..d];
                let scores: Vec<f64> = (first..=i).map(|j| score(query, &k[at(j)..][..d], shape)).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                lse[row * n + head] = sum.ln() + highest;
                for (j, s) in (first..=i).zip(&scores) {
                    let p = (s - highest).exp() / sum;
                    for c in 0..d {
                        out[(row * n + head) * d + c] += p * v[at(j) + c];
                    }
                }
            }
        }
    }
    (out, lse)
}

fn score(query: &[f64], key: &[f64], shape: &AttentionShape) -> f64 {
    let s = f64::from(shape.scale) * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
    shape.soft_cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
}

/// The gradient of `f` at `x` by central differences.
pub fn numeric_gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let kept = x[i];
            x[i] = kept + STEP;
            let above = f(&x);
            x[i] = kept - STEP;
            let below = f(&x);
            x[i] = kept;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}
