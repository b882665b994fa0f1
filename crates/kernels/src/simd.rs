//! Compile one body for several instruction sets and choose at run time; the exponential and what is built on it.
//!
//! The bodies are plain loops over fixed-width arrays that the compiler turns into vector code. None of them uses a fused
//! multiply-add, so the elementwise kernels give the same bits whichever version runs.

/// Instruction sets that have a version of their own.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Portable,
    Avx2,
    Avx512,
}

/// The best version that this processor can run. Detection is cached by the standard library.
#[cfg(target_arch = "x86_64")]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = tests::LEVEL.get() {
        return level;
    }
    detected()
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Level {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

/// Defines a function whose body is compiled for AVX-512, AVX2 and the target's baseline, and chosen at run time.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<const $c:ident: usize>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls a version compiled for a detected instruction set"))]
        $vis fn $name $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    portable $(::<$c>)? ($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    portable $(::<$c>)? ($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` found every feature that the version is compiled with.
                    $crate::simd::Level::Avx512 => unsafe { avx512 $(::<$c>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => unsafe { avx2 $(::<$c>)? ($($arg),*) },
                    $crate::simd::Level::Portable => portable $(::<$c>)? ($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                portable $(::<$c>)? ($($arg),*)
            }
        }
    };
}

/// Lanes of the fixed-width loops: one AVX-512 register of `f32`.
pub(crate) const LANES: usize = 16;

/// Below this `exp` is subnormal and is flushed to zero.
const EXP_LOWEST: f32 = -87.336_54;
/// Above this `exp` overflows to infinity.
const EXP_HIGHEST: f32 = 88.722_84;
/// Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
const ROUND: f32 = 12_582_912.0;

/// e^x: argument reduction by multiples of ln 2 (split in two so that the product is exact), then the Taylor series to the seventh
/// power on [-ln 2 / 2, ln 2 / 2], whose remainder is 5e-9.
///
/// Relative error below 2.4e-7 (2 ulp) on all of `f32`, measured against `f64`; a subnormal result is 0; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0f32] {
        p = p * r + c;
    }
    // 2^n as two factors, so that n = 128 (just below overflow) needs no special case.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * scale(half) * scale(n.wrapping_sub(half));
    let y = if x > EXP_HIGHEST { f32::INFINITY } else { y };
    if x < EXP_LOWEST { 0.0 } else { y }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh: a continued fraction (the [5/4] Padé approximant) near zero, 1 - 2 / (e^2x + 1) elsewhere. Relative error below 5e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let near = x * (945.0 + z * (105.0 + z)) / (945.0 + z * (420.0 + z * 15.0));
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

multiversion! {
    /// The largest element; negative infinity when empty. A NaN is skipped.
    pub(crate) fn max(x: &[f32]) -> f32 {
        max_of(x)
    }
}

/// The body of [`max`], to be compiled into other kernels.
#[inline(always)]
pub(crate) fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 2 * LANES];
    let (head, tail) = x.as_chunks::<{ 2 * LANES }>();
    for chunk in head {
        for (m, &v) in lanes.iter_mut().zip(chunk) {
            *m = if v > *m { v } else { *m };
        }
    }
    let best = max_plain(&lanes);
    let rest = max_plain(tail);
    if rest > best { rest } else { best }
}

/// Out of line for the same reason as [`sum_lanes`].
#[inline(never)]
fn max_plain(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |best, &v| if v > best { v } else { best })
}

/// Adds the lanes in a fixed tree.
///
/// Out of line on purpose: next to a loop, the tree makes the compiler vectorise the loop in pairs, to suit the tree.
#[inline(never)]
pub(crate) fn sum_lanes<const W: usize>(mut lanes: [f32; W]) -> f32 {
    let mut width = W;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    lanes[0]
}

/// The dot product, in 32 lanes and then a fixed tree.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 2 * LANES];
    let (a_head, a_tail) = a.as_chunks::<{ 2 * LANES }>();
    let (b_head, b_tail) = b.as_chunks::<{ 2 * LANES }>();
    for (a, b) in a_head.iter().zip(b_head) {
        for l in 0..2 * LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    let mut sum = sum_lanes(lanes);
    for (a, b) in a_tail.iter().zip(b_tail) {
        sum += a * b;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        /// The version that this thread's tests ask for.
        #[cfg(target_arch = "x86_64")]
        pub(super) static LEVEL: core::cell::Cell<Option<Level>> = const { core::cell::Cell::new(None) };
    }

    /// Sizes are small enough to stay on this thread, which is the one that asked for a version.
    #[cfg(target_arch = "x86_64")]
    fn results_at(level: Level) -> Vec<u32> {
        use crate::activation::{self, Gate};
        use crate::testing::{poisoned, random};
        use crate::{attention, cross_entropy, norm, rope};
        LEVEL.set(Some(level));
        let (x, up, w) = (random(9 * 70, 1), random(9 * 70, 2), random(70, 3));
        let mut all = Vec::new();
        let (mut y, mut inv, mut dx, mut dw) = (poisoned(630), poisoned(9), poisoned(630), poisoned(70));
        norm::rms_norm_forward(&x, &w, 1.0, 1e-6, &mut y, 9, 70, &mut inv);
        norm::rms_norm_backward(&up, &x, &w, 1.0, &inv, &mut dx, false, 9, 70);
        norm::rms_norm_backward_weight(&up, &x, &inv, &mut dw, 9, 70);
        all.extend([y.clone(), inv, dx.clone(), dw].concat());
        activation::gated_forward(Gate::GeluTanh, &x, &up, &mut y);
        let mut dup = poisoned(630);
        activation::gated_backward(Gate::Silu, &up, &x, &w.repeat(9), &mut dx, &mut dup);
        all.extend([y.clone(), dx, dup].concat());
        let mut turned = vec![f32::NAN; y.len()];
        rope::rope(&y, &mut turned, &w[..63], &up[..63], 9, 5, 14, 14, false);
        let mut losses = poisoned(9);
        cross_entropy::cross_entropy_forward_backward(&mut turned, &[3; 9], &mut losses, 70);
        all.extend([turned, losses].concat());
        let shape = attention::AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 7,
            scale: 1.0,
            window: None,
            soft_cap: Some(2.0),
        };
        let (mut out, mut lse) = (poisoned(63), poisoned(9));
        let segments = [attention::Segment { q_start: 0, q_len: 9 }];
        attention::attention_forward(&x[..63], &up[..63], &x[63..126], &segments, &shape, &mut out, &mut lse);
        all.extend([out, lse].concat());
        let mut weights = [f64::NAN; 630];
        crate::softmax_weights::softmax_weights(&x, 1.0, 0.7, &mut weights);
        all.extend(weights.map(|w| w as f32));
        all.extend(weights.map(|w| (w - f64::from(w as f32)) as f32));
        LEVEL.set(None);
        all.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_version_gives_the_same_bits() {
        let portable = results_at(Level::Portable);
        assert!(portable.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        for level in [Level::Avx2, Level::Avx512].into_iter().filter(|&level| level <= detected()) {
            assert!(results_at(level) == portable, "{level:?} against the portable version");
        }
    }

    fn sweep() -> impl Iterator<Item = f32> {
        (-9000..=9000).map(|i| i as f32 * 0.009_871).chain((0..60).map(|i| 2f32.powi(-i)))
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let mut worst = 0f64;
        for x in sweep() {
            let want = f64::from(x).exp();
            if want > 1.2e-38 && want < 3.4e38 {
                worst = worst.max((f64::from(exp(x)) - want).abs() / want);
            }
        }
        assert!(worst < 2.4e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_keeps_the_special_values() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn tanh_and_sigmoid_follow_f64() {
        for x in sweep() {
            let want = f64::from(x).tanh();
            assert!(
                (f64::from(tanh(x)) - want).abs() <= 5e-7 * want.abs(),
                "tanh({x}) = {} and not {want}",
                tanh(x)
            );
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - want).abs() <= 4e-7 * want + 1e-38, "sigmoid({x})");
        }
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
    }

    #[test]
    fn max_finds_the_largest_wherever_it_stands() {
        for n in [1usize, 31, 32, 33, 100] {
            for at in 0..n {
                let mut x = vec![-2.0f32; n];
                x[at] = 3.0;
                assert_eq!(max(&x), 3.0);
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
