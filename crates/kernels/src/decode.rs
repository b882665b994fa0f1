//! Decoding blocks with AVX-512 (and its extension for bf16, which the decoders share): what `quant`'s own decoders give, bit for bit, at the pace of memory.
//!
//! The compiler makes poor vectors of codes that are narrower than a byte or scaled by 32s, so the types that are decoded most have a version
//! of their own here: codes are widened to 16 lanes of `i32`, turned into `f32` and scaled; those of NF4 and FP4 are looked up in a register.

#![expect(unsafe_code, reason = "vector instructions behind a detected level")]

use core::arch::x86_64::*;
use half::{bf16, f16};
use taper_quant::{FourBit, GgmlType, Parts, QuantizedTensor};

/// What decoded elements are written as.
pub(crate) trait Decoded: Copy {
    /// Writes 16 elements to `out[at..]`.
    ///
    /// # Safety
    /// The level is AVX-512, with AVX512_BF16 where elements are rounded.
    unsafe fn put(values: __m512, out: &mut [Self], at: usize);
}

impl Decoded for f32 {
    #[inline(always)]
    unsafe fn put(values: __m512, out: &mut [Self], at: usize) {
        let sixteen = &mut out[at..at + 16];
        // SAFETY: 16 floats, and by the caller's promise.
        unsafe { _mm512_storeu_ps(sixteen.as_mut_ptr(), values) };
    }
}

/// Rounded to the nearest, ties to even; a subnormal number becomes 0.
impl Decoded for bf16 {
    #[inline(always)]
    unsafe fn put(values: __m512, out: &mut [Self], at: usize) {
        let sixteen = &mut out[at..at + 16];
        // SAFETY: 16 numbers of 2 bytes, and by the caller's promise.
        unsafe {
            let rounded = core::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
            _mm256_storeu_si256(sixteen.as_mut_ptr().cast(), rounded);
        }
    }
}

/// Elements `start..start + out.len()`, where there is a version for the type, the processor and these bounds; else nothing is done.
pub(crate) fn decode<T: Decoded>(w: &QuantizedTensor, start: usize, out: &mut [T]) -> bool {
    if crate::simd::level() != crate::simd::Level::Avx512 || !crate::product::has_dots_bf16() {
        return false;
    }
    match w.parts() {
        // SAFETY: the level includes all features that the decoders are compiled with.
        Parts::Ggml(GgmlType::Q8_0, bytes) => unsafe { blocks::<T, 32, 34, Q8_0>(bytes, start, out) },
        // SAFETY: as above.
        Parts::Ggml(GgmlType::Q4_0, bytes) => unsafe { blocks::<T, 32, 18, Q4_0>(bytes, start, out) },
        // SAFETY: as above.
        Parts::Ggml(GgmlType::Q5_0, bytes) => unsafe { blocks::<T, 32, 22, Q5_0>(bytes, start, out) },
        // SAFETY: as above.
        Parts::Ggml(GgmlType::Q4K, bytes) => unsafe { blocks::<T, 256, 144, Q4K>(bytes, start, out) },
        // SAFETY: as above.
        Parts::Ggml(GgmlType::Q6K, bytes) => unsafe { blocks::<T, 256, 210, Q6K>(bytes, start, out) },
        // SAFETY: as above.
        Parts::FourBit(matrix) => unsafe { four_bit(matrix, start, out) },
        _ => false,
    }
}

/// A block type. (A trait, since a function that is passed as a value is not inlined, and then without the caller's instruction set.)
trait Block<const LEN: usize, const BYTES: usize> {
    /// # Safety
    /// As [`Decoded::put`].
    unsafe fn decode<T: Decoded>(block: &[u8; BYTES], out: &mut [T; LEN]);
}

/// Whole blocks, one after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn blocks<T: Decoded, const LEN: usize, const BYTES: usize, B: Block<LEN, BYTES>>(
    bytes: &[u8],
    start: usize,
    out: &mut [T],
) -> bool {
    let (out, rest) = out.as_chunks_mut::<LEN>();
    if !start.is_multiple_of(LEN) || !rest.is_empty() {
        return false;
    }
    let blocks = &bytes.as_chunks::<BYTES>().0[start / LEN..];
    assert!(blocks.len() >= out.len(), "{} blocks of {}", out.len(), blocks.len());
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: this function is compiled for AVX-512, and `decode` has found the rest.
        unsafe { B::decode(block, out) };
    }
    true
}

/// The half-precision number at `at`.
#[inline(always)]
fn scale_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes from `at` on.
#[inline(always)]
fn bytes_at(block: &[u8], at: usize) -> __m128i {
    let sixteen = &block[at..at + 16];
    // SAFETY: 16 bytes; SSE2 is in every x86-64.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
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

struct Q8_0;

impl Block<32, 34> for Q8_0 {
    #[inline(always)]
    unsafe fn decode<T: Decoded>(block: &[u8; 34], out: &mut [T; 32]) {
        let d = scale_at(block, 0);
        for half in 0..2 {
            // SAFETY: by the caller's promise.
            unsafe {
                let codes = _mm512_cvtepi8_epi32(bytes_at(block, 2 + 16 * half));
                T::put(scaled(codes, 0, d), out, 16 * half);
            }
        }
    }
}

struct Q4_0;

impl Block<32, 18> for Q4_0 {
    #[inline(always)]
    unsafe fn decode<T: Decoded>(block: &[u8; 18], out: &mut [T; 32]) {
        let d = scale_at(block, 0);
        // SAFETY: by the caller's promise.
        unsafe {
            let [low, high] = nibbles(bytes_at(block, 2));
            T::put(scaled(low, 8, d), out, 0);
            T::put(scaled(high, 8, d), out, 16);
        }
    }
}

struct Q5_0;

impl Block<32, 22> for Q5_0 {
    #[inline(always)]
    unsafe fn decode<T: Decoded>(block: &[u8; 22], out: &mut [T; 32]) {
        let d = scale_at(block, 0);
        let fifth = [u16::from_le_bytes([block[2], block[3]]), u16::from_le_bytes([block[4], block[5]])];
        // SAFETY: by the caller's promise.
        unsafe {
            for (half, codes) in nibbles(bytes_at(block, 6)).into_iter().enumerate() {
                let codes = _mm512_mask_add_epi32(codes, fifth[half], codes, _mm512_set1_epi32(16));
                T::put(scaled(codes, 16, d), out, 16 * half);
            }
        }
    }
}

struct Q4K;

impl Block<256, 144> for Q4K {
    #[inline(always)]
    unsafe fn decode<T: Decoded>(block: &[u8; 144], out: &mut [T; 256]) {
        let (d, dmin) = (scale_at(block, 0), scale_at(block, 2));
        let (scales, mins) = scales_and_mins(&block[4..16]);
        for g in 0..4 {
            for half in 0..2 {
                // SAFETY: as above.
                unsafe {
                    let both = nibbles(bytes_at(block, 16 + 32 * g + 16 * half));
                    for (high, codes) in both.into_iter().enumerate() {
                        let (scale, min) = (d * scales[2 * g + high], dmin * mins[2 * g + high]);
                        let values = _mm512_sub_ps(scaled(codes, 0, scale), _mm512_set1_ps(min));
                        T::put(values, out, 64 * g + 32 * high + 16 * half);
                    }
                }
            }
        }
    }
}

/// Eight scales and eight minima of six bits each.
#[inline(always)]
fn scales_and_mins(packed: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    for g in 0..4 {
        scales[g] = f32::from(packed[g] & 63);
        mins[g] = f32::from(packed[g + 4] & 63);
        scales[g + 4] = f32::from(packed[g + 8] & 15 | packed[g] >> 6 << 4);
        mins[g + 4] = f32::from(packed[g + 8] >> 4 | packed[g + 4] >> 6 << 4);
    }
    (scales, mins)
}

struct Q6K;

impl Block<256, 210> for Q6K {
    #[inline(always)]
    unsafe fn decode<T: Decoded>(block: &[u8; 210], out: &mut [T; 256]) {
        let d = scale_at(block, 208);
        for g in 0..8usize {
            // Half a super-block has 64 bytes of nibbles: 64 elements in the low ones, then 64 in the high ones.
            let (low, nibble) = ((g / 4 * 2 + g % 2) * 32, g / 2 % 2);
            let (high, pair) = (128 + g / 4 * 32, (g % 4 * 2) as u32);
            for half in 0..2 {
                let scale = d * f32::from(block[192 + 2 * g + half].cast_signed());
                // SAFETY: as above.
                unsafe {
                    let four = nibbles(bytes_at(block, low + 16 * half))[nibble];
                    let bits = _mm512_cvtepu8_epi32(bytes_at(block, high + 16 * half));
                    let two = _mm512_srlv_epi32(bits, _mm512_set1_epi32(pair as i32));
                    let two = _mm512_slli_epi32::<4>(_mm512_and_si512(two, _mm512_set1_epi32(3)));
                    T::put(scaled(_mm512_or_si512(four, two), 32, scale), out, 32 * g + 16 * half);
                }
            }
        }
    }
}

/// Runs of 32 that lie in one block.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn four_bit<T: Decoded>(matrix: &FourBit, start: usize, out: &mut [T]) -> bool {
    let (out, rest) = out.as_chunks_mut::<32>();
    if matrix.block_size() < 32 || !start.is_multiple_of(32) || !rest.is_empty() {
        return false;
    }
    let shift = matrix.block_size().trailing_zeros();
    let bytes = &matrix.packed()[start / 2..];
    assert!(bytes.len() >= 16 * out.len(), "{} bytes for {} runs of 32", bytes.len(), out.len());
    // SAFETY: 16 floats.
    let code = unsafe { _mm512_loadu_ps(matrix.code().as_ptr()) };
    let mut block = usize::MAX;
    let mut scale = _mm512_setzero_ps();
    for (run, (out, bytes)) in out.iter_mut().zip(bytes.as_chunks::<16>().0).enumerate() {
        let here = (start + 32 * run) >> shift;
        if here != block {
            block = here;
            scale = _mm512_set1_ps(matrix.absmax().get(block));
        }
        // The first of two elements is in the high nibble.
        let bytes = bytes_at(bytes, 0);
        let mask = _mm_set1_epi8(15);
        let (low, high) = (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        let pairs = [_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low)];
        for (half, codes) in pairs.into_iter().enumerate() {
            let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), code);
            // SAFETY: `decode` has found the features.
            unsafe { T::put(_mm512_mul_ps(values, scale), out, 16 * half) };
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use taper_quant::BlockFormat;

    #[test]
    fn what_is_decoded_is_what_quant_decodes() {
        let formats = [
            BlockFormat::Nf4 { block_size: 64, double_quant: true },
            BlockFormat::Fp4 { block_size: 32, double_quant: false },
            BlockFormat::Nf4 { block_size: 256, double_quant: false },
            BlockFormat::Ggml(GgmlType::Q8_0),
            BlockFormat::Ggml(GgmlType::Q4_0),
            BlockFormat::Ggml(GgmlType::Q5_0),
            BlockFormat::Ggml(GgmlType::Q4K),
            BlockFormat::Ggml(GgmlType::Q6K),
        ];
        for format in formats {
            let (rows, columns) = (3, 1024);
            let Ok(w) = QuantizedTensor::quantize(&random(rows * columns, 1), rows, columns, format) else {
                assert_eq!(format, BlockFormat::Ggml(GgmlType::Q5_0), "a type that is not written");
                continue;
            };
            for (start, len) in [(0, rows * columns), (1024, 512), (256, 256), (512, 0), (16, 32), (0, 16)] {
                let mut want = vec![0.0; len];
                w.decode(start, &mut want);
                let mut got = vec![f32::NAN; len];
                if decode(&w, start, &mut got) {
                    assert!(
                        got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits()),
                        "{format:?} {start}"
                    );
                } else {
                    assert!(got.iter().all(|v| v.is_nan()), "{format:?} {start}: nothing is written");
                }
            }
        }
    }

    /// Q5_0 is read and not written, so its bytes are made up; all scales are finite.
    #[test]
    fn made_up_blocks_of_five_bits_are_decoded_as_quant_decodes_them() {
        let mut bytes: Vec<u8> =
            (0..22 * 64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (i, block) in bytes.chunks_exact_mut(22).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(0.01 * i as f32 - 0.3).to_le_bytes());
        }
        let w = QuantizedTensor::ggml(2, 1024, GgmlType::Q5_0, taper_quant::Bytes::new(bytes))
            .expect("whole blocks");
        let (mut want, mut got) = (vec![0.0; 2048], vec![f32::NAN; 2048]);
        w.decode(0, &mut want);
        if decode(&w, 0, &mut got) {
            assert_eq!(got, want);
        }
    }
}
