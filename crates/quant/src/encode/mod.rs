//! Values to codes.

mod four_bit;
mod int8;
mod k_quants;
mod legacy;

use crate::four_bit::FourBitType;
use crate::{BlockFormat, Bytes, GgmlType, QuantError, QuantizedTensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Blocks that one task codes, at least.
pub(super) const BLOCKS_OF_A_TASK: usize = 256;

impl QuantizedTensor {
    /// Codes a matrix `[rows, columns]`. Blocks do not depend on each other, and the threads of the rayon pool share them: the bytes are the
    /// same for any number.
    ///
    /// NF4, FP4 and int8 give the bits of bitsandbytes 0.50 on a CPU, with one exception: the mean of very many absolute maxima, which
    /// double quantisation takes off them, is summed by torch in an order that depends on its threads. (bitsandbytes gives int8 weights
    /// to its coder in half precision; these are coded as they are given.) Q4_0 to Q8_0 give the bytes of llama.cpp; Q4_K, Q5_K and Q6_K
    /// have a search of their own. F32, F16 and BF16 are rounded to the nearest.
    ///
    /// # Errors
    /// When `values` are not `rows * columns`, rows are no whole blocks, the format has no coder (Q2_K, Q3_K, IQ4_NL, IQ4_XS), a value is
    /// not finite, or a half-precision scale would not be.
    pub fn quantize(
        values: &[f32],
        rows: usize,
        columns: usize,
        format: BlockFormat,
    ) -> Result<Self, QuantError> {
        let needed = rows.checked_mul(columns).ok_or(QuantError::TooLarge { rows, columns })?;
        if values.len() != needed {
            return Err(QuantError::Length { what: "values", rows, columns, given: values.len(), needed });
        }
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(QuantError::NotFinite { index, value: values[index] });
        }
        match format {
            BlockFormat::Nf4 { block_size, double_quant } => {
                four_bit::quantize(values, (rows, columns), FourBitType::Nf4, block_size, double_quant)
            }
            BlockFormat::Fp4 { block_size, double_quant } => {
                four_bit::quantize(values, (rows, columns), FourBitType::Fp4, block_size, double_quant)
            }
            BlockFormat::Int8 => int8::quantize(values, rows, columns),
            BlockFormat::Ggml(ggml_type) => {
                let block = ggml_type.block_len();
                if !columns.is_multiple_of(block) {
                    return Err(QuantError::Blocks { columns, block, format: ggml_type });
                }
                Self::ggml(rows, columns, ggml_type, Bytes::new(ggml(values, ggml_type)?))
            }
        }
    }
}

fn ggml(values: &[f32], ggml_type: GgmlType) -> Result<Vec<u8>, QuantError> {
    match ggml_type {
        GgmlType::F32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        GgmlType::F16 => blocks(values, ggml_type, |[v]: &[f32; 1]| Some(half(*v)?.to_le_bytes())),
        GgmlType::BF16 => blocks(values, ggml_type, |[v]: &[f32; 1]| Some(bf16::from_f32(*v).to_le_bytes())),
        GgmlType::Q4_0 => blocks(values, ggml_type, legacy::q4_0),
        GgmlType::Q4_1 => blocks(values, ggml_type, legacy::q4_1),
        GgmlType::Q5_0 => blocks(values, ggml_type, legacy::q5_0),
        GgmlType::Q5_1 => blocks(values, ggml_type, legacy::q5_1),
        GgmlType::Q8_0 => blocks(values, ggml_type, legacy::q8_0),
        GgmlType::Q4K => blocks(values, ggml_type, k_quants::q4_k),
        GgmlType::Q5K => blocks(values, ggml_type, k_quants::q5_k),
        GgmlType::Q6K => blocks(values, ggml_type, k_quants::q6_k),
        GgmlType::Q2K | GgmlType::Q3K | GgmlType::Iq4Nl | GgmlType::Iq4Xs => {
            Err(QuantError::NotEncoded { format: ggml_type })
        }
    }
}

/// Block by block; `None` of `encode` is a scale beyond half precision.
fn blocks<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    format: GgmlType,
    encode: impl Fn(&[f32; LEN]) -> Option<[u8; BYTES]> + Sync,
) -> Result<Vec<u8>, QuantError> {
    let (blocks, _) = values.as_chunks::<LEN>();
    let mut bytes = vec![0; blocks.len() * BYTES];
    let (coded, _) = bytes.as_chunks_mut::<BYTES>();
    let each = coded.par_iter_mut().zip(blocks).enumerate().with_min_len(BLOCKS_OF_A_TASK);
    each.try_for_each(|(i, (coded, block))| {
        *coded = encode(block).ok_or(QuantError::Range { index: i * LEN, format })?;
        Ok(())
    })?;
    Ok(bytes)
}

/// The nearest half-precision number, where it is finite.
fn half(value: f32) -> Option<f16> {
    Some(f16::from_f32(value)).filter(|h| h.is_finite())
}
