//! Cross-entropy of logits against one target per row: loss = ln(sum over v of e^(l_v)) - l_target, made stable by the row's largest logit.
//!
//! The exponentials are `f32`, summed in lanes of at most 4 096 elements and then in `f64`; the loss is formed in `f64`.

use crate::simd::{LANES, exp, max, sum_lanes};
use rayon::prelude::*;

/// Elements whose exponentials are summed in `f32` before they go to the `f64` sum.
const SUM_BLOCK: usize = 4096;

/// Replaces logits `[n,V]` by d(sum of the losses)/d(logits) = softmax - one-hot, and writes the loss of each row.
///
/// The caller divides by its number of target tokens (through the scale of the gradient it passes on).
///
/// # Panics
/// When a length does not fit, or a target is not below `v`.
pub fn cross_entropy_forward_backward(logits: &mut [f32], targets: &[u32], losses: &mut [f32], v: usize) {
    check(logits.len(), targets, losses.len(), v);
    let row = |((logits, &target), loss): ((&mut [f32], &u32), &mut f32)| {
        let (highest, at_target) = (max(logits), logits[target as usize]);
        let mut sum = 0.0f64;
        for block in logits.chunks_mut(SUM_BLOCK) {
            sum += f64::from(exp_in_place(block, highest));
        }
        *loss = (sum.ln() - (f64::from(at_target) - f64::from(highest))) as f32;
        scale(logits, (1.0 / sum) as f32);
        logits[target as usize] -= 1.0;
    };
    if logits.len() < 32 * 1024 {
        logits.chunks_exact_mut(v).zip(targets).zip(losses).for_each(row);
    } else {
        logits.par_chunks_exact_mut(v).zip(targets).zip(losses).for_each(row);
    }
}

/// The loss of each row of logits `[n,V]`, and with `argmax` the first position of its largest logit (a NaN is never the largest).
///
/// # Panics
/// When a length does not fit, or a target is not below `v`.
pub fn cross_entropy_forward(
    logits: &[f32],
    targets: &[u32],
    losses: &mut [f32],
    argmax: Option<&mut [u32]>,
    v: usize,
) {
    check(logits.len(), targets, losses.len(), v);
    let row = |((logits, &target), loss): ((&[f32], &u32), &mut f32)| {
        let highest = max(logits);
        let sum: f64 = logits.chunks(SUM_BLOCK).map(|block| f64::from(exp_sum(block, highest))).sum();
        *loss = (sum.ln() - (f64::from(logits[target as usize]) - f64::from(highest))) as f32;
    };
    logits.par_chunks_exact(v).zip(targets).zip(losses).for_each(row);
    let Some(argmax) = argmax else { return };
    assert_eq!(argmax.len(), targets.len(), "length of argmax");
    logits.par_chunks_exact(v).zip(argmax).for_each(|(logits, best)| {
        let highest = max(logits);
        *best = logits.iter().position(|&l| l == highest).unwrap_or(0) as u32;
    });
}

fn check(logits: usize, targets: &[u32], losses: usize, v: usize) {
    let n = targets.len();
    assert!(
        v > 0 && logits == n * v && losses == n,
        "{logits} logits and {losses} losses for {n} targets and V={v}"
    );
    if let Some(target) = targets.iter().find(|&&target| target as usize >= v) {
        panic!("target {target} with V={v}");
    }
}

multiversion! {
    /// x = e^(x - highest); returns the sum.
    fn exp_in_place(x: &mut [f32], highest: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (head, tail) = x.as_chunks_mut::<LANES>();
        for chunk in head {
            for (x, sum) in chunk.iter_mut().zip(&mut lanes) {
                *x = exp(*x - highest);
                *sum += *x;
            }
        }
        let mut sum = sum_lanes(lanes);
        for x in tail {
            *x = exp(*x - highest);
            sum += *x;
        }
        sum
    }
}

multiversion! {
    fn exp_sum(x: &[f32], highest: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (head, tail) = x.as_chunks::<LANES>();
        for chunk in head {
            for (x, sum) in chunk.iter().zip(&mut lanes) {
                *sum += exp(*x - highest);
            }
        }
        let mut sum = sum_lanes(lanes);
        for x in tail {
            sum += exp(*x - highest);
        }
        sum
    }
}

multiversion! {
    fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::rng::CounterRng;
    use crate::testing::{assert_close, assert_same_for_any_threads, poisoned, random};

    fn case(n: usize, v: usize) -> (Vec<f32>, Vec<u32>) {
        let rng = CounterRng::new(4, v as u64);
        (
            random(n * v, 1).iter().map(|x| 15.0 * x).collect(),
            (0..n as u64).map(|i| rng.below(i, v as u64) as u32).collect(),
        )
    }

    #[test]
    fn losses_and_gradients_equal_the_plain_twin() {
        for (n, v) in [(0, 3), (1, 1), (3, 2), (5, 17), (2, 31), (3, 10_007)] {
            let (logits, targets) = case(n, v);
            let wide = plain::widen(&logits);
            let want = plain::cross_entropy(&wide, &targets, v);
            let (mut losses, mut best) = (poisoned(n), vec![u32::MAX; n]);
            cross_entropy_forward(&logits, &targets, &mut losses, Some(&mut best), v);
            assert_close(&losses, &want, 2e-6, "losses");
            let (mut g, mut again) = (logits.clone(), poisoned(n));
            cross_entropy_forward_backward(&mut g, &targets, &mut again, v);
            assert_close(&again, &want, 2e-6, "losses with gradients");
            for (row, &best) in logits.chunks(v).zip(&best) {
                assert!(row.iter().all(|&l| l <= row[best as usize]));
            }
            if v < 100 {
                let want =
                    plain::numeric_gradient(&wide, |l| plain::cross_entropy(l, &targets, v).iter().sum());
                assert_close(&g, &want, 1e-6, "gradients");
            } else {
                assert!(g.chunks(v).all(|row| row.iter().map(|&g| f64::from(g)).sum::<f64>().abs() < 1e-5));
            }
        }
    }

    #[test]
    fn large_and_masked_logits_are_stable() {
        let mut logits = [1e30, 0.0, f32::NEG_INFINITY, 5000.0, 4999.0, f32::NEG_INFINITY];
        let mut losses = [f32::NAN; 2];
        cross_entropy_forward_backward(&mut logits, &[0, 1], &mut losses, 3);
        assert_eq!(losses[0], 0.0);
        assert!((losses[1] - 1.313_261_7).abs() < 1e-6);
        assert!(logits.iter().all(|g| g.is_finite()) && logits[2] == 0.0);
    }

    #[test]
    fn a_nan_logit_makes_the_loss_nan() {
        let mut losses = [0.0; 2];
        cross_entropy_forward(&[0.0, f32::NAN, 1.0, 0.0, 0.0, 0.0], &[0, 0], &mut losses, None, 3);
        assert!(losses[0].is_nan() && losses[1].is_finite());
    }

    #[test]
    fn argmax_takes_the_first_of_equals() {
        let (mut losses, mut best) = ([0.0; 1], [9]);
        cross_entropy_forward(&[0.0, 2.0, 2.0], &[0], &mut losses, Some(&mut best), 3);
        assert_eq!(best, [1]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (logits, targets) = case(20, 5_000);
        assert_same_for_any_threads("cross entropy", || {
            let (mut g, mut losses) = (logits.clone(), poisoned(20));
            cross_entropy_forward_backward(&mut g, &targets, &mut losses, 5_000);
            g.extend(losses);
            g
        });
    }

    #[test]
    #[should_panic(expected = "target 3 with V=3")]
    fn a_target_outside_the_vocabulary_is_named() {
        cross_entropy_forward(&[0.0; 3], &[3], &mut [0.0], None, 3);
    }
}
