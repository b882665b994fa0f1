//! Rotary position embedding, half-split convention (element i is paired with i + rotary_dim / 2), as transformers stores weights.
//!
//! Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.

#![expect(unsafe_code, reason = "tasks write rows of their own")]

use crate::floats::{Floats, FloatsMut, SharedFloats, with_scratch};
use crate::threads::{self, for_each_block};

/// y = x `[T, heads * head_dim]` with the first `rotary_dim` elements of each head rotated; the rest stays.
///
/// cos and sin are `[T, rotary_dim / 2]`. `inverse` turns the other way, which is the gradient (a rotation's transpose).
///
/// # Panics
/// When a length does not fit, or `rotary_dim` is odd or more than `head_dim`.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn rope<'a>(
    x: impl Into<Floats<'a>>,
    y: impl Into<FloatsMut<'a>>,
    cos: &[f32],
    sin: &[f32],
    t: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    inverse: bool,
) {
    let (x, y) = (x.into(), y.into());
    assert!(
        rotary_dim <= head_dim && rotary_dim.is_multiple_of(2),
        "rotary_dim {rotary_dim} of head_dim {head_dim}"
    );
    let (half, width) = (rotary_dim / 2, heads * head_dim);
    assert_eq!(
        (x.len(), y.len(), cos.len(), sin.len()),
        (t * width, t * width, t * half, t * half),
        "lengths of x, y, cos, sin"
    );
    let sign = if inverse { -1.0 } else { 1.0 };
    let rows = threads::rows_per_block(width);
    let y = SharedFloats::new(y);
    for_each_block(t.div_ceil(rows), t * width, |block| {
        with_scratch(width, |[wide, out]| {
            for row in block * rows..t.min((block + 1) * rows) {
                let x = x.read(row * width, width, wide);
                let at = row * half..(row + 1) * half;
                // SAFETY: this task alone writes this row.
                unsafe {
                    y.write(row * width, width, out, |y| {
                        y.copy_from_slice(x);
                        if half > 0 {
                            rotate_row(y, &cos[at.clone()], &sin[at], head_dim, sign);
                        }
                    });
                }
            }
        });
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
            let mut y = crate::testing::poisoned(x.len());
            rope(&x, &mut y, &cos, &sin, t, heads, head_dim, rotary_dim, false);
            let wide = |x: &[f32]| plain::widen(x);
            let want = plain::rope(&wide(&x), &wide(&cos), &wide(&sin), heads, head_dim, rotary_dim);
            assert_close(&y, &want, 1e-6, "rope");
            let mut back = crate::testing::poisoned(x.len());
            rope(&y, &mut back, &cos, &sin, t, heads, head_dim, rotary_dim, true);
            assert_close(&back, &wide(&x), 1e-6, "the way back");
        }
    }

    #[test]
    fn the_inverse_is_the_gradient() {
        let (t, heads, head_dim, rotary_dim) = (3, 2, 6, 4);
        let (x, g) = (random(t * heads * head_dim, 1), random(t * heads * head_dim, 2));
        let (cos, sin) = tables(t, 2);
        let mut dx = crate::testing::poisoned(g.len());
        rope(&g, &mut dx, &cos, &sin, t, heads, head_dim, rotary_dim, true);
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
