//! Codes of 4 bits into a table that is finer near zero.

use super::{Block, f16_at};
use crate::plain::IQ4_VALUES;

/// `d * table[q]`, in blocks of 32: element j in the low nibble of byte j, element j + 16 in its high one.
pub(super) struct Iq4Nl;

impl Block<32, 18> for Iq4Nl {
    #[inline(always)]
    fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        let codes: &[u8; 16] = &block[2..].as_chunks::<16>().0[0];
        look_up(codes, f16_at(block, 0), out);
    }
}

/// `d * (scale - 32) * table[q]`, in super-blocks of 256: eight scales of six bits, four low and two high ones apart.
pub(super) struct Iq4Xs;

impl Block<256, 136> for Iq4Xs {
    #[inline(always)]
    fn decode(block: &[u8; 136], out: &mut [f32; 256]) {
        let d = f16_at(block, 0);
        let scales_high = u16::from_le_bytes([block[2], block[3]]);
        let (codes, _) = block[8..].as_chunks::<16>();
        for (g, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes).enumerate() {
            let low = i32::from(block[4 + g / 2] >> (g % 2 * 4) & 15);
            let high = i32::from(scales_high >> (2 * g) & 3);
            look_up(codes, d * ((low | high << 4) - 32) as f32, out);
        }
    }
}

#[inline(always)]
fn look_up(codes: &[u8; 16], scale: f32, out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = scale * IQ4_VALUES[usize::from(*code & 15)];
        *high = scale * IQ4_VALUES[usize::from(*code >> 4)];
    }
}
