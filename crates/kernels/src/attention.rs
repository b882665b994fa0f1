//! Causal attention (plain version, to be replaced).

/// One sequence within the packed batch: its queries are rows `q_start..q_start + q_len`.
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

/// New queries of one sequence against its cache.
#[derive(Clone, Copy, Debug)]
pub struct CachedSegment<'a> {
    /// First row of the queries.
    pub q_start: usize,
    /// Number of queries: the last `q_len` of the `kv_len` positions.
    pub q_len: usize,
    /// Keys `[L, K*D]`, L >= `kv_len`.
    pub k: &'a [f32],
    /// Values `[L, K*D]`, L >= `kv_len`.
    pub v: &'a [f32],
    /// Positions of the cache in use, the new ones included.
    pub kv_len: usize,
}

/// out `[T, N*D]` and lse `[T, N]`.
pub fn attention_forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
    out: &mut [f32],
    lse: &mut [f32],
) {
    use crate::plain;
    let (o, l) = plain::attention(&plain::widen(q), &plain::widen(k), &plain::widen(v), segments, shape);
    out.iter_mut().zip(o).for_each(|(a, b)| *a = b as f32);
    lse.iter_mut().zip(l).for_each(|(a, b)| *a = b as f32);
}

/// Gradients.
#[expect(clippy::too_many_arguments, reason = "plain slices")]
pub fn attention_backward(
    g: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let _ = (g, q, k, v, out, lse, segments, shape, dq, dk, dv);
    panic!("not here yet");
}

/// Decoding.
pub fn attention_cached(q: &[f32], queries: &[CachedSegment<'_>], shape: &AttentionShape, out: &mut [f32]) {
    let _ = (q, queries, shape, out);
    panic!("not here yet");
}
