//! The slow plain twin of [`QuantizedTensor::decode`]: one element at a time, by each format's formula.
//!
//! Source: the block structures of GGML as its Python package `gguf` 0.19 reads them; bitsandbytes 0.50.

use crate::tensor::Parts;
use crate::{GgmlType, QuantizedTensor};
use half::{bf16, f16};

/// What the codes of IQ4_NL and IQ4_XS stand for.
pub const IQ4_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Elements `start..start + out.len()` of the flattened matrix.
///
/// # Panics
/// When they are outside.
pub fn decode(tensor: &QuantizedTensor, start: usize, out: &mut [f32]) {
    for (i, value) in out.iter_mut().enumerate() {
        *value = element(tensor, start + i);
    }
}

/// Element `index` of the flattened matrix.
///
/// # Panics
/// When it is outside.
pub fn element(tensor: &QuantizedTensor, index: usize) -> f32 {
    assert!(index < tensor.len(), "element {index} of {}", tensor.len());
    match tensor.parts() {
        Parts::FourBit(m) => {
            let byte = m.packed()[index / 2];
            let nibble = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            m.code()[usize::from(nibble)] * m.absmax().get(index / m.block_size())
        }
        Parts::Int8(m) => {
            let (_, columns) = tensor.dims();
            f32::from(m.codes()[index].cast_signed()) * m.scales()[index / columns] * crate::int8::RECIPROCAL
        }
        Parts::Ggml(ggml_type, bytes) => {
            let size = ggml_type.block_bytes();
            let (block, i) = (index / ggml_type.block_len(), index % ggml_type.block_len());
            of_block(ggml_type, &bytes[block * size..(block + 1) * size], i)
        }
    }
}

/// Element `i` of one block.
fn of_block(ggml_type: GgmlType, b: &[u8], i: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    match ggml_type {
        GgmlType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => half(0),
        GgmlType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::Q4_0 => half(0) * (nibble_of_32(&b[2..], i) as f32 - 8.0),
        GgmlType::Q4_1 => half(0) * nibble_of_32(&b[4..], i) as f32 + half(2),
        GgmlType::Q5_0 => half(0) * ((nibble_of_32(&b[6..], i) | bit(&b[2..], i) << 4) as f32 - 16.0),
        GgmlType::Q5_1 => half(0) * (nibble_of_32(&b[8..], i) | bit(&b[4..], i) << 4) as f32 + half(2),
        GgmlType::Q8_0 => half(0) * f32::from(b[2 + i].cast_signed()),
        GgmlType::Q2K => {
            let scales = b[i / 16];
            half(80) * f32::from(scales & 15) * two_bits(&b[16..], i) as f32
                - half(82) * f32::from(scales >> 4)
        }
        GgmlType::Q3K => {
            let g = i / 16;
            let scale = b[96 + g % 8] >> (g / 8 * 4) & 15 | (b[104 + g % 4] >> (g / 4 * 2) & 3) << 4;
            // The mask has bit `i / 32` of byte `i % 32`; a bit that is not set takes four off.
            let third = b[i % 32] >> (i / 32) & 1;
            let code = two_bits(&b[32..], i) as f32 - if third == 1 { 0.0 } else { 4.0 };
            half(108) * (f32::from(scale) - 32.0) * code
        }
        GgmlType::Q4K => {
            let (scale, min) = scale_and_min(&b[4..], i / 32);
            half(0) * scale * nibble_of_64(&b[16..], i) as f32 - half(2) * min
        }
        GgmlType::Q5K => {
            let (scale, min) = scale_and_min(&b[4..], i / 32);
            let fifth = u32::from(b[16 + i % 32] >> (i / 32) & 1);
            half(0) * scale * (nibble_of_64(&b[48..], i) | fifth << 4) as f32 - half(2) * min
        }
        GgmlType::Q6K => {
            // Half a super-block: 64 bytes of nibbles, low ones first.
            let (part, j) = (i / 128, i % 128);
            let low = b[part * 64 + j % 64] >> (j / 64 * 4) & 15;
            let code = u32::from(low) | two_bits(&b[128..], i) << 4;
            half(208) * f32::from(b[192 + i / 16].cast_signed()) * (code as f32 - 32.0)
        }
        GgmlType::Iq4Nl => half(0) * IQ4_VALUES[nibble_of_32(&b[2..], i) as usize],
        GgmlType::Iq4Xs => {
            let g = i / 32;
            let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * g) & 3;
            let scale = u16::from(b[4 + g / 2] >> (g % 2 * 4) & 15) | high << 4;
            half(0) * (f32::from(scale) - 32.0) * IQ4_VALUES[nibble_of_32(&b[8 + g * 16..], i % 32) as usize]
        }
    }
}

/// Code `i` of 32 in 16 bytes: the first half in the low nibbles.
fn nibble_of_32(codes: &[u8], i: usize) -> u32 {
    u32::from(codes[i % 16] >> (i / 16 * 4) & 15)
}

/// Code `i` of 256 in 128 bytes: by 64 elements, their first half in the low nibbles of 32 bytes.
fn nibble_of_64(codes: &[u8], i: usize) -> u32 {
    u32::from(codes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15)
}

/// Code `i` of 256 in 64 bytes: by 128 elements, their quarters in the bit pairs of 32 bytes, from the lowest up.
fn two_bits(codes: &[u8], i: usize) -> u32 {
    u32::from(codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3)
}

/// Bit `i` of a run of bytes.
fn bit(bytes: &[u8], i: usize) -> u32 {
    u32::from(bytes[i / 8] >> (i % 8) & 1)
}

/// Scale and minimum `g` of the eight in the twelve bytes of Q4_K and Q5_K.
fn scale_and_min(packed: &[u8], g: usize) -> (f32, f32) {
    let six_bits = |first: usize, nibble: u8| {
        let whole = packed[first + g % 4];
        if g < 4 { whole & 63 } else { packed[8 + g % 4] >> nibble & 15 | whole >> 6 << 4 }
    };
    (f32::from(six_bits(0, 0)), f32::from(six_bits(4, 4)))
}
