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
pub fn rope(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    t: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    inverse: bool,
) {
    assert!(
        rotary_dim <= head_dim && rotary_dim.is_multiple_of(2),
        "rotary_dim {rotary_dim} of head_dim {head_dim}"
    );
    let half = rotary_dim / 2;
    assert_eq!(
        (x.len(), cos.len(), sin.len()),
        (t * heads * head_dim, t * half, t * half),
        "lengths of x, cos, sin"
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{Dice, assert_close, random};

    fn tables(t: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
        (
            random(t * half, 8).iter().map(|a| (3.0 * a).cos()).collect(),
            random(t * half, 8).iter().map(|a| (3.0 * a).sin()).collect(),
        )
    }

    #[test]
    fn rotation_equals_the_plain_twin_and_turns_back() {
        let mut dice = Dice::new(2);
        for round in 0..40 {
            let head_dim = dice.one_of(&[2, 24, 32, 64, 96]);
            let rotary_dim = dice.one_of(&[0, 2, head_dim / 4 * 2, head_dim]);
            let (t, heads) = (dice.between(0, if round == 7 { 400 } else { 9 }), dice.between(1, 5));
            let x = random(t * heads * head_dim, 1);
            let (cos, sin) = tables(t, rotary_dim / 2);
            let mut y = x.clone();
            rope(&mut y, &cos, &sin, t, heads, head_dim, rotary_dim, false);
            let wide = |x: &[f32]| plain::widen(x);
            let want = plain::rope(&wide(&x), &wide(&cos), &wide(&sin), heads, head_dim, rotary_dim);
            assert_close(&y, &want, 1e-6, "rope");
            rope(&mut y, &cos, &sin, t, heads, head_dim, rotary_dim, true);
            assert_close(&y, &wide(&x), 1e-6, "the way back");
        }
    }

    #[test]
    fn the_inverse_is_the_gradient() {
        let (t, heads, head_dim, rotary_dim) = (3, 2, 6, 4);
        let (x, g) = (random(t * heads * head_dim, 1), random(t * heads * head_dim, 2));
        let (cos, sin) = tables(t, 2);
        let mut dx = g.clone();
        rope(&mut dx, &cos, &sin, t, heads, head_dim, rotary_dim, true);
        let (cos, sin) = (plain::widen(&cos), plain::widen(&sin));
        let want = plain::numeric_gradient(&plain::widen(&x), |x| {
            plain::rope(x, &cos, &sin, heads, head_dim, rotary_dim)
                .iter()
                .zip(&g)
                .map(|(y, &g)| y * f64::from(g))
                .sum()
        });
        assert_close(&dx, &want, 1e-6, "dx");
    }
}
