//! A quantised matrix.

use crate::four_bit::{Absmax, FourBit, FourBitType};
use crate::int8::Int8Rows;
use crate::{Bytes, GgmlType, QuantError};
use std::sync::Arc;

/// How a matrix is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 4-bit NormalFloat (Dettmers et al. 2023) in bitsandbytes' layout.
    Nf4 {
        /// Elements that share an absolute maximum.
        block_size: usize,
        /// Whether the absolute maxima are themselves coded in 8 bits.
        double_quant: bool,
    },
    /// 4-bit floats in bitsandbytes' layout.
    Fp4 {
        /// Elements that share an absolute maximum.
        block_size: usize,
        /// Whether the absolute maxima are themselves coded in 8 bits.
        double_quant: bool,
    },
    /// A byte an element and a scale a row: LLM.int8() (Dettmers et al. 2022) without its outliers.
    Int8,
    /// A block type of GGML.
    Ggml(GgmlType),
}

/// A matrix `[rows, columns]` in a [`BlockFormat`]; cheap to clone.
#[derive(Debug, Clone)]
pub struct QuantizedTensor {
    rows: usize,
    columns: usize,
    data: Arc<Data>,
}

#[derive(Debug)]
enum Data {
    FourBit(FourBit),
    Int8(Int8Rows),
    Ggml { ggml_type: GgmlType, bytes: Bytes },
}

/// What a writer stores.
#[derive(Debug, Clone, Copy)]
pub enum Parts<'a> {
    /// NF4 or FP4.
    FourBit(&'a FourBit),
    /// LLM.int8().
    Int8(&'a Int8Rows),
    /// Blocks of GGML, row by row.
    Ggml(GgmlType, &'a Bytes),
}

impl QuantizedTensor {
    /// Whether both are the same blocks in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.data, &other.data)
    }

    /// A matrix as it lies in a GGUF file, row by row. Types that are no blocks (F32, F16, BF16) are blocks of one element here.
    ///
    /// # Errors
    /// When rows are no whole blocks, or the bytes are too few or too many.
    pub fn ggml(rows: usize, columns: usize, ggml_type: GgmlType, bytes: Bytes) -> Result<Self, QuantError> {
        let needed = ggml_bytes(rows, columns, ggml_type)?;
        if bytes.len() != needed {
            return Err(QuantError::Length { what: "bytes", rows, columns, given: bytes.len(), needed });
        }
        Ok(Self { rows, columns, data: Arc::new(Data::Ggml { ggml_type, bytes }) })
    }

    /// A matrix in bitsandbytes' 4 bits, in the parts that its checkpoints store.
    ///
    /// - `block_size`: elements of the flattened matrix that share an absolute maximum; a power of two from 16 to 65536.
    /// - `packed`: two elements a byte, the first in the high nibble; half a byte is left over when the elements are odd in number.
    /// - `absmax`: one a block; the last block may be short.
    /// - `code`: what the nibbles stand for (`quant_map`); [`FourBitType::code`] is the standard one.
    ///
    /// # Errors
    /// When a buffer is too short or too long, or a block size is none of bitsandbytes'. Floats may have any value.
    pub fn four_bit(
        (rows, columns): (usize, usize),
        quant_type: FourBitType,
        block_size: usize,
        packed: Bytes,
        absmax: Absmax,
        code: [f32; 16],
    ) -> Result<Self, QuantError> {
        let matrix = FourBit::new((rows, columns), quant_type, block_size, packed, absmax, code)?;
        Ok(Self { rows, columns, data: Arc::new(Data::FourBit(matrix)) })
    }

    /// A matrix in LLM.int8()'s rows: `codes` signed bytes row by row, `scales` the absolute maximum of each row (`SCB`).
    ///
    /// # Errors
    /// When a buffer is too short or too long.
    pub fn int8(rows: usize, columns: usize, codes: Bytes, scales: Vec<f32>) -> Result<Self, QuantError> {
        let matrix = Int8Rows::new(rows, columns, codes, scales)?;
        Ok(Self { rows, columns, data: Arc::new(Data::Int8(matrix)) })
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        // The constructors have found that this is no overflow.
        self.rows * self.columns
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How it is coded.
    pub fn format(&self) -> BlockFormat {
        match &*self.data {
            Data::FourBit(m) => {
                let block_size = m.block_size();
                let double_quant = matches!(m.absmax(), Absmax::Double { .. });
                match m.quant_type() {
                    FourBitType::Nf4 => BlockFormat::Nf4 { block_size, double_quant },
                    FourBitType::Fp4 => BlockFormat::Fp4 { block_size, double_quant },
                }
            }
            Data::Int8(_) => BlockFormat::Int8,
            Data::Ggml { ggml_type, .. } => BlockFormat::Ggml(*ggml_type),
        }
    }

    /// Bytes held, codes and scales together.
    pub fn bytes(&self) -> usize {
        match &*self.data {
            Data::FourBit(m) => m.bytes(),
            Data::Int8(m) => m.bytes(),
            Data::Ggml { bytes, .. } => bytes.len(),
        }
    }

    /// The buffers, for a writer.
    pub fn parts(&self) -> Parts<'_> {
        match &*self.data {
            Data::FourBit(m) => Parts::FourBit(m),
            Data::Int8(m) => Parts::Int8(m),
            Data::Ggml { ggml_type, bytes } => Parts::Ggml(*ggml_type, bytes),
        }
    }

    /// Elements `start..start + out.len()` of the flattened matrix.
    ///
    /// A run may begin and end within a block; of a block of GGML that is wanted in part all is decoded, so runs of whole blocks
    /// (32 or 256 elements, [`GgmlType::block_len`]) are the fast ones. Inlined into its caller, so that it is compiled for the caller's
    /// instruction set.
    ///
    /// # Panics
    /// When the elements are outside.
    #[inline(always)]
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        let inside = start.checked_add(out.len()).is_some_and(|end| end <= self.len());
        assert!(inside, "{} elements from {start} on, of {}", out.len(), self.len());
        if out.is_empty() {
            return;
        }
        match &*self.data {
            Data::FourBit(m) => m.decode(start, out),
            Data::Int8(m) => m.decode(start, out),
            Data::Ggml { ggml_type, bytes } => crate::decode::ggml(*ggml_type, bytes, start, out),
        }
    }
}

/// Bytes of a matrix in a type of GGML.
fn ggml_bytes(rows: usize, columns: usize, ggml_type: GgmlType) -> Result<usize, QuantError> {
    let block = ggml_type.block_len();
    if !columns.is_multiple_of(block) {
        return Err(QuantError::Blocks { columns, block, format: ggml_type });
    }
    let too_large = QuantError::TooLarge { rows, columns };
    let Some(elements) = rows.checked_mul(columns) else { return Err(too_large) };
    let bytes = ggml_type.bytes_of(elements as u64).and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or(too_large)
}
