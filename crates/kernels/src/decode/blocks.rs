//! The block types of GGML, as `quant` documents them.

use super::{RUN, Runs};
use core::arch::x86_64::*;
use core::marker::PhantomData;

/// A block type: `LEN` elements in `BYTES`.
///
/// # Safety
/// As that of [`Runs`].
pub(super) trait Block<const LEN: usize, const BYTES: usize>: Copy {
    /// The elements.
    ///
    /// # Safety
    /// As above.
    unsafe fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]);

    /// Calls `each` for 32 elements at a time, rounded to bf16.
    ///
    /// # Safety
    /// As above.
    unsafe fn rounded(block: &[u8; BYTES], each: impl FnMut(usize, __m512i));
}

/// A matrix in blocks of one type.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a, const LEN: usize, const BYTES: usize, B> {
    blocks: &'a [[u8; BYTES]],
    block: PhantomData<B>,
}

impl<'a, const LEN: usize, const BYTES: usize, B> Blocks<'a, LEN, BYTES, B> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { blocks: bytes.as_chunks().0, block: PhantomData }
    }
}

impl<const LEN: usize, const BYTES: usize, B: Block<LEN, BYTES>> Runs for Blocks<'_, LEN, BYTES, B> {
    fn has(self, start: usize, len: usize) -> bool {
        start.is_multiple_of(LEN) && len.is_multiple_of(LEN) && (start + len) / LEN <= self.blocks.len()
    }

    #[inline(always)]
    unsafe fn decode(self, start: usize, out: &mut [f32]) {
        for (block, out) in self.blocks[start / LEN..].iter().zip(out.as_chunks_mut::<LEN>().0) {
            // SAFETY: by the caller's promise.
            unsafe { B::decode(block, out) };
        }
    }

    #[inline(always)]
    unsafe fn rounded(self, start: usize, runs: usize, mut each: impl FnMut(usize, __m512i)) {
        let per_block = LEN / RUN;
        let blocks = &self.blocks[start / LEN..][..runs / per_block];
        for (i, block) in blocks.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { B::rounded(block, |run, values| each(i * per_block + run, values)) };
        }
    }
}

/// The half-precision number at `at`.
///
/// # Safety
/// The processor has F16C.
#[inline(always)]
unsafe fn scale_at(block: &[u8], at: usize) -> f32 {
    let half = u16::from_le_bytes([block[at], block[at + 1]]);
    // SAFETY: by the caller's promise.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(half)))) }
}

/// 16 bytes from `at` on.
#[inline(always)]
fn bytes_at(block: &[u8], at: usize) -> __m128i {
    let sixteen = &block[at..at + 16];
    // SAFETY: 16 bytes; SSE2 is in every x86-64.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}

/// 32 bytes from `at` on.
///
/// # Safety
/// The processor has AVX.
#[inline(always)]
unsafe fn wide_bytes_at(block: &[u8], at: usize) -> __m256i {
    let bytes = &block[at..at + 32];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// `scale (code - offset)` of 16 codes.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn scaled(codes: __m512i, offset: i32, scale: f32) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        let codes = _mm512_sub_epi32(codes, _mm512_set1_epi32(offset));
        _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(codes))
    }
}

/// The numbers `first..first + 16`.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn counted(first: f32) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        let steps = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        _mm512_add_ps(_mm512_set1_ps(first), steps)
    }
}

/// 16 values as a table for codes of 4 bits: it stands there twice, so the bit above a code does not matter.
///
/// # Safety
/// The processor has AVX512_BF16.
#[inline(always)]
pub(super) unsafe fn table_of_16(values: __m512) -> __m512i {
    // SAFETY: by the caller's promise.
    unsafe { table_of_32(values, values) }
}

/// 32 values, rounded to bf16.
///
/// # Safety
/// The processor has AVX512_BF16.
#[inline(always)]
unsafe fn table_of_32(low: __m512, high: __m512) -> __m512i {
    // SAFETY: by the caller's promise.
    unsafe { core::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The low and the high nibbles of 16 bytes.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn nibbles(bytes: __m128i) -> [__m512i; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let mask = _mm_set1_epi8(15);
        let (low, high) = (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        [_mm512_cvtepu8_epi32(low), _mm512_cvtepu8_epi32(high)]
    }
}

/// The low nibbles of 16 bytes, then the high ones, as words whose bits above the nibble mean nothing.
///
/// # Safety
/// The processor has AVX-512BW.
#[inline(always)]
unsafe fn nibble_words(bytes: __m128i) -> __m512i {
    // SAFETY: by the caller's promise.
    unsafe { _mm512_cvtepu8_epi16(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes)) }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0;

impl Block<32, 34> for Q8_0 {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
        // SAFETY: by the caller's promise; 16 floats are written to each half.
        unsafe {
            for (half, out) in q8_0(block).into_iter().zip(out.as_chunks_mut::<16>().0) {
                _mm512_storeu_ps(out.as_mut_ptr(), half);
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 34], mut each: impl FnMut(usize, __m512i)) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [low, high] = q8_0(block);
            each(0, table_of_32(low, high));
        }
    }
}

/// # Safety
/// The processor has AVX-512F and F16C.
#[inline(always)]
unsafe fn q8_0(block: &[u8; 34]) -> [__m512; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let (d, low, high) = (scale_at(block, 0), bytes_at(block, 2), bytes_at(block, 18));
        [scaled(_mm512_cvtepi8_epi32(low), 0, d), scaled(_mm512_cvtepi8_epi32(high), 0, d)]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4_0;

impl Block<32, 18> for Q4_0 {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        // SAFETY: by the caller's promise; 16 floats are written to each half.
        unsafe {
            let d = scale_at(block, 0);
            for (codes, out) in nibbles(bytes_at(block, 2)).into_iter().zip(out.as_chunks_mut::<16>().0) {
                _mm512_storeu_ps(out.as_mut_ptr(), scaled(codes, 8, d));
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 18], mut each: impl FnMut(usize, __m512i)) {
        // SAFETY: by the caller's promise.
        unsafe {
            let table = table_of_16(_mm512_mul_ps(_mm512_set1_ps(scale_at(block, 0)), counted(-8.0)));
            each(0, _mm512_permutexvar_epi16(nibble_words(bytes_at(block, 2)), table));
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5_0;

impl Block<32, 22> for Q5_0 {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
        let fifth = [u16::from_le_bytes([block[2], block[3]]), u16::from_le_bytes([block[4], block[5]])];
        // SAFETY: by the caller's promise; 16 floats are written to each half.
        unsafe {
            let d = scale_at(block, 0);
            let out = out.as_chunks_mut::<16>().0;
            for ((codes, fifth), out) in nibbles(bytes_at(block, 6)).into_iter().zip(fifth).zip(out) {
                let codes = _mm512_mask_add_epi32(codes, fifth, codes, _mm512_set1_epi32(16));
                _mm512_storeu_ps(out.as_mut_ptr(), scaled(codes, 16, d));
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 22], mut each: impl FnMut(usize, __m512i)) {
        let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        // SAFETY: by the caller's promise.
        unsafe {
            let d = _mm512_set1_ps(scale_at(block, 0));
            let table = table_of_32(_mm512_mul_ps(d, counted(-16.0)), _mm512_mul_ps(d, counted(0.0)));
            each(0, with_fifth_bit(nibble_words(bytes_at(block, 6)), fifth, table));
        }
    }
}

/// What 32 codes stand for, given as words with 4 bits that mean something, and the fifth ones.
///
/// # Safety
/// The processor has AVX-512BW.
#[inline(always)]
unsafe fn with_fifth_bit(words: __m512i, fifth: u32, table: __m512i) -> __m512i {
    // SAFETY: by the caller's promise.
    unsafe {
        let four = _mm512_and_si512(words, _mm512_set1_epi16(15));
        let five = _mm512_mask_add_epi16(four, fifth, four, _mm512_set1_epi16(16));
        _mm512_permutexvar_epi16(five, table)
    }
}

/// Eight scales and eight minima of Q4_K and Q5_K, times those of the block: `f16` at 0 and 2, six bits each from 4 on.
///
/// # Safety
/// The processor has F16C.
#[inline(always)]
unsafe fn scales_and_mins(block: &[u8]) -> [(f32, f32); 8] {
    // SAFETY: by the caller's promise.
    let (d, dmin) = unsafe { (scale_at(block, 0), scale_at(block, 2)) };
    let packed = &block[4..16];
    let mut scales = [(0.0, 0.0); 8];
    for g in 0..4 {
        let (low, high, both) = (packed[g], packed[g + 4], packed[g + 8]);
        scales[g] = (d * f32::from(low & 63), dmin * f32::from(high & 63));
        let (scale, min) = (both & 15 | low >> 6 << 4, both >> 4 | high >> 6 << 4);
        scales[g + 4] = (d * f32::from(scale), dmin * f32::from(min));
    }
    scales
}

/// `scale value - min`, rounded twice as `quant` does.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn scaled_over(values: __m512, (scale, min): (f32, f32)) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe { _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale), values), _mm512_set1_ps(min)) }
}

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Block<256, 144> for Q4K {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
        // SAFETY: by the caller's promise; 16 floats are written at a time.
        unsafe {
            let scales = scales_and_mins(block);
            for g in 0..4 {
                for half in 0..2 {
                    let both = nibbles(bytes_at(block, 16 + 32 * g + 16 * half));
                    for (high, codes) in both.into_iter().enumerate() {
                        let values = scaled_over(_mm512_cvtepi32_ps(codes), scales[2 * g + high]);
                        let out = &mut out[64 * g + 32 * high + 16 * half..][..16];
                        _mm512_storeu_ps(out.as_mut_ptr(), values);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 144], mut each: impl FnMut(usize, __m512i)) {
        // SAFETY: by the caller's promise.
        unsafe {
            let scales = scales_and_mins(block);
            let (mask, upper) = (_mm512_set1_epi16(15), _mm512_set1_epi16(16));
            for g in 0..4 {
                // One table for both scales of 32 bytes: the low nibbles look into its first half, the high ones into its second.
                let bytes = wide_bytes_at(block, 16 + 32 * g);
                let table = table_of_32(
                    scaled_over(counted(0.0), scales[2 * g]),
                    scaled_over(counted(0.0), scales[2 * g + 1]),
                );
                let low = _mm512_and_si512(_mm512_cvtepu8_epi16(bytes), mask);
                let high = _mm512_or_si512(_mm512_cvtepu8_epi16(_mm256_srli_epi16::<4>(bytes)), upper);
                each(2 * g, _mm512_permutexvar_epi16(low, table));
                each(2 * g + 1, _mm512_permutexvar_epi16(high, table));
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5K;

impl Block<256, 176> for Q5K {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
        // SAFETY: by the caller's promise; 16 floats are written at a time.
        unsafe {
            let scales = scales_and_mins(block);
            for g in 0..4 {
                for half in 0..2 {
                    let both = nibbles(bytes_at(block, 48 + 32 * g + 16 * half));
                    let bits = bytes_at(block, 16 + 16 * half);
                    for (high, codes) in both.into_iter().enumerate() {
                        let fifth = _mm_test_epi8_mask(bits, _mm_set1_epi8(1i8 << (2 * g + high)));
                        let codes = _mm512_mask_add_epi32(codes, fifth, codes, _mm512_set1_epi32(16));
                        let values = scaled_over(_mm512_cvtepi32_ps(codes), scales[2 * g + high]);
                        let out = &mut out[64 * g + 32 * high + 16 * half..][..16];
                        _mm512_storeu_ps(out.as_mut_ptr(), values);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 176], mut each: impl FnMut(usize, __m512i)) {
        // SAFETY: by the caller's promise.
        unsafe {
            let scales = scales_and_mins(block);
            let bits = wide_bytes_at(block, 16);
            for g in 0..4 {
                let bytes = wide_bytes_at(block, 48 + 32 * g);
                for (high, bytes) in [bytes, _mm256_srli_epi16::<4>(bytes)].into_iter().enumerate() {
                    let scale = scales[2 * g + high];
                    let table =
                        table_of_32(scaled_over(counted(0.0), scale), scaled_over(counted(16.0), scale));
                    let fifth = _mm256_test_epi8_mask(bits, _mm256_set1_epi8(1i8 << (2 * g + high)));
                    each(2 * g + high, with_fifth_bit(_mm512_cvtepu8_epi16(bytes), fifth, table));
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q6K;

impl Block<256, 210> for Q6K {
    #[inline(always)]
    unsafe fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
        for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // SAFETY: by the caller's promise; 16 floats are written to each half.
            unsafe {
                for (half, out) in q6_k(block, run).into_iter().zip(out.as_chunks_mut::<16>().0) {
                    _mm512_storeu_ps(out.as_mut_ptr(), half);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rounded(block: &[u8; 210], mut each: impl FnMut(usize, __m512i)) {
        for run in 0..8 {
            // SAFETY: by the caller's promise.
            unsafe {
                let [low, high] = q6_k(block, run);
                each(run, table_of_32(low, high));
            }
        }
    }
}

/// 32 elements of a block, `run` of 8.
///
/// # Safety
/// The processor has AVX-512F and F16C.
#[inline(always)]
unsafe fn q6_k(block: &[u8; 210], run: usize) -> [__m512; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let d = scale_at(block, 208);
        [q6_k_half(block, d, run, 0), q6_k_half(block, d, run, 1)]
    }
}

/// Half of them. Half a block has 64 bytes of nibbles: 64 elements in the low ones, then 64 in the high ones.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn q6_k_half(block: &[u8; 210], d: f32, run: usize, half: usize) -> __m512 {
    let (low, nibble) = ((run / 4 * 2 + run % 2) * 32, run / 2 % 2);
    let (high, pair) = (128 + run / 4 * 32, (run % 4 * 2) as i32);
    let scale = d * f32::from(block[192 + 2 * run + half].cast_signed());
    // SAFETY: by the caller's promise.
    unsafe {
        let four = nibbles(bytes_at(block, low + 16 * half))[nibble];
        let bits = _mm512_cvtepu8_epi32(bytes_at(block, high + 16 * half));
        let two = _mm512_srlv_epi32(bits, _mm512_set1_epi32(pair));
        let two = _mm512_slli_epi32::<4>(_mm512_and_si512(two, _mm512_set1_epi32(3)));
        scaled(_mm512_or_si512(four, two), 32, scale)
    }
}
