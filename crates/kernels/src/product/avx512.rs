//! VDPBF16PS: 8 rows by up to 48 columns in registers.

#![expect(
    unsafe_code,
    reason = "vector instructions behind a detected feature; unchecked reads in the innermost loop"
)]

use super::tile::{SIDE, Tile};
use super::unit::BLOCK;
use core::arch::x86_64::*;
use half::bf16;

/// Elements that are fetched ahead of their use: 4 KiB.
const AHEAD: usize = 2048;

/// Rows whose sums are in registers at a time: with three columns of 16, 24 of the 32.
const ROWS: usize = 8;

pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("f16c")
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

/// Adds to `sums[row][i]` the dot product of row `row` of x (rows of `n_in`) with `w[i]`. To be called where [`is_available`].
pub(crate) fn dots(x: &[bf16], w: [&[bf16]; 4], n_in: usize, sums: &mut [[f32; 4]]) {
    assert!(w.iter().all(|w| w.len() == n_in) && x.len() >= sums.len() * n_in, "rows of {n_in}");
    for (group, sums) in sums.chunks_mut(4).enumerate() {
        let x = x[group * 4 * n_in..].as_ptr();
        // SAFETY: the caller has found the features; all rows have `n_in` elements.
        unsafe {
            match sums.len() {
                1 => one_row(x, w, n_in, &mut sums[0]),
                2 => dots_of::<2>(x, w, n_in, sums),
                3 => dots_of::<3>(x, w, n_in, sums),
                _ => dots_of::<4>(x, w, n_in, sums),
            }
        }
    }
}

/// One row of x: the rows of weights one after the other, as they lie, so that the processor sees one stream. The sums are those of
/// [`dots_of`], bit for bit.
///
/// # Safety
/// `x` leads to `n_in` elements, each of `w` has as many.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn one_row(x: *const bf16, w: [&[bf16]; 4], n_in: usize, sums: &mut [f32; 4]) {
    let mut lanes = [_mm512_setzero_ps(); 4];
    for (w, lane) in w.iter().zip(&mut lanes) {
        for at in (0..n_in).step_by(32) {
            let left = n_in - at;
            let mask = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
            let here = w.as_ptr().wrapping_add(at);
            // Some rows ahead: the stream does not end with the row.
            _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(AHEAD).cast());
            // SAFETY: the masks leave out what is beyond the rows.
            let (column, one) = unsafe {
                (
                    _mm512_maskz_loadu_epi16(mask, here.cast()),
                    _mm512_maskz_loadu_epi16(mask, x.wrapping_add(at).cast()),
                )
            };
            // SAFETY: both are registers of 16 pairs of bf16.
            *lane = unsafe {
                _mm512_dpbf16_ps(
                    *lane,
                    core::mem::transmute::<__m512i, __m512bh>(one),
                    core::mem::transmute::<__m512i, __m512bh>(column),
                )
            };
        }
    }
    let four = sums_of_four(lanes);
    // SAFETY: four floats each.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(_mm_loadu_ps(sums.as_ptr()), four)) };
}

/// # Safety
/// `x` leads to `R` rows of `n_in`, each of `w` has `n_in` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn dots_of<const R: usize>(x: *const bf16, w: [&[bf16]; 4], n_in: usize, sums: &mut [[f32; 4]]) {
    let mut lanes = [[_mm512_setzero_ps(); 4]; R];
    for at in (0..n_in).step_by(32) {
        let left = n_in - at;
        let mask = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
        // SAFETY: the masks leave out what is beyond the rows.
        let load = |row: *const bf16| unsafe { _mm512_maskz_loadu_epi16(mask, row.add(at).cast()) };
        // The next four rows follow these in memory and are fetched in its order: of four streams at once the processor follows none.
        for line in 0..4 {
            _mm_prefetch::<_MM_HINT_T0>(w[0].as_ptr().wrapping_add(4 * n_in + 4 * at + 32 * line).cast());
        }
        let columns = w.map(|w| load(w.as_ptr()));
        for (row, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: one of R rows.
            let one = load(unsafe { x.add(row * n_in) });
            for (lane, column) in lanes.iter_mut().zip(columns) {
                // SAFETY: both are registers of 16 pairs of bf16.
                *lane = unsafe {
                    _mm512_dpbf16_ps(
                        *lane,
                        core::mem::transmute::<__m512i, __m512bh>(one),
                        core::mem::transmute::<__m512i, __m512bh>(column),
                    )
                };
            }
        }
    }
    for (lanes, sums) in lanes.iter().zip(sums) {
        let four = sums_of_four(*lanes);
        // SAFETY: four floats each.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(_mm_loadu_ps(sums.as_ptr()), four)) };
    }
}

/// The sums of the lanes of four registers: pairs of lanes first, then the four quarters.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn sums_of_four([a, b, c, d]: [__m512; 4]) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let all = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
    );
    let halves = _mm256_add_ps(
        _mm512_castps512_ps256(all),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(all))),
    );
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}
