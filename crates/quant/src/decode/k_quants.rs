//! Super-blocks of 256: half-precision scales over small integer scales of sub-blocks.
//!
//! Codes of 2 bits lie four to a byte: byte l of a group of 32 has, from its lowest bits, elements l, l + 32, l + 64, l + 96 of half a
//! super-block. Codes of 4 bits lie two to a byte in the same way. What is above (third, fifth, sixth bits) is in bytes of its own.
//!
//! Each decoder first lays the codes out in bytes, then widens them: both are loops that become vectors.

use super::{Block, f16_at};

pub(super) struct Q2K;

/// `d * scale * q - dmin * min` by sixteens; scale in the low nibble of a byte, min in its high one.
impl Block<256, 84> for Q2K {
    #[inline(always)]
    fn decode(block: &[u8; 84], out: &mut [f32; 256]) {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        let mut codes = [0; 256];
        two_bits(&block[16..80], &mut codes);
        for (g, (out, codes)) in sixteens(out).iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            let (scale, min) = (d * f32::from(block[g] & 15), dmin * f32::from(block[g] >> 4));
            for (value, code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(*code) - min;
            }
        }
    }
}

pub(super) struct Q3K;

/// `d * (scale - 32) * (q - 4)` by sixteens, where the third bit of q is in a mask.
impl Block<256, 110> for Q3K {
    #[inline(always)]
    fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
        let (mask, packed) = (&block[..32], &block[96..108]);
        let d = f16_at(block, 108);
        let mut codes = [0; 256];
        two_bits(&block[32..96], &mut codes);
        for (bit, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, mask) in codes.iter_mut().zip(mask) {
                *code |= (*mask >> bit & 1) << 2;
            }
        }
        for (g, (out, codes)) in sixteens(out).iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            // Four low bits in eight bytes, first the low nibbles; two high bits in four bytes, from the lowest pair up.
            let low = packed[g % 8] >> (g / 8 * 4) & 15;
            let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
            let scale = d * f32::from((low | high << 4).cast_signed() - 32);
            for (value, code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(code.cast_signed() - 4);
            }
        }
    }
}

pub(super) struct Q4K;

/// `d * scale * q - dmin * min` by thirty-twos.
impl Block<256, 144> for Q4K {
    #[inline(always)]
    fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
        let mut codes = [0; 256];
        nibbles(&block[16..], &mut codes);
        by_thirty_twos(block, &codes, out);
    }
}

pub(super) struct Q5K;

/// As [`Q4K`], with a fifth bit: bit g of byte l for element l of group g.
impl Block<256, 176> for Q5K {
    #[inline(always)]
    fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
        let mut codes = [0; 256];
        nibbles(&block[48..], &mut codes);
        for (bit, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, fifth) in codes.iter_mut().zip(&block[16..48]) {
                *code |= (*fifth >> bit & 1) << 4;
            }
        }
        by_thirty_twos(block, &codes, out);
    }
}

pub(super) struct Q6K;

/// `d * scale * (q - 32)` by sixteens: four low bits, two high bits, a signed byte of scale.
impl Block<256, 210> for Q6K {
    #[inline(always)]
    fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
        let d = f16_at(block, 208);
        let mut codes = [0; 256];
        two_bits(&block[128..192], &mut codes);
        // Half a super-block has 64 bytes of nibbles: 64 elements in the low ones, then 64 in the high ones.
        for (codes, low) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block[..128].as_chunks::<64>().0) {
            let (first, second) = codes.split_at_mut(64);
            for ((first, second), low) in first.iter_mut().zip(second).zip(low) {
                *first = *first << 4 | *low & 15;
                *second = *second << 4 | *low >> 4;
            }
        }
        for (g, (out, codes)) in sixteens(out).iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            let scale = d * f32::from(block[192 + g].cast_signed());
            for (value, code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(code.cast_signed() - 32);
            }
        }
    }
}

/// The 256 codes of 2 bits in 64 bytes.
#[inline(always)]
fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (pair, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = *byte >> (2 * pair) & 3;
            }
        }
    }
}

/// The 256 codes of 4 bits in 128 bytes.
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8; 256]) {
    for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = *byte & 15;
            *high = *byte >> 4;
        }
    }
}

/// What Q4_K and Q5_K share: `d`, `dmin`, then twelve bytes of scales and minima.
#[inline(always)]
fn by_thirty_twos(block: &[u8], codes: &[u8; 256], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (g, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<32>().0).enumerate()
    {
        let (scale, min) = scale_and_min(&block[4..16], g);
        let (scale, min) = (d * scale, dmin * min);
        for (value, code) in out.iter_mut().zip(codes) {
            *value = scale * f32::from(*code) - min;
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

#[inline(always)]
fn sixteens(out: &mut [f32; 256]) -> &mut [[f32; 16]] {
    out.as_chunks_mut().0
}
