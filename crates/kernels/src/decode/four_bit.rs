//! NF4 and FP4: 16 values, a scale a block, the first of two elements in the high nibble.

use super::blocks::table_of_16;
use super::{RUN, Runs};
use core::arch::x86_64::*;
use taper_quant::FourBit;

/// A matrix in 4 bits.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    matrix: &'a FourBit,
    packed: &'a [u8],
}

impl<'a> Source<'a> {
    pub(super) fn new(matrix: &'a FourBit) -> Self {
        Self { matrix, packed: matrix.packed() }
    }

    /// Calls `each` for 32 elements at a time: their 16 bytes, and the 16 values times the scale of their block.
    ///
    /// # Safety
    /// The processor has AVX-512F.
    #[inline(always)]
    unsafe fn runs(self, start: usize, runs: usize, mut each: impl FnMut(usize, &[u8; 16], __m512)) {
        let shift = self.matrix.block_size().trailing_zeros();
        let bytes = &self.packed[start / 2..].as_chunks::<16>().0[..runs];
        // SAFETY: 16 floats, and by the caller's promise.
        unsafe {
            let code = _mm512_loadu_ps(self.matrix.code().as_ptr());
            let mut block = usize::MAX;
            let mut values = code;
            for (run, bytes) in bytes.iter().enumerate() {
                let here = (start + RUN * run) >> shift;
                if here != block {
                    block = here;
                    values = _mm512_mul_ps(code, _mm512_set1_ps(self.matrix.absmax().get(block)));
                }
                each(run, bytes, values);
            }
        }
    }
}

impl Runs for Source<'_> {
    fn has(self, start: usize, len: usize) -> bool {
        let whole = start.is_multiple_of(RUN) && len.is_multiple_of(RUN);
        self.matrix.block_size() >= RUN && whole && (start + len) / 2 <= self.packed.len()
    }

    #[inline(always)]
    unsafe fn decode(self, start: usize, out: &mut [f32]) {
        let out = out.as_chunks_mut::<RUN>().0;
        // SAFETY: by the caller's promise; 16 floats are written to each half.
        unsafe {
            self.runs(start, out.len(), |run, bytes, values| {
                let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
                let mask = _mm_set1_epi8(15);
                let (low, high) =
                    (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
                let pairs = [_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low)];
                for (codes, out) in pairs.into_iter().zip(out[run].as_chunks_mut::<16>().0) {
                    let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), values);
                    _mm512_storeu_ps(out.as_mut_ptr(), values);
                }
            });
        }
    }

    #[inline(always)]
    unsafe fn rounded(self, start: usize, runs: usize, mut each: impl FnMut(usize, __m512i)) {
        // SAFETY: by the caller's promise.
        unsafe {
            self.runs(start, runs, |run, bytes, values| {
                // A byte a double word: its high nibble becomes the first word, its low one the second.
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
                let words = _mm512_or_si512(_mm512_srli_epi32::<4>(bytes), _mm512_slli_epi32::<16>(bytes));
                each(run, _mm512_permutexvar_epi16(words, table_of_16(values)));
            });
        }
    }
}
