//! Decoding blocks with AVX-512 and its extension for bf16: what `quant`'s own decoders give, bit for bit, at the pace of memory.
//!
//! The compiler makes poor vectors of codes that are narrower than a byte or scaled by 32s, so the types that are decoded most have a version
//! of their own here. In `f32`, codes are widened to 16 lanes of `i32` and scaled. In bf16, 16 or 32 codes of one scale stand for few values:
//! these are scaled and rounded once, and each code looks its own up in a register. [`dots`] multiplies what was looked up where it is.

#![expect(unsafe_code, reason = "vector instructions behind a detected level")]

mod blocks;
mod dots;
mod four_bit;
#[cfg(test)]
mod tests;

pub(crate) use dots::dots;

use blocks::{Blocks, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use core::arch::x86_64::*;
use half::bf16;
use taper_quant::{GgmlType, Parts, QuantizedTensor};

/// Elements of a register in bf16.
const RUN: usize = 32;

/// A matrix of blocks. What implements this has no closure around an intrinsic but those handed in: a closure that is not inlined loses the
/// instruction set.
///
/// # Safety
/// The methods may only be called where [`is_available`].
trait Runs: Copy {
    /// Whether elements from `start` on, `len` of them, are whole blocks, or runs within blocks, that there are.
    fn has(self, start: usize, len: usize) -> bool;

    /// `out.len()` elements from `start` on.
    ///
    /// # Safety
    /// As above, and [`Self::has`] said so.
    unsafe fn decode(self, start: usize, out: &mut [f32]);

    /// Calls `each` for 32 elements at a time, rounded to bf16 (to the nearest, ties to even; a subnormal number becomes 0): `runs` of them from
    /// `start` on.
    ///
    /// # Safety
    /// As above, and [`Self::has`] said so.
    unsafe fn rounded(self, start: usize, runs: usize, each: impl FnMut(usize, __m512i));
}

/// What is done with a matrix whose type is known. (A trait, since a function that is passed as a value is not inlined, and then without the
/// caller's instruction set.)
trait Job {
    /// # Safety
    /// Only where [`is_available`].
    unsafe fn run<S: Runs>(self, source: S) -> bool;
}

fn is_available() -> bool {
    crate::simd::level() == crate::simd::Level::Avx512 && crate::product::has_dots_bf16()
}

/// Runs the job where there is a decoder for the type and this processor; else nothing is done.
fn with_source(w: &QuantizedTensor, job: impl Job) -> bool {
    if !is_available() {
        return false;
    }
    // SAFETY: here it is available.
    unsafe {
        match w.parts() {
            Parts::Ggml(GgmlType::Q8_0, bytes) => job.run(Blocks::<32, 34, Q8_0>::new(bytes)),
            Parts::Ggml(GgmlType::Q4_0, bytes) => job.run(Blocks::<32, 18, Q4_0>::new(bytes)),
            Parts::Ggml(GgmlType::Q5_0, bytes) => job.run(Blocks::<32, 22, Q5_0>::new(bytes)),
            Parts::Ggml(GgmlType::Q4K, bytes) => job.run(Blocks::<256, 144, Q4K>::new(bytes)),
            Parts::Ggml(GgmlType::Q5K, bytes) => job.run(Blocks::<256, 176, Q5K>::new(bytes)),
            Parts::Ggml(GgmlType::Q6K, bytes) => job.run(Blocks::<256, 210, Q6K>::new(bytes)),
            Parts::FourBit(matrix) => job.run(four_bit::Source::new(matrix)),
            _ => false,
        }
    }
}

/// Elements `start..start + out.len()`, where there is a version for the type, the processor and these bounds; else nothing is done.
pub(crate) fn decode(w: &QuantizedTensor, start: usize, out: &mut [f32]) -> bool {
    struct Decode<'a>(usize, &'a mut [f32]);
    impl Job for Decode<'_> {
        #[inline(always)]
        unsafe fn run<S: Runs>(self, source: S) -> bool {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
            fn compiled<S: Runs>(source: S, start: usize, out: &mut [f32]) {
                // SAFETY: `run`'s promise, and the elements are there.
                unsafe { source.decode(start, out) };
            }
            let Self(start, out) = self;
            let has = source.has(start, out.len());
            if has {
                // SAFETY: by the caller's promise.
                unsafe { compiled(source, start, out) };
            }
            has
        }
    }
    with_source(w, Decode(start, out))
}

/// The same rounded to bf16.
pub(crate) fn decode_bf16(w: &QuantizedTensor, start: usize, out: &mut [bf16]) -> bool {
    struct Decode<'a>(usize, &'a mut [bf16]);
    impl Job for Decode<'_> {
        #[inline(always)]
        unsafe fn run<S: Runs>(self, source: S) -> bool {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
            fn compiled<S: Runs>(source: S, start: usize, out: &mut [bf16]) {
                let out = out.as_chunks_mut::<RUN>().0;
                // SAFETY: `run`'s promise, and the elements are there; 64 bytes are written to 32 elements of two.
                unsafe {
                    source.rounded(start, out.len(), |run, values| {
                        _mm512_storeu_si512(out[run].as_mut_ptr().cast(), values);
                    });
                };
            }
            let Self(start, out) = self;
            let has = source.has(start, out.len());
            if has {
                // SAFETY: by the caller's promise.
                unsafe { compiled(source, start, out) };
            }
            has
        }
    }
    with_source(w, Decode(start, out))
}
