//! Causal attention over packed sequences: blockwise, with an online softmax, so that no T x T matrix ever exists.
//!
//! out_i = sum over visible j of softmax_j(scale * q_i . k_j) v_j. Grouped heads (N query heads share K key/value heads) are read in
//! place: the queries of a group are gathered in one tile, so that one product serves them all. Sliding windows and the soft cap
//! c * tanh(s / c) are part of the kernel. Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao,
//! "FlashAttention-2", 2023, for the order of the loops.
//!
//! A task owns its outputs: in the forward pass one tile of queries of one key/value head, in the backward pass all of one key/value
//! head of one sequence. Key tiles are taken from the left. A NaN in a key or value can reach earlier queries of its own sequence in the
//! same tile (0 * NaN), never another sequence.

mod backward;
mod tile;

#[cfg(test)]
mod tests;

use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::shared::SharedMut;
use crate::threads::for_each_block;
use tile::{Job, forward_tile};

/// One sequence within the packed batch: its queries (and keys and values) are rows `q_start..q_start + q_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub q_start: usize,
    /// Number of rows.
    pub q_len: usize,
}

/// The sizes and switches of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// N, the query heads.
    pub heads: usize,
    /// K, the key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// D, the width of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually 1 / sqrt(D).
    pub scale: f32,
    /// With a window w, a query sees itself and the w - 1 keys before it.
    pub window: Option<usize>,
    /// With a cap c, scores become c * tanh(score / c).
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn check(&self) {
        assert!(
            self.kv_heads > 0
                && self.heads > 0
                && self.heads.is_multiple_of(self.kv_heads)
                && self.head_dim > 0,
            "{} query heads over {} key/value heads of width {}",
            self.heads,
            self.kv_heads,
            self.head_dim
        );
        assert!(self.window != Some(0), "a window of 0 keys");
    }
}

/// Keys and values of some positions of a sequence that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct CachePage<'a> {
    /// Keys `[P, K*D]`.
    pub k: Floats<'a>,
    /// Values `[P, K*D]`.
    pub v: Floats<'a>,
}

/// New queries of one sequence against its cache.
#[derive(Clone, Copy, Debug)]
pub struct CachedSegment<'a> {
    /// First row of the queries.
    pub q_start: usize,
    /// Number of queries: they are the last `q_len` of the `kv_len` positions.
    pub q_len: usize,
    /// The cache: page i holds positions i P to (i + 1) P.
    pub pages: &'a [CachePage<'a>],
    /// P.
    pub page_tokens: usize,
    /// Positions of the cache in use, the new ones included.
    pub kv_len: usize,
}

/// out `[T, N*D]` from q `[T, N*D]`, k and v `[T, K*D]`; lse `[T,N]` receives the log of each softmax's denominator for the backward
/// pass.
///
/// # Panics
/// When a length does not fit, or the segments are not the rows 0..T in order.
pub fn attention_forward<'a>(
    q: impl Into<Floats<'a>>,
    k: impl Into<Floats<'a>>,
    v: impl Into<Floats<'a>>,
    segments: &[Segment],
    shape: &AttentionShape,
    out: impl Into<FloatsMut<'a>>,
    lse: &mut [f32],
) {
    let (q, k, v, out) = (q.into(), k.into(), v.into(), out.into());
    let t = check_segments(segments.iter().map(|s| (s.q_start, s.q_len)));
    check_packed((q.len(), k.len(), v.len()), shape, t);
    assert_eq!((out.len(), lse.len()), (q.len(), t * shape.heads), "lengths of out and lse for T={t}");
    let jobs: Vec<Job<'_>> = segments.iter().map(|s| Job::packed(s, k, v)).collect();
    run_forward(q, &jobs, shape, out, Some(lse));
}

/// The gradients of [`attention_forward`]: from g = d/d(out) `[T, N*D]`, dq `[T, N*D]` and dk, dv `[T, K*D]`, all overwritten.
///
/// With p = e^(s - lse) and ds = p (g . v - g . out): dv = p^T g, dq = scale ds k, dk = scale ds^T q.
///
/// # Panics
/// When a length does not fit, or the segments are not the rows 0..T in order.
#[expect(clippy::too_many_arguments, reason = "plain slices")]
pub fn attention_backward<'a>(
    g: &[f32],
    q: impl Into<Floats<'a>>,
    k: impl Into<Floats<'a>>,
    v: impl Into<Floats<'a>>,
    out: impl Into<Floats<'a>>,
    lse: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (q, k, v, out) = (q.into(), k.into(), v.into(), out.into());
    let t = check_segments(segments.iter().map(|s| (s.q_start, s.q_len)));
    check_packed((q.len(), k.len(), v.len()), shape, t);
    let n = q.len();
    assert_eq!(
        (g.len(), out.len(), dq.len(), lse.len()),
        (n, n, n, t * shape.heads),
        "lengths of g, out, dq, lse"
    );
    assert_eq!((dk.len(), dv.len()), (k.len(), k.len()), "lengths of dk and dv");
    let saved = backward::Saved { g, q, out, lse };
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let work = segments.iter().map(|s| s.q_len * s.q_len * shape.query_width()).sum();
    for_each_block(segments.len() * shape.kv_heads, work, |block| {
        let (segment, kv_head) = (&segments[block / shape.kv_heads], block % shape.kv_heads);
        let job = Job::packed(segment, k, v);
        backward::head(&saved, &job, shape, kv_head, &backward::Gradients { dq, dk, dv });
    });
}

/// out `[T, N*D]` for new queries q `[T, N*D]`, each sequence against its own cache.
///
/// Query i of a sequence sees keys j <= `kv_len` - `q_len` + i, within the window.
///
/// # Panics
/// When a length does not fit, the queries are not the rows 0..T in order, or a sequence has more queries than positions.
pub fn attention_cached<'a>(
    q: impl Into<Floats<'a>>,
    queries: &[CachedSegment<'_>],
    shape: &AttentionShape,
    out: impl Into<FloatsMut<'a>>,
) {
    let (q, out) = (q.into(), out.into());
    shape.check();
    let t = check_segments(queries.iter().map(|s| (s.q_start, s.q_len)));
    assert_eq!(
        (q.len(), out.len()),
        (t * shape.query_width(), t * shape.query_width()),
        "lengths of q and out"
    );
    let jobs: Vec<Job<'_>> = queries.iter().map(|s| Job::cached(s, shape)).collect();
    run_forward(q, &jobs, shape, out, None);
}

fn run_forward(
    q: Floats<'_>,
    jobs: &[Job<'_>],
    shape: &AttentionShape,
    out: FloatsMut<'_>,
    lse: Option<&mut [f32]>,
) {
    let per_tile = tile::queries_per_tile(shape);
    let tiles: Vec<(&Job<'_>, usize)> =
        jobs.iter().flat_map(|job| (0..job.q_len).step_by(per_tile).map(move |first| (job, first))).collect();
    let work = jobs.iter().map(|job| job.q_len * (job.q_len + job.offset) * shape.query_width()).sum();
    let (out, lse) = (SharedFloats::new(out), lse.map(SharedMut::new));
    for_each_block(tiles.len() * shape.kv_heads, work, |block| {
        // From the end: later queries see more keys, and long tasks should start first.
        let (job, first) = tiles[tiles.len() - 1 - block / shape.kv_heads];
        let count = per_tile.min(job.q_len - first);
        forward_tile(q, job, shape, block % shape.kv_heads, (first, count), &out, lse.as_ref());
    });
}

/// Checks that the rows follow each other from 0 and returns their number.
fn check_segments(rows: impl Iterator<Item = (usize, usize)>) -> usize {
    let mut next = 0;
    for (i, (start, len)) in rows.enumerate() {
        assert_eq!(start, next, "segment {i} starts at the wrong row");
        next = start + len;
    }
    next
}

fn check_packed(lengths: (usize, usize, usize), shape: &AttentionShape, t: usize) {
    shape.check();
    let want = (t * shape.query_width(), t * shape.kv_width(), t * shape.kv_width());
    assert_eq!(lengths, want, "lengths of q, k, v for segments of T={t}");
}
