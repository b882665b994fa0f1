//! Blocks of 32 as llama.cpp's reference coder and the Python package `gguf` make them.
//!
//! The scale is the extreme value over the extreme code; codes are rounded with the scale as it was before its own rounding.

use super::half;

pub(super) fn q4_0(values: &[f32; 32]) -> Option<[u8; 18]> {
    let d = extreme(values) / -8.0;
    let codes = codes(values, 15, |v| v * inverse(d) + 8.5);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..].copy_from_slice(&nibbles(&codes));
    Some(block)
}

pub(super) fn q4_1(values: &[f32; 32]) -> Option<[u8; 20]> {
    let (min, max) = range(values);
    let d = (max - min) / 15.0;
    let codes = codes(values, 15, |v| (v - min) * inverse(d) + 0.5);
    let mut block = [0; 20];
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..4].copy_from_slice(&half(min)?.to_le_bytes());
    block[4..].copy_from_slice(&nibbles(&codes));
    Some(block)
}

pub(super) fn q5_0(values: &[f32; 32]) -> Option<[u8; 22]> {
    let d = extreme(values) / -16.0;
    let codes = codes(values, 31, |v| v * inverse(d) + 16.5);
    let mut block = [0; 22];
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..6].copy_from_slice(&fifth_bits(&codes));
    block[6..].copy_from_slice(&nibbles(&codes));
    Some(block)
}

pub(super) fn q5_1(values: &[f32; 32]) -> Option<[u8; 24]> {
    let (min, max) = range(values);
    let d = (max - min) / 31.0;
    let codes = codes(values, 31, |v| (v - min) * inverse(d) + 0.5);
    let mut block = [0; 24];
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..4].copy_from_slice(&half(min)?.to_le_bytes());
    block[4..8].copy_from_slice(&fifth_bits(&codes));
    block[8..].copy_from_slice(&nibbles(&codes));
    Some(block)
}

pub(super) fn q8_0(values: &[f32; 32]) -> Option<[u8; 34]> {
    let d = extreme(values).abs() / 127.0;
    let inverse = inverse(d);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    for (code, value) in block[2..].iter_mut().zip(values) {
        *code = ((value * inverse).round() as i8).cast_unsigned();
    }
    Some(block)
}

/// The first of those with the largest magnitude.
fn extreme(values: &[f32; 32]) -> f32 {
    values.iter().fold(0.0_f32, |m, v| if v.abs() > m.abs() { *v } else { m })
}

fn range(values: &[f32; 32]) -> (f32, f32) {
    values.iter().fold((values[0], values[0]), |(min, max), v| (min.min(*v), max.max(*v)))
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn codes(values: &[f32; 32], largest: u8, code: impl Fn(f32) -> f32) -> [u8; 32] {
    values.map(|v| (code(v) as u8).min(largest))
}

/// Code j in the low nibble of byte j, code j + 16 in its high one.
fn nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|j| codes[j] & 15 | (codes[j + 16] & 15) << 4)
}

fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let word = codes.iter().enumerate().fold(0, |word, (j, code)| word | u32::from(code >> 4 & 1) << j);
    word.to_le_bytes()
}
