//! Rotary position embedding, half-split convention (element i is paired with i + rotary_dim / 2), as transformers stores weights.
//!
//! Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.

use crate::threads;

/// Rotates the first `rotary_dim` elements of each head of x `[T, heads * head_dim]` in place; the rest stays.
///
/// cos and sin are `[T, rotary_dim / 2]`. `inverse` turns the other way, which is the gradient (a rotation's transpose).
///
/// # Panics
/// When a length does not fit, or `rotary_dim` is odd or more than `head_dim`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32], t: usize, heads: usize, head_dim: usize, rotary_dim: usize, inverse: bool) {
    assert!(rotary_dim <= head_dim && rotary_dim.is_multiple_of(2), "rotary_dim {rotary_dim} of head_dim {head_dim}");
    let half = rotary_dim / 2;
    assert_eq!((x.len(), cos.len(), sin.len()), (t * heads * head_dim, t * half, t * half), "lengths of x, cos, sin");
    if half == 0 {
        return;
    }
    let width = heads * head_dim;
    let sign = if inverse { -1.0 } else { 1.0 };
    threads::for_each_rows(x, width, threads::rows_per_block(width), |first, block| {
        for (r, row) in block.chunks_exact_mut(width).enumerate() {
            let at = (first + r) * half..(first + r + 1) * half;
            rotate_row(row, &cos[at.clone()], &sin[at], head_dim, sign);
        }
    });
}

multiversion! {
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], head_dim: usize, sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            let (a, rest) = head.split_at_mut(half);
            for (((a, b), &cos), &sin) in a.iter_mut().zip(rest).zip(cos).zip(sin) {
                let sin = sign * sin;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
