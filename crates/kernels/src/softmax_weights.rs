//! Weights of a row of logits for sampling: `w = e^((l - highest) / temperature)` in `f64`.

/// Elements of the inner loop: four AVX-512 registers of `f64`.
const BLOCK: usize = 32;
/// Below this `e^x` is subnormal and is flushed to zero.
const LOWEST: f64 = -708.396_418_532_264_1;
/// Adding and taking away 1.5 * 2^52 rounds to the nearest integer.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// The weight of each logit, where none is above `highest` and `temperature` is above 0. Minus infinity has weight 0; a relative error
/// is below 4e-16; what would be subnormal is 0. The same bits on every processor.
///
/// # Panics
/// When the lengths differ.
pub fn softmax_weights(logits: &[f32], highest: f32, temperature: f64, weights: &mut [f64]) {
    assert_eq!(logits.len(), weights.len(), "logits and weights");
    let highest = f64::from(highest);
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    let (out, out_rest) = weights.as_chunks_mut::<BLOCK>();
    whole_blocks(blocks, highest, temperature, out);
    for (&logit, weight) in rest.iter().zip(out_rest) {
        *weight = exp_below_one((f64::from(logit) - highest) / temperature);
    }
}

multiversion! {
    fn whole_blocks(logits: &[[f32; BLOCK]], highest: f64, temperature: f64, weights: &mut [[f64; BLOCK]]) {
        for (logits, weights) in logits.iter().zip(weights) {
            for (&logit, weight) in logits.iter().zip(weights) {
                *weight = exp_below_one((f64::from(logit) - highest) / temperature);
            }
        }
    }
}

/// e^x for x up to 0: argument reduction by multiples of ln 2 (split in two so that the product is exact), then the Taylor series to
/// the thirteenth power on [-ln 2 / 2, ln 2 / 2], whose remainder is 5e-18. NaN stays NaN.
#[inline(always)]
fn exp_below_one(x: f64) -> f64 {
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    let bounded = if x < LOWEST { LOWEST } else { x };
    let shifted = bounded * core::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 6_227_020_800.0;
    for divisor in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0f64,
    ] {
        p = p * r + 1.0 / divisor;
    }
    // The low bits of the shifted number are n.
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let y = p * scale;
    if x < LOWEST { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| -(i as f32) * 0.173 - (i % 7) as f32 * 1e-3).collect()
    }

    #[test]
    fn weights_follow_the_plain_ones() {
        for n in [1, 31, 32, 33, 5000] {
            for temperature in [0.3, 1.0, 2.5] {
                let (logits, mut got, mut want) = (row(n), vec![f64::NAN; n], vec![f64::NAN; n]);
                softmax_weights(&logits, 0.0, temperature, &mut got);
                plain::softmax_weights(&logits, 0.0, temperature, &mut want);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let close = (got - want).abs() <= 4e-16 * want || *want < 2.3e-308 && *got < 2.3e-308;
                    assert!(close, "{got:e} and not {want:e} for {} at {temperature}", logits[i]);
                }
            }
        }
    }

    #[test]
    fn the_ends_are_exact() {
        let logits = [5.0, f32::NEG_INFINITY, -1e30, f32::NAN, 5.0 - 710.0];
        for temperature in [1.0, 1e-300] {
            let mut weights = [9.0; 5];
            softmax_weights(&logits, 5.0, temperature, &mut weights);
            assert_eq!((weights[0], weights[1], weights[2], weights[4]), (1.0, 0.0, 0.0, 0.0));
            assert!(weights[3].is_nan());
        }
    }
}
