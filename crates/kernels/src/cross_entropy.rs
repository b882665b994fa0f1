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
pub fn cross_entropy_forward(logits: &[f32], targets: &[u32], losses: &mut [f32], argmax: Option<&mut [u32]>, v: usize) {
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
    assert!(v > 0 && logits == n * v && losses == n, "{logits} logits and {losses} losses for {n} targets and V={v}");
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
