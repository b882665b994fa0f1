//! A tile: what the matrix units eat. 16 x 16 pairs of bf16, 1 KiB, on a cache line.
//!
//! Pairs run along the depth of the product. The left operand has its rows as rows (`[16 rows][16 pairs]`), the right operand has its
//! columns as columns (`[16 pairs][16 columns]`): each is the other's transpose, pair by pair. Intel's TDPBF16PS takes two such tiles as they
//! are; VDPBF16PS takes a row of the right one and a pair of the left one at a time.

use core::mem::size_of;

/// Rows or columns of a tile.
pub(crate) const SIDE: usize = 16;
/// Elements of depth in a tile: two to a pair.
pub(crate) const DEPTH: usize = 2 * SIDE;

/// The first of a pair is the lower half of the word.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [u32; SIDE * SIDE]);

const _: () = assert!(size_of::<Tile>() == 1024);

impl Tile {
    pub(crate) const ZERO: Self = Self([0; SIDE * SIDE]);

    /// Swaps rows and columns.
    pub(crate) fn transpose(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if crate::simd::level() == crate::simd::Level::Avx512 {
            return x86::transpose(self);
        }
        for r in 0..SIDE {
            for c in r + 1..SIDE {
                self.0.swap(r * SIDE + c, c * SIDE + r);
            }
        }
    }
}

/// The bits of the nearest bf16, ties to even; a NaN stays one. What `half::bf16::from_f32` gives, without a branch.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// Two numbers as a pair.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> u32 {
    u32::from(bf16_bits(first)) | u32::from(bf16_bits(second)) << 16
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions that the caller has detected")]
mod x86 {
    use super::{SIDE, Tile};
    use core::arch::x86_64::*;

    /// To be called where [`crate::simd::level`] is AVX-512.
    pub(super) fn transpose(tile: &mut Tile) {
        // SAFETY: the level includes AVX-512F.
        unsafe { transpose_avx512(tile) }
    }

    /// Four rounds of interleaving rows: single words, pairs of words, quarters, halves.
    #[target_feature(enable = "avx512f")]
    fn transpose_avx512(tile: &mut Tile) {
        let at = tile.0.as_mut_ptr().cast::<__m512i>();
        // SAFETY: a tile is 16 aligned registers.
        let rows: [__m512i; SIDE] = core::array::from_fn(|r| unsafe { _mm512_load_si512(at.add(r)) });
        let mut t = rows;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut u = t;
        for i in 0..4 {
            for j in 0..2 {
                u[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
                u[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            }
        }
        // u[4 i + j] holds column 4 q + j of rows 4 i .. 4 i + 4 in its quarter q.
        for j in 0..4 {
            let low =
                [_mm512_shuffle_i32x4::<0x88>(u[j], u[4 + j]), _mm512_shuffle_i32x4::<0xdd>(u[j], u[4 + j])];
            let high = [
                _mm512_shuffle_i32x4::<0x88>(u[8 + j], u[12 + j]),
                _mm512_shuffle_i32x4::<0xdd>(u[8 + j], u[12 + j]),
            ];
            for odd in 0..2 {
                let columns = [
                    (4 * odd + j, _mm512_shuffle_i32x4::<0x88>(low[odd], high[odd])),
                    (8 + 4 * odd + j, _mm512_shuffle_i32x4::<0xdd>(low[odd], high[odd])),
                ];
                for (column, values) in columns {
                    // SAFETY: as above.
                    unsafe { _mm512_store_si512(at.add(column), values) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn transposing_swaps_rows_and_columns() {
        let mut tile = Tile(core::array::from_fn(|i| i as u32));
        tile.transpose();
        for (i, &word) in tile.0.iter().enumerate() {
            assert_eq!(word as usize, i % SIDE * SIDE + i / SIDE, "word {i}");
        }
    }

    #[test]
    fn bits_are_those_of_half() {
        let mut x = 0u32;
        for _ in 0..200_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(x);
            assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "{value} ({x:#x})");
        }
        for value in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0, -0.0, 1e-40]
        {
            assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "{value}");
        }
    }
}
