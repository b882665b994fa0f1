//! Super-blocks of 256: half-precision scales over small integer scales of sub-blocks.
//!
//! Codes of 2 bits lie four to a byte: byte l of a group of 32 has, from its lowest bits, elements l, l + 32, l + 64, l + 96 of half a
//! super-block. Codes of 4 bits lie two to a byte in the same way. What is above (third, fifth, sixth bits) is in bytes of its own.

use super::f16_at;

/// `d * scale * q - dmin * min` by sixteens; scale in the low nibble of a byte, min in its high one.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(scales[g] & 15), dmin * f32::from(scales[g] >> 4));
        let shift = two_bit_shift(g);
        let codes: &[u8; 16] = sixteen(codes, two_bit_place(g));
        for (value, code) in out.iter_mut().zip(codes) {
            *value = scale * (i32::from(*code) >> shift & 3) as f32 - min;
        }
    }
}

/// `d * (scale - 32) * (q - 4)` by sixteens, where the third bit of q is in a mask.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Four low bits in eight bytes, first the low nibbles; two high bits in four bytes, from the lowest pair up.
        let low = packed[g % 8] >> (g / 8 * 4) & 15;
        let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        let scale = d * f32::from((low | high << 4).cast_signed() - 32);
        let (shift, bit) = (two_bit_shift(g), g / 2);
        let codes: &[u8; 16] = sixteen(codes, two_bit_place(g));
        let mask: &[u8; 16] = sixteen(mask, g % 2 * 16);
        for ((value, code), mask) in out.iter_mut().zip(codes).zip(mask) {
            let third = i32::from(*mask) >> bit & 1;
            *value = scale * ((i32::from(*code) >> shift & 3 | third << 2) - 4) as f32;
        }
    }
}

/// `d * scale * q - dmin * min` by thirty-twos.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (codes, _) = block[16..].as_chunks::<32>();
    for (g, (out, codes)) in out.as_chunks_mut::<64>().0.iter_mut().zip(codes).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, min) = scale_and_min(&block[4..16], 2 * g);
        let (scale, min) = (d * scale, dmin * min);
        for (value, code) in low.iter_mut().zip(codes) {
            *value = scale * i32::from(*code & 15) as f32 - min;
        }
        let (scale, min) = scale_and_min(&block[4..16], 2 * g + 1);
        let (scale, min) = (d * scale, dmin * min);
        for (value, code) in high.iter_mut().zip(codes) {
            *value = scale * i32::from(*code >> 4) as f32 - min;
        }
    }
}

/// As [`q4_k`], with a fifth bit: bit g of byte l for element l of group g.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let fifth = &block[16..48];
    let (codes, _) = block[48..].as_chunks::<32>();
    for (g, (out, codes)) in out.as_chunks_mut::<64>().0.iter_mut().zip(codes).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, min) = scale_and_min(&block[4..16], 2 * g);
        let (scale, min) = (d * scale, dmin * min);
        for ((value, code), fifth) in low.iter_mut().zip(codes).zip(fifth) {
            *value = scale * i32::from(*code & 15 | (*fifth >> (2 * g) & 1) << 4) as f32 - min;
        }
        let (scale, min) = scale_and_min(&block[4..16], 2 * g + 1);
        let (scale, min) = (d * scale, dmin * min);
        for ((value, code), fifth) in high.iter_mut().zip(codes).zip(fifth) {
            *value = scale * i32::from(*code >> 4 | (*fifth >> (2 * g + 1) & 1) << 4) as f32 - min;
        }
    }
}

/// `d * scale * (q - 32)` by sixteens: four low bits, two high bits, a signed byte of scale.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[g].cast_signed());
        // Half a super-block has 64 bytes of nibbles: 64 elements in the low ones, then 64 in the high ones.
        let (nibble, pair) = (g / 4 % 2 * 4, two_bit_shift(g));
        let low: &[u8; 16] = sixteen(low, g / 8 * 64 + g % 4 * 16);
        let high: &[u8; 16] = sixteen(high, two_bit_place(g));
        for ((value, low), high) in out.iter_mut().zip(low).zip(high) {
            let code = i32::from(*low) >> nibble & 15 | (i32::from(*high) >> pair & 3) << 4;
            *value = scale * (code - 32) as f32;
        }
    }
}

/// Scale and minimum `g` of eight, six bits each: the first four lie in the low bits of bytes 0..4 and 4..8, the others in the nibbles of
/// bytes 8..12, their high bits in what the first left free.
#[inline(always)]
fn scale_and_min(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, min) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Where the two-bit codes of the sixteen elements `g` of sixteen lie.
#[inline(always)]
fn two_bit_place(g: usize) -> usize {
    g / 8 * 32 + g % 2 * 16
}

/// In which bits of their bytes.
#[inline(always)]
fn two_bit_shift(g: usize) -> usize {
    g / 2 % 4 * 2
}

#[inline(always)]
fn sixteen(bytes: &[u8], at: usize) -> &[u8; 16] {
    &bytes[at..].as_chunks::<16>().0[0]
}
