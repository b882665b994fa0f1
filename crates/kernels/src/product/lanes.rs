//! Where no unit takes bf16: pairs are widened in registers and multiplied as `f32`.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls versions compiled for a detected instruction set")
)]

use super::tile::{SIDE, Tile};
use super::unit::BLOCK;

/// Rows whose sums are in registers at a time.
const ROWS: usize = 4;

/// A block of 16 x 16.
pub(super) fn multiply(left: &[Tile], right: &[Tile], out: &mut [f32; BLOCK]) {
    assert_eq!(left.len(), right.len(), "tiles of depth");
    for first in (0..SIDE).step_by(ROWS) {
        let Some(out) = out[first * SIDE..].first_chunk_mut::<{ ROWS * SIDE }>() else { continue };
        #[cfg(target_arch = "x86_64")]
        match crate::simd::level() {
            // SAFETY: the level was detected.
            crate::simd::Level::Avx512 => unsafe { rows_avx512(left, right, first, out) },
            // SAFETY: as above.
            crate::simd::Level::Avx2 => unsafe { rows_avx2(left, right, first, out) },
            crate::simd::Level::Portable => rows::<false>(left, right, first, out),
        }
        #[cfg(not(target_arch = "x86_64"))]
        rows::<{ cfg!(target_arch = "aarch64") }>(left, right, first, out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn rows_avx512(left: &[Tile], right: &[Tile], first: usize, out: &mut [f32; ROWS * SIDE]) {
    rows::<true>(left, right, first, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2(left: &[Tile], right: &[Tile], first: usize, out: &mut [f32; ROWS * SIDE]) {
    rows::<true>(left, right, first, out);
}

/// `FUSED` where the machine has a fused multiply-add; elsewhere it would be a call.
#[inline(always)]
fn rows<const FUSED: bool>(left: &[Tile], right: &[Tile], first: usize, out: &mut [f32; ROWS * SIDE]) {
    let mut sums = [[0.0f32; SIDE]; ROWS];
    for (left, right) in left.iter().zip(right) {
        for (depth, columns) in right.0.as_chunks::<SIDE>().0.iter().enumerate() {
            for (row, sums) in sums.iter_mut().enumerate() {
                let one = left.0[(first + row) * SIDE + depth];
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = add::<FUSED>(low(one), low(*column), *sum);
                    *sum = add::<FUSED>(high(one), high(*column), *sum);
                }
            }
        }
    }
    out.copy_from_slice(sums.as_flattened());
}

#[inline(always)]
fn add<const FUSED: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { sum + a * b }
}

/// The first of a pair.
#[inline(always)]
fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The second.
#[inline(always)]
fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}
