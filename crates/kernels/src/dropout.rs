//! Dropout whose mask is made from positions, so that it is made again rather than kept for the backward pass.

#![expect(unsafe_code, reason = "tasks write chunks of their own")]

use crate::floats::{CHUNK, Floats, FloatsMut, SharedFloats, with_scratch};
use crate::rng::CounterRng;
use crate::threads::for_each_block;

/// A multiple of the words that the generator makes at once.
const BLOCK: usize = 16 * 1024;

/// `y[i] = 0` with probability `p`, else `x[i] / (1 - p)`; element i uses word `start + i` of `rng`.
///
/// The same call on the gradient of y gives the gradient of x. A dropped NaN is dropped.
///
/// # Panics
/// When the lengths differ or `p` is outside [0, 1).
pub fn dropout<'a>(
    x: impl Into<Floats<'a>>,
    y: impl Into<FloatsMut<'a>>,
    p: f32,
    rng: &CounterRng,
    start: u64,
) {
    let (x, y) = (x.into(), y.into());
    let n = y.len();
    assert_eq!(x.len(), n, "lengths of x and y");
    assert!((0.0..1.0).contains(&p), "dropout probability {p} is not in [0, 1)");
    let (threshold, scale) = constants(p);
    let y = SharedFloats::new(y);
    for_each_block(n.div_ceil(BLOCK), n, |block| {
        with_scratch(CHUNK, |[wide, out]| {
            let end = n.min((block + 1) * BLOCK);
            for from in (block * BLOCK..end).step_by(CHUNK) {
                let len = CHUNK.min(end - from);
                let x = x.read(from, len, wide);
                let fill = |y: &mut [f32]| {
                    rng.for_each_words(start + from as u64, len, |at, words| {
                        for ((y, &x), &word) in y[at..].iter_mut().zip(&x[at..]).zip(words) {
                            *y = if word < threshold { 0.0 } else { x * scale };
                        }
                    });
                };
                // SAFETY: this task alone writes this chunk.
                unsafe { y.write(from, len, out, fill) };
            }
        });
    });
}

/// Words below the first are dropped, with p = 0 none; what is kept is multiplied by the second. p < 1 in `f32` leaves at least 2^8 of the
/// 2^32 words.
pub(crate) fn constants(p: f32) -> (u32, f32) {
    ((f64::from(p) * 4_294_967_296.0) as u32, (1.0 / (1.0 - f64::from(p))) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_follows_its_own_word() {
        let rng = CounterRng::new(11, 3);
        for (n, start, p) in
            [(0usize, 0u64, 0.5f32), (1, 9, 0.1), (40_001, 77, 0.3), (100, 2, 0.0), (100, 2, 0.999)]
        {
            let x: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            let mut y = vec![f32::NAN; n];
            dropout(&x, &mut y, p, &rng, start);
            let scale = (1.0 / (1.0 - f64::from(p))) as f32;
            for i in 0..n {
                let kept =
                    f64::from(rng.u32_at(start + i as u64)) >= (f64::from(p) * 4_294_967_296.0).floor();
                assert_eq!(y[i], if kept { x[i] * scale } else { 0.0 }, "{i} of {n} at p = {p}");
            }
        }
    }

    #[test]
    fn the_share_of_dropped_elements_is_p() {
        let mut y = vec![f32::NAN; 100_000];
        dropout(&vec![1.0f32; 100_000], &mut y, 0.25, &CounterRng::new(1, 2), 0);
        let dropped = y.iter().filter(|&&y| y == 0.0).count();
        assert!((24_400..25_600).contains(&dropped), "{dropped}");
    }

    #[test]
    #[should_panic(expected = "not in [0, 1)")]
    fn a_probability_of_one_is_refused() {
        dropout(&[1.0][..], &mut [0.0][..], 1.0, &CounterRng::new(1, 2), 0);
    }
}
