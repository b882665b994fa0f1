//! bitsandbytes' 4-bit formats, as its checkpoints store them.
//!
//! The matrix is flattened row by row and cut in blocks, which may straddle rows. An element is
//! `code[nibble] * absmax[index / block_size]`, in f32. Two elements share a byte, the first in its HIGH nibble.
//!
//! Source: Dettmers et al. 2023 ("QLoRA"), and the tensors that bitsandbytes 0.50 writes.

use crate::{Bytes, QuantError};

/// Which table of 16 values the nibbles stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FourBitType {
    /// Quantiles of a normal distribution.
    Nf4,
    /// Sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl FourBitType {
    /// The standard table, in the order of the nibbles.
    pub fn code(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            // Twelfths: the largest of 0, 1/16, 8, 12, 4, 6, 2, 3 is made one. The sign is the highest bit; its zero is a plain zero.
            Self::Fp4 => [
                0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0,
            ]
            .map(|v: f32| v / 12.0),
        }
    }
}

/// The sixteen quantiles, each the mean of two of them as bitsandbytes publishes it, so that zero and both ends are exact.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The absolute maxima of the blocks.
#[derive(Debug, Clone)]
pub enum Absmax {
    /// One float a block.
    Plain(Vec<f32>),
    /// One byte a block ("double quantisation"): `nested_code[codes[b]] * nested_absmax[b / nested_block_size] + offset`.
    Double {
        /// A byte a block.
        codes: Bytes,
        /// One a block of `codes`.
        nested_absmax: Vec<f32>,
        /// Codes that share a `nested_absmax`; 256 in all known checkpoints.
        nested_block_size: usize,
        /// What the codes stand for.
        nested_code: Box<[f32; 256]>,
        /// What was taken off every absolute maximum before coding: their mean.
        offset: f32,
    },
}

impl Absmax {
    /// The absolute maximum of `block`.
    #[inline(always)]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(values) => values[block],
            Self::Double { codes, nested_absmax, nested_block_size, nested_code, offset } => {
                nested_code[usize::from(codes[block])] * nested_absmax[block / nested_block_size] + offset
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(values) => size_of_val(&**values),
            Self::Double { codes, nested_absmax, nested_code, .. } => {
                codes.len() + size_of_val(&**nested_absmax) + size_of_val(&**nested_code) + size_of::<f32>()
            }
        }
    }
}

/// A matrix in 4 bits, in the parts that a checkpoint stores.
#[derive(Debug)]
pub struct FourBit {
    quant_type: FourBitType,
    block_size: usize,
    packed: Bytes,
    absmax: Absmax,
    code: [f32; 16],
    /// Both elements of every byte: one look-up for two.
    pairs: Box<[[f32; 2]; 256]>,
}

impl FourBit {
    pub(crate) fn new(
        (rows, columns): (usize, usize),
        quant_type: FourBitType,
        block_size: usize,
        packed: Bytes,
        absmax: Absmax,
        code: [f32; 16],
    ) -> Result<Self, QuantError> {
        check_block_size(block_size)?;
        let elements = rows.checked_mul(columns).ok_or(QuantError::TooLarge { rows, columns })?;
        let length = |what, given, needed| {
            if given == needed {
                Ok(())
            } else {
                Err(QuantError::Length { what, rows, columns, given, needed })
            }
        };
        length("packed bytes", packed.len(), elements.div_ceil(2))?;
        let blocks = elements.div_ceil(block_size);
        match &absmax {
            Absmax::Plain(values) => length("absolute maxima", values.len(), blocks)?,
            Absmax::Double { codes, nested_absmax, nested_block_size, .. } => {
                check_block_size(*nested_block_size)?;
                length("codes of absolute maxima", codes.len(), blocks)?;
                length("nested absolute maxima", nested_absmax.len(), blocks.div_ceil(*nested_block_size))?;
            }
        }
        let mut pairs = Box::new([[0.0; 2]; 256]);
        for (byte, pair) in pairs.iter_mut().enumerate() {
            *pair = [code[byte >> 4], code[byte & 15]];
        }
        Ok(Self { quant_type, block_size, packed, absmax, code, pairs })
    }

    /// Which table of values was meant; [`Self::code`] has the values.
    pub fn quant_type(&self) -> FourBitType {
        self.quant_type
    }

    /// Elements of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Two elements a byte, the first in the high nibble.
    pub fn packed(&self) -> &Bytes {
        &self.packed
    }

    /// The absolute maxima of the blocks.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// What the nibbles stand for: a checkpoint's `quant_map`.
    pub fn code(&self) -> &[f32; 16] {
        &self.code
    }

    pub(crate) fn bytes(&self) -> usize {
        self.packed.len() + self.absmax.bytes() + size_of_val(&self.code)
    }

    #[inline(always)]
    pub(crate) fn decode(&self, start: usize, mut out: &mut [f32]) {
        let packed: &[u8] = &self.packed;
        // The size is a power of two: no division in the loop.
        let shift = self.block_size.trailing_zeros();
        let mut at = start;
        while !out.is_empty() {
            let block = at >> shift;
            let length = (((block + 1) << shift) - at).min(out.len());
            let (here, rest) = out.split_at_mut(length);
            scaled_run(&self.pairs, packed, at, self.absmax.get(block), here);
            at += length;
            out = rest;
        }
    }
}

/// Elements from `start` on that share one scale.
#[inline(always)]
fn scaled_run(pairs: &[[f32; 2]; 256], packed: &[u8], start: usize, scale: f32, mut out: &mut [f32]) {
    let mut bytes = &packed[start / 2..];
    if !start.is_multiple_of(2) {
        let (Some((first, rest)), Some((byte, rest_bytes))) = (out.split_first_mut(), bytes.split_first())
        else {
            return;
        };
        *first = pairs[usize::from(*byte)][1] * scale;
        (out, bytes) = (rest, rest_bytes);
    }
    let (whole, rest) = out.as_chunks_mut::<64>();
    let (whole_bytes, _) = bytes.as_chunks::<32>();
    for (byte, out) in whole_bytes.iter().zip(&mut *whole) {
        scaled_chunk(pairs, byte, scale, out);
    }
    let bytes = &bytes[whole.len() * 32..];
    let (twos, last) = rest.as_chunks_mut::<2>();
    for (byte, two) in bytes.iter().zip(&mut *twos) {
        let [a, b] = pairs[usize::from(*byte)];
        *two = [a * scale, b * scale];
    }
    if let [last] = last {
        *last = pairs[usize::from(bytes[twos.len()])][0] * scale;
    }
}

#[inline(always)]
fn scaled_chunk(pairs: &[[f32; 2]; 256], bytes: &[u8; 32], scale: f32, out: &mut [f32; 64]) {
    for (byte, two) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        let [a, b] = pairs[usize::from(*byte)];
        *two = [a * scale, b * scale];
    }
}

pub(crate) fn check_block_size(given: usize) -> Result<(), QuantError> {
    let known = given.is_power_of_two() && (16..=65536).contains(&given);
    if known { Ok(()) } else { Err(QuantError::BlockSize { given }) }
}
