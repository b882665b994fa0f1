//! NF4 and FP4 as bitsandbytes codes them: the value of the table that is nearest to `value / absmax`; half way between two, the lower.

use super::BLOCKS_OF_A_TASK;
use crate::dynamic;
use crate::four_bit::{Absmax, FourBitType, check_block_size};
use crate::{Bytes, QuantError, QuantizedTensor};
use rayon::prelude::*;

/// Codes of absolute maxima that share a maximum of their own.
const NESTED_BLOCK_SIZE: usize = 256;

/// The smallest divisor: a block of zeros has zero as its maximum.
const SMALLEST: f32 = 1e-38;

pub(super) fn quantize(
    values: &[f32],
    dims: (usize, usize),
    quant_type: FourBitType,
    block_size: usize,
    double_quant: bool,
) -> Result<QuantizedTensor, QuantError> {
    check_block_size(block_size)?;
    let nearest = Nearest::new(quant_type);
    let (whole, rest) = values.split_at(values.len() - values.len() % block_size);
    let mut absmax = vec![0.0; whole.len() / block_size];
    let mut packed = vec![0; whole.len() / 2];
    let blocks = whole.par_chunks_exact(block_size).zip(packed.par_chunks_exact_mut(block_size / 2));
    blocks.zip(&mut absmax).with_min_len(BLOCKS_OF_A_TASK).for_each(|((block, packed), absmax)| {
        *absmax = largest(block);
        let inverse = 1.0 / absmax.max(SMALLEST);
        nearest.pack(block, |v| v * inverse, packed);
    });
    if !rest.is_empty() {
        // bitsandbytes divides here, and keeps the divisor.
        let largest = largest(rest).max(SMALLEST);
        let coded = packed.len();
        packed.resize(coded + rest.len().div_ceil(2), 0);
        nearest.pack(rest, |v| v / largest, &mut packed[coded..]);
        absmax.push(largest);
    }
    let absmax = if double_quant { nested(&absmax) } else { Absmax::Plain(absmax) };
    QuantizedTensor::four_bit(dims, quant_type, block_size, Bytes::new(packed), absmax, quant_type.code())
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// The table in ascending order, to be searched.
struct Nearest {
    /// Half way between neighbours.
    bounds: [f32; 15],
    /// The nibble of each place.
    order: [u8; 16],
}

impl Nearest {
    fn new(quant_type: FourBitType) -> Self {
        let code = quant_type.code();
        let value = |nibble: u8| code[usize::from(nibble)];
        let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
        order.sort_by(|a, b| value(*a).total_cmp(&value(*b)));
        let bounds = std::array::from_fn(|i| (value(order[i]) + value(order[i + 1])) / 2.0);
        Self { bounds, order }
    }

    /// Two codes a byte; the half byte that an odd number leaves over has the code of zero.
    fn pack(&self, block: &[f32], scaled: impl Fn(f32) -> f32, packed: &mut [u8]) {
        let code = |v: f32| {
            let v = scaled(v).clamp(-1.0, 1.0);
            let place: u8 = self.bounds.iter().map(|bound| u8::from(*bound < v)).sum();
            self.order[usize::from(place)]
        };
        let (twos, last) = block.as_chunks::<2>();
        let coded = twos.iter().map(|[a, b]| code(*a) << 4 | code(*b));
        let coded = coded.chain(last.iter().map(|v| code(*v) << 4 | code(0.0)));
        packed.iter_mut().zip(coded).for_each(|(to, byte)| *to = byte);
    }
}

/// Absolute maxima in 8 bits, their mean taken off first.
fn nested(absmax: &[f32]) -> Absmax {
    let offset = if absmax.is_empty() { 0.0 } else { sum(absmax) / absmax.len() as f32 };
    let centred: Vec<f32> = absmax.iter().map(|v| v - offset).collect();
    let nested_code = Box::new(dynamic::map(true));
    let (codes, nested_absmax) = dynamic::quantize(&centred, NESTED_BLOCK_SIZE, &nested_code);
    let nested_block_size = NESTED_BLOCK_SIZE;
    Absmax::Double { codes: Bytes::new(codes), nested_absmax, nested_block_size, nested_code, offset }
}

/// The sum in the order of torch's vectorised one: four rows of eight lanes.
fn sum(values: &[f32]) -> f32 {
    let (lanes, rest) = values.as_chunks::<8>();
    let (fours, left) = lanes.as_chunks::<4>();
    let mut sums = [[0.0_f32; 8]; 4];
    let add = |to: &mut [f32; 8], of: &[f32; 8]| to.iter_mut().zip(of).for_each(|(a, b)| *a += b);
    for four in fours {
        sums.iter_mut().zip(four).for_each(|(to, of)| add(to, of));
    }
    let [mut all, others @ ..] = sums;
    left.iter().chain(&others).for_each(|of| add(&mut all, of));
    rest.iter().chain(&all).fold(0.0, |sum, v| sum + v)
}
