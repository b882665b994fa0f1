//! The gradients of one key/value head of one sequence.

#![expect(unsafe_code, reason = "tasks write disjoint columns of one output")]

use super::AttentionShape;
use super::tile::{Job, KEYS, gather_group, product, queries_per_tile, scale, scores};
use crate::floats::Floats;
use crate::gemm::{MatMut, MatRef, dot_f32, grown};
use crate::shared::SharedMut;
use crate::simd::exp;
use core::cell::RefCell;

/// The incoming gradient and what the forward pass left.
pub(super) struct Saved<'a> {
    pub(super) g: &'a [f32],
    pub(super) q: Floats<'a>,
    pub(super) out: Floats<'a>,
    pub(super) lse: &'a [f32],
}

/// Where the gradients go.
pub(super) struct Gradients<'a> {
    pub(super) dq: SharedMut<'a, f32>,
    pub(super) dk: SharedMut<'a, f32>,
    pub(super) dv: SharedMut<'a, f32>,
}

#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    dq: Vec<f32>,
    s: Vec<f32>,
    dp: Vec<f32>,
    delta: Vec<f32>,
    lse: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Writes dq for the heads of a group and dk, dv for their key/value head, over all rows of the job.
pub(super) fn head(
    saved: &Saved<'_>,
    job: &Job<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    to: &Gradients<'_>,
) {
    for row in job.q_start..job.q_start + job.q_len {
        let at = row * shape.kv_width() + kv_head * shape.head_dim;
        // SAFETY: this task alone writes the columns of this head in the rows of this job.
        unsafe { to.dk.part(at, shape.head_dim) }.fill(0.0);
        // SAFETY: as above.
        unsafe { to.dv.part(at, shape.head_dim) }.fill(0.0);
    }
    let per_tile = queries_per_tile(shape);
    SCRATCH.with_borrow_mut(|scratch| {
        for first in (0..job.q_len).step_by(per_tile) {
            tile(saved, job, shape, kv_head, (first, per_tile.min(job.q_len - first)), to, scratch);
        }
    });
}

fn tile(
    saved: &Saved<'_>,
    job: &Job<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    queries: (usize, usize),
    to: &Gradients<'_>,
    scratch: &mut Scratch,
) {
    let (group, d) = (shape.group(), shape.head_dim);
    let narrow = matches!(saved.q, Floats::BF16(_));
    let rows = queries.1 * group;
    let at = (job.q_start + queries.0, queries.1);
    let q = grown(&mut scratch.q, rows * d);
    let g = grown(&mut scratch.g, rows * d);
    let dq = grown(&mut scratch.dq, rows * d);
    let delta = grown(&mut scratch.delta, rows);
    let lse = grown(&mut scratch.lse, rows);
    gather_group(Floats::F32(saved.g), shape, kv_head, at, g);
    // `dq` holds the outputs until delta = g . out is formed.
    gather_group(saved.out, shape, kv_head, at, dq);
    for ((delta, g), out) in delta.iter_mut().zip(g.chunks_exact(d)).zip(dq.chunks_exact(d)) {
        *delta = dot_f32(g, out);
    }
    gather_group(saved.q, shape, kv_head, at, q);
    scale(q, shape.scale);
    for (row, lse) in (at.0..).zip(lse.chunks_exact_mut(group)) {
        lse.copy_from_slice(&saved.lse[row * shape.heads + kv_head * group..][..group]);
    }
    dq.fill(0.0);
    let s = grown(&mut scratch.s, rows * KEYS);
    let dp = grown(&mut scratch.dp, rows * KEYS);
    let (q_mat, g_mat) = (MatRef::new(q, rows, d, d), MatRef::new(g, rows, d, d));
    for keys in job.key_tiles(queries, shape.window) {
        let key_rows = job.keys(shape, kv_head, keys, &mut scratch.k);
        scores(job, shape, queries, keys, key_rows, q, narrow, s);
        let values = job.values(shape, kv_head, keys, &mut scratch.v).transposed();
        product(narrow, &mut MatMut::new(dp, rows, keys.1, KEYS), g_mat, values, false);
        probabilities(s, dp, keys.1, lse, delta, shape.soft_cap);
        let (p, ds) = (MatRef::new(s, rows, keys.1, KEYS), MatRef::new(dp, rows, keys.1, KEYS));
        let at = (job.q_start + keys.0) * shape.kv_width() + kv_head * d;
        // SAFETY: this task alone writes the columns of this head in the rows of this job, one view at a time.
        let mut dv = unsafe { MatMut::of(&to.dv, at, keys.1, d, shape.kv_width()) };
        product(narrow, &mut dv, p.transposed(), g_mat, true);
        // SAFETY: as above.
        let mut dk = unsafe { MatMut::of(&to.dk, at, keys.1, d, shape.kv_width()) };
        product(narrow, &mut dk, ds.transposed(), q_mat, true);
        product(narrow, &mut MatMut::new(dq, rows, d, d), ds, key_rows, true);
    }
    scale(dq, shape.scale);
    for (i, dq) in dq.chunks_exact(group * d).enumerate() {
        let at = (at.0 + i) * shape.query_width() + kv_head * group * d;
        // SAFETY: this task alone writes the columns of this group in these rows.
        unsafe { to.dq.part(at, group * d) }.copy_from_slice(dq);
    }
}

/// Scores become probabilities, and d/d(probability) becomes d/d(score before the cap).
fn probabilities(
    s: &mut [f32],
    dp: &mut [f32],
    keys: usize,
    lse: &[f32],
    delta: &[f32],
    soft_cap: Option<f32>,
) {
    let rows = s.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS));
    for ((s, dp), (&lse, &delta)) in rows.zip(lse.iter().zip(delta)) {
        match soft_cap {
            None => probabilities_row(&mut s[..keys], &mut dp[..keys], lse, delta),
            Some(cap) => capped_probabilities_row(&mut s[..keys], &mut dp[..keys], lse, delta, 1.0 / cap),
        }
    }
}

multiversion! {
    fn probabilities_row(s: &mut [f32], dp: &mut [f32], lse: f32, delta: f32) {
        for (s, dp) in s.iter_mut().zip(dp) {
            let p = exp(*s - lse);
            *dp = p * (*dp - delta);
            *s = p;
        }
    }
}

multiversion! {
    fn capped_probabilities_row(s: &mut [f32], dp: &mut [f32], lse: f32, delta: f32, inverse_cap: f32) {
        for (s, dp) in s.iter_mut().zip(dp) {
            let p = exp(*s - lse);
            let tanh = *s * inverse_cap;
            // A masked score is minus infinity, whose slope must not meet p = 0.
            let slope = if p == 0.0 { 0.0 } else { 1.0 - tanh * tanh };
            *dp = p * (*dp - delta) * slope;
            *s = p;
        }
    }
}
