//! Super-blocks of 256: half-precision scales over small integer scales of sub-blocks.
//!
//! Codes of 2 bits lie four to a byte: byte l of a group of 32 has, from its lowest bits, elements l, l + 32, l + 64, l + 96 of half a
//! super-block. Codes of 4 bits lie two to a byte in the same way. What is above (third, fifth, sixth bits) is in bytes of its own.
//!
//! All loops are over 32 elements, also where 16 share a scale: shorter ones are unrolled before they could become vectors.

use super::{Block, f16_at};

pub(super) struct Q2K;

/// `d * scale * q - dmin * min` by sixteens; scale in the low nibble of a byte, min in its high one.
impl Block<256, 84> for Q2K {
    #[inline(always)]
    fn decode(block: &[u8; 84], out: &mut [f32; 256]) {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        let (codes, _) = block[16..80].as_chunks::<32>();
        for (g, out) in thirty_twos(out).iter_mut().enumerate() {
            let scales = two_sixteens(|i| d * f32::from(block[2 * g + i] & 15));
            let mins = two_sixteens(|i| dmin * f32::from(block[2 * g + i] >> 4));
            let (codes, shift) = (&codes[g / 4], g % 4 * 2);
            for (((value, code), scale), min) in out.iter_mut().zip(codes).zip(&scales).zip(&mins) {
                *value = scale * (i32::from(*code) >> shift & 3) as f32 - min;
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
        let (codes, _) = block[32..96].as_chunks::<32>();
        let d = f16_at(block, 108);
        for (g, out) in thirty_twos(out).iter_mut().enumerate() {
            let scales = two_sixteens(|i| {
                // Four low bits in eight bytes, first the low nibbles; two high bits in four bytes, from the lowest pair up.
                let g = 2 * g + i;
                let low = packed[g % 8] >> (g / 8 * 4) & 15;
                let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
                d * f32::from((low | high << 4).cast_signed() - 32)
            });
            let (codes, shift) = (&codes[g / 4], g % 4 * 2);
            for (((value, code), mask), scale) in out.iter_mut().zip(codes).zip(mask).zip(&scales) {
                let third = i32::from(*mask) >> g & 1;
                *value = scale * ((i32::from(*code) >> shift & 3 | third << 2) - 4) as f32;
            }
        }
    }
}

pub(super) struct Q4K;

/// `d * scale * q - dmin * min` by thirty-twos.
impl Block<256, 144> for Q4K {
    #[inline(always)]
    fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
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
}

pub(super) struct Q5K;

/// As [`Q4K`], with a fifth bit: bit g of byte l for element l of group g.
impl Block<256, 176> for Q5K {
    #[inline(always)]
    fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
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
}

pub(super) struct Q6K;

/// `d * scale * (q - 32)` by sixteens: four low bits, two high bits, a signed byte of scale.
impl Block<256, 210> for Q6K {
    #[inline(always)]
    fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
        let d = f16_at(block, 208);
        let (low, _) = block[..128].as_chunks::<32>();
        let (high, _) = block[128..192].as_chunks::<32>();
        for (g, out) in thirty_twos(out).iter_mut().enumerate() {
            let scales = two_sixteens(|i| d * f32::from(block[192 + 2 * g + i].cast_signed()));
            // Half a super-block has 64 bytes of nibbles: 64 elements in the low ones, then 64 in the high ones.
            let (low, nibble) = (&low[g / 4 * 2 + g % 2], g / 2 % 2 * 4);
            let (high, pair) = (&high[g / 4], g % 4 * 2);
            for (((value, low), high), scale) in out.iter_mut().zip(low).zip(high).zip(&scales) {
                let code = i32::from(*low) >> nibble & 15 | (i32::from(*high) >> pair & 3) << 4;
                *value = scale * (code - 32) as f32;
            }
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
fn thirty_twos(out: &mut [f32; 256]) -> &mut [[f32; 32]] {
    out.as_chunks_mut().0
}

/// Sixteen times the first of two numbers, sixteen times the second.
#[inline(always)]
fn two_sixteens(number: impl Fn(usize) -> f32) -> [f32; 32] {
    let mut numbers = [number(0); 32];
    numbers[16..].fill(number(1));
    numbers
}
