//! VDPBF16PS: 8 rows by up to 48 columns in registers.

#![expect(
    unsafe_code,
    reason = "vector instructions behind a detected feature; unchecked reads in the innermost loop"
)]

use super::tile::{SIDE, Tile};
use super::unit::BLOCK;
use core::arch::x86_64::*;

/// Rows whose sums are in registers at a time: with three columns of 16, 24 of the 32.
const ROWS: usize = 8;

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// A block of 16 rows and `16 N` columns. To be called where [`is_available`].
pub(super) fn multiply<const N: usize>(left: &[Tile], right: [&[Tile]; N], out: &mut [f32; BLOCK]) {
    assert!(right.iter().all(|tiles| tiles.len() == left.len()) && SIDE * SIDE * N <= BLOCK);
    for half in 0..SIDE / ROWS {
        // SAFETY: the unit was chosen because `is_available`; all sides have as many tiles; the block holds 16 rows of 16 N.
        unsafe { rows(left, right, half * ROWS, out.as_mut_ptr().add(half * ROWS * SIDE * N)) };
    }
}

/// Rows `first..first + ROWS` of the block, to rows of `16 N` at `out`.
///
/// # Safety
/// All sides have the same number of tiles, `first + ROWS <= SIDE`, and `out` holds `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const N: usize>(left: &[Tile], right: [&[Tile]; N], first: usize, out: *mut f32) {
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    let left_at = left.as_ptr().cast::<i32>().wrapping_add(first * SIDE);
    let right_at = right.map(|tiles| tiles.as_ptr().cast::<i32>());
    for tile in 0..left.len() {
        let at = tile * SIDE * SIDE;
        for depth in 0..SIDE {
            // SAFETY: within tile `tile` of the right side: row `depth` of 16 words.
            let columns = right_at.map(|r| unsafe { _mm512_load_si512(r.add(at + depth * SIDE).cast()) });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: within tile `tile` of the left side: word `depth` of row `first + row`.
                let one = _mm512_set1_epi32(unsafe { *left_at.add(at + row * SIDE + depth) });
                for (sum, column) in sums.iter_mut().zip(columns) {
                    // SAFETY: both are registers of 16 pairs of bf16.
                    *sum = unsafe {
                        _mm512_dpbf16_ps(
                            *sum,
                            core::mem::transmute::<__m512i, __m512bh>(one),
                            core::mem::transmute::<__m512i, __m512bh>(column),
                        )
                    };
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (column, sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_storeu_ps(out.add(row * SIDE * N + column * SIDE), *sum) };
        }
    }
}
