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
            floats(bytes, start, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
        }
        GgmlType::Q4_0 => blocks::<_, _, legacy::Q4_0>(bytes, start, out),
        GgmlType::Q4_1 => blocks::<_, _, legacy::Q4_1>(bytes, start, out),
        GgmlType::Q5_0 => blocks::<_, _, legacy::Q5_0>(bytes, start, out),
        GgmlType::Q5_1 => blocks::<_, _, legacy::Q5_1>(bytes, start, out),
        GgmlType::Q8_0 => blocks::<_, _, legacy::Q8_0>(bytes, start, out),
        GgmlType::Q2K => blocks::<_, _, k_quants::Q2K>(bytes, start, out),
        GgmlType::Q3K => blocks::<_, _, k_quants::Q3K>(bytes, start, out),
        GgmlType::Q4K => blocks::<_, _, k_quants::Q4K>(bytes, start, out),
        GgmlType::Q5K => blocks::<_, _, k_quants::Q5K>(bytes, start, out),
        GgmlType::Q6K => blocks::<_, _, k_quants::Q6K>(bytes, start, out),
        GgmlType::Iq4Nl => blocks::<_, _, iq4::Iq4Nl>(bytes, start, out),
        GgmlType::Iq4Xs => blocks::<_, _, iq4::Iq4Xs>(bytes, start, out),
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

/// A block type. (A trait, since a function that is passed as a value is called through a shim that is not inlined.)
trait Block<const LEN: usize, const BYTES: usize> {
    fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]);
}

/// Block by block; the first and the last may be wanted in part.
///
/// Once a decoder is inlined, the compiler fears that writing an element changes a byte of the block, and makes no vectors. So blocks of 32
/// are decoded into a buffer of our own, and of a super-block, whose elements are many, the bytes are copied instead: measured, both.
#[inline(always)]
fn blocks<const LEN: usize, const BYTES: usize, B: Block<LEN, BYTES>>(
    bytes: &[u8],
    start: usize,
    mut out: &mut [f32],
) {
    let (all, _) = bytes.as_chunks::<BYTES>();
    let mut skip = start % LEN;
    for block in &all[start / LEN..] {
        let length = (LEN - skip).min(out.len());
        let (here, rest) = out.split_at_mut(length);
        let mut values = [0.0; LEN];
        if LEN == 256 {
            let block = *block;
            B::decode(&block, <&mut [f32; LEN]>::try_from(&mut *here).unwrap_or(&mut values));
            if length < LEN {
                here.copy_from_slice(&values[skip..skip + length]);
            }
        } else {
            B::decode(block, &mut values);
            match <&mut [f32; LEN]>::try_from(&mut *here) {
                Ok(whole) => *whole = values,
                Err(_) => here.copy_from_slice(&values[skip..skip + length]),
            }
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
