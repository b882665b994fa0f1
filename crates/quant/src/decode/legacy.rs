//! Blocks of 32 with one half-precision scale `d` and, where the name ends in 1, one minimum `m`.
//!
//! `d * q` or `d * q + m`. Nibbles: element j in the low one of byte j, element j + 16 in its high one. Fifth bits: bit j of a word.

use super::{Block, f16_at};

pub(super) struct Q4_0;

impl Block<32, 18> for Q4_0 {
    #[inline(always)]
    fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        let d = f16_at(block, 0);
        let (low, high) = out.split_at_mut(16);
        for (j, value) in low.iter_mut().enumerate() {
            *value = d * (i32::from(block[2 + j] & 15) - 8) as f32;
        }
        for (j, value) in high.iter_mut().enumerate() {
            *value = d * (i32::from(block[2 + j] >> 4) - 8) as f32;
        }
    }
}

pub(super) struct Q4_1;

impl Block<32, 20> for Q4_1 {
    #[inline(always)]
    fn decode(block: &[u8; 20], out: &mut [f32; 32]) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        let (low, high) = out.split_at_mut(16);
        for (j, value) in low.iter_mut().enumerate() {
            *value = d * i32::from(block[4 + j] & 15) as f32 + m;
        }
        for (j, value) in high.iter_mut().enumerate() {
            *value = d * i32::from(block[4 + j] >> 4) as f32 + m;
        }
    }
}

pub(super) struct Q5_0;

impl Block<32, 22> for Q5_0 {
    #[inline(always)]
    fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
        let d = f16_at(block, 0);
        let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        let (low, high) = out.split_at_mut(16);
        for (j, value) in low.iter_mut().enumerate() {
            *value = d * ((i32::from(block[6 + j] & 15) | fifth_bit(fifth, j)) - 16) as f32;
        }
        for (j, value) in high.iter_mut().enumerate() {
            *value = d * ((i32::from(block[6 + j] >> 4) | fifth_bit(fifth, j + 16)) - 16) as f32;
        }
    }
}

pub(super) struct Q5_1;

impl Block<32, 24> for Q5_1 {
    #[inline(always)]
    fn decode(block: &[u8; 24], out: &mut [f32; 32]) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        let (low, high) = out.split_at_mut(16);
        for (j, value) in low.iter_mut().enumerate() {
            *value = d * (i32::from(block[8 + j] & 15) | fifth_bit(fifth, j)) as f32 + m;
        }
        for (j, value) in high.iter_mut().enumerate() {
            *value = d * (i32::from(block[8 + j] >> 4) | fifth_bit(fifth, j + 16)) as f32 + m;
        }
    }
}

pub(super) struct Q8_0;

impl Block<32, 34> for Q8_0 {
    #[inline(always)]
    fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
        let d = f16_at(block, 0);
        for (j, value) in out.iter_mut().enumerate() {
            *value = d * f32::from(block[2 + j].cast_signed());
        }
    }
}

/// Bit `j`, in the place of a fifth bit.
#[inline(always)]
fn fifth_bit(word: u32, j: usize) -> i32 {
    ((word >> j & 1) << 4).cast_signed()
}
