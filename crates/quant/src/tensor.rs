//! A quantised matrix.

use crate::{Bytes, GgmlType};
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

/// Why a matrix cannot be coded, or coded bytes are none.
#[derive(Debug, thiserror::Error)]
pub enum QuantError {
    /// The bytes are not as many as the shape needs.
    #[error("{given} bytes of {what} for a matrix of {rows} x {columns}, which needs {needed}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// As given.
        given: usize,
        /// As needed.
        needed: usize,
    },
    /// Rows that are no whole blocks.
    #[error("rows of {columns} are no whole blocks of {block} elements, which {format} needs")]
    Blocks {
        /// Elements of a row.
        columns: usize,
        /// Elements of a block.
        block: usize,
        /// The type.
        format: GgmlType,
    },
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
    Ggml { ggml_type: GgmlType, bytes: Bytes },
}

impl QuantizedTensor {
    /// A matrix as it lies in a GGUF file, row by row.
    ///
    /// # Errors
    /// When rows are no whole blocks, or the bytes are too few or too many.
    pub fn ggml(rows: usize, columns: usize, ggml_type: GgmlType, bytes: Bytes) -> Result<Self, QuantError> {
        Ok(Self { rows, columns, data: Arc::new(Data::Ggml { ggml_type, bytes }) })
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// How it is coded.
    pub fn format(&self) -> BlockFormat {
        match &*self.data {
            Data::Ggml { ggml_type, .. } => BlockFormat::Ggml(*ggml_type),
        }
    }

    /// Bytes held, codes and scales together.
    pub fn bytes(&self) -> usize {
        match &*self.data {
            Data::Ggml { bytes, .. } => bytes.len(),
        }
    }
}
