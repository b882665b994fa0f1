//! Sums over and simple updates of whole buffers.

use rayon::prelude::*;

const BLOCK: usize = 16 * 1024;

/// The sum of the squares, in `f64`: blocks of fixed size, then their sums in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(BLOCK).map(squares_block).collect();
    parts.iter().sum()
}

/// Whether no element is NaN or infinite.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(BLOCK).all(finite_block)
}

/// `y += alpha * x`.
///
/// # Panics
/// When the lengths differ.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of x and y");
    y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| axpy_block(alpha, x, y));
}

multiversion! {
    fn squares_block(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (head, tail) = x.as_chunks::<16>();
        for chunk in head {
            for (sum, &x) in lanes.iter_mut().zip(chunk) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in lanes.iter_mut().zip(tail) {
            *sum += f64::from(x) * f64::from(x);
        }
        sum_lanes(lanes)
    }
}

/// Out of line, so that the loop before it is vectorised to its own width.
#[inline(never)]
fn sum_lanes(lanes: [f64; 16]) -> f64 {
    lanes.iter().sum()
}

multiversion! {
    fn finite_block(x: &[f32]) -> bool {
        let mut bad = 0u32;
        for x in x {
            bad |= u32::from(x.to_bits() & 0x7F80_0000 == 0x7F80_0000);
        }
        bad == 0
    }
}

multiversion! {
    fn axpy_block(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }
}

multiversion! {
    /// `y += x`, on the calling thread.
    pub(crate) fn add_block(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_squares_are_those_of_f64() {
        for n in [0usize, 1, 15, 16, 17, 50_001] {
            let mut x = vec![0.0; n];
            crate::rng::CounterRng::new(1, n as u64).fill_normal(0, 1.0, &mut x);
            let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((sum_of_squares(&x) - want).abs() <= 1e-12 * want, "{n}");
        }
    }

    #[test]
    fn one_bad_element_is_found_anywhere() {
        let mut x = vec![f32::MAX; 20_000];
        assert!(all_finite(&x));
        for at in [0, 9_999, 19_999] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let kept = std::mem::replace(&mut x[at], bad);
                assert!(!all_finite(&x), "{bad} at {at}");
                x[at] = kept;
            }
        }
    }

    #[test]
    fn axpy_adds_a_multiple() {
        let mut y = vec![1.0f32; 20_000];
        axpy(2.0, &(0..20_000).map(|i| i as f32).collect::<Vec<_>>(), &mut y);
        assert!(y.iter().enumerate().all(|(i, &y)| y == 1.0 + 2.0 * i as f32));
    }
}
