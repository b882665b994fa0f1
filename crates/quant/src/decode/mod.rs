//! The fast decoders of GGML's types: fixed loops over one block, which the compiler makes vectors of.
//!
//! Everything here is `inline(always)`: a caller compiled for AVX2 or AVX-512 gets this code compiled for AVX2 or AVX-512. The same
//! formulas, element by element, are in [`crate::plain`].

mod iq4;
mod k_quants;
mod legacy;

use crate::GgmlType;

/// Elements `start..start + out.len()` of a matrix that lies in `bytes`.
#[inline(always)]
pub(crate) fn ggml(ggml_type: GgmlType, bytes: &[u8], start: usize, out: &mut [f32]) {
    match ggml_type {
        GgmlType::F32 => floats(bytes, start, out, f32::from_le_bytes),
        GgmlType::F16 => floats(bytes, start, out, f16),
        GgmlType::BF16 => {
            floats(bytes, start, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
        }
        GgmlType::Q4_0 => blocks(bytes, start, out, legacy::q4_0),
        GgmlType::Q4_1 => blocks(bytes, start, out, legacy::q4_1),
        GgmlType::Q5_0 => blocks(bytes, start, out, legacy::q5_0),
        GgmlType::Q5_1 => blocks(bytes, start, out, legacy::q5_1),
        GgmlType::Q8_0 => blocks(bytes, start, out, legacy::q8_0),
        GgmlType::Q2K => blocks(bytes, start, out, k_quants::q2_k),
        GgmlType::Q3K => blocks(bytes, start, out, k_quants::q3_k),
        GgmlType::Q4K => blocks(bytes, start, out, k_quants::q4_k),
        GgmlType::Q5K => blocks(bytes, start, out, k_quants::q5_k),
        GgmlType::Q6K => blocks(bytes, start, out, k_quants::q6_k),
        GgmlType::Iq4Nl => blocks(bytes, start, out, iq4::iq4_nl),
        GgmlType::Iq4Xs => blocks(bytes, start, out, iq4::iq4_xs),
    }
}

#[inline(always)]
fn floats<const BYTES: usize>(
    bytes: &[u8],
    start: usize,
    out: &mut [f32],
    decode: impl Fn([u8; BYTES]) -> f32,
) {
    let (all, _) = bytes.as_chunks::<BYTES>();
    for (value, bytes) in out.iter_mut().zip(&all[start..]) {
        *value = decode(*bytes);
    }
}

/// Whole blocks are decoded in place; one that is wanted in part goes by a buffer.
#[inline(always)]
fn blocks<const LEN: usize, const BYTES: usize>(
    bytes: &[u8],
    start: usize,
    mut out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (all, _) = bytes.as_chunks::<BYTES>();
    let mut skip = start % LEN;
    let mut buffer = [0.0; LEN];
    for block in &all[start / LEN..] {
        let length = (LEN - skip).min(out.len());
        let (here, rest) = out.split_at_mut(length);
        // One call for both cases, so that the decoder is in the code once.
        let whole = <&mut [f32; LEN]>::try_from(&mut *here).unwrap_or(&mut buffer);
        decode(block, whole);
        if length < LEN {
            here.copy_from_slice(&buffer[skip..skip + length]);
        }
        if rest.is_empty() {
            return;
        }
        out = rest;
        skip = 0;
    }
}

/// IEEE half precision, without a branch: the exponent is moved by a product, which makes subnormal numbers right too.
#[inline(always)]
fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let magnitude = (bits & 0x7fff) << 13;
    // 2^112: the difference of the exponents' biases, 127 and 15.
    let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let other = magnitude | 0x7f80_0000;
    let value = if bits & 0x7c00 == 0x7c00 { other } else { finite };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

/// The half-precision number at `at` of a block.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half_is_widened_as_the_half_crate_widens_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (super::f16(bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:#x}: {ours} {theirs}"
            );
        }
    }
}
