//! LLM.int8()'s rows: a byte an element, an absolute maximum a row.
//!
//! An element is `code * scale[row] * (1 / 127)`, multiplied in this order, in f32.
//!
//! Source: Dettmers et al. 2022 ("LLM.int8()"); the constant is bitsandbytes' own reciprocal.

use crate::{Bytes, QuantError};

/// What bitsandbytes multiplies by instead of dividing by 127.
pub(crate) const RECIPROCAL: f32 = 7.874_016e-3;

/// A matrix in bytes, in the parts that a checkpoint stores.
#[derive(Debug)]
pub struct Int8Rows {
    columns: usize,
    codes: Bytes,
    scales: Vec<f32>,
}

impl Int8Rows {
    pub(crate) fn new(
        rows: usize,
        columns: usize,
        codes: Bytes,
        scales: Vec<f32>,
    ) -> Result<Self, QuantError> {
        let needed = rows.checked_mul(columns).ok_or(QuantError::TooLarge { rows, columns })?;
        if codes.len() != needed {
            return Err(QuantError::Length { what: "codes", rows, columns, given: codes.len(), needed });
        }
        if scales.len() != rows {
            return Err(QuantError::Length {
                what: "scales",
                rows,
                columns,
                given: scales.len(),
                needed: rows,
            });
        }
        Ok(Self { columns, codes, scales })
    }

    /// Signed bytes, row by row.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// The absolute maximum of each row: a checkpoint's `SCB`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&*self.scales)
    }

    #[inline(always)]
    pub(crate) fn decode(&self, start: usize, mut out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let mut codes = &self.codes[start..start + out.len()];
        let (mut row, skip) = (start / self.columns, start % self.columns);
        let mut length = (self.columns - skip).min(out.len());
        while !out.is_empty() {
            let (here, rest) = out.split_at_mut(length);
            let (bytes, rest_codes) = codes.split_at(length);
            let scale = self.scales[row];
            for (value, byte) in here.iter_mut().zip(bytes) {
                *value = f32::from(byte.cast_signed()) * scale * RECIPROCAL;
            }
            (out, codes) = (rest, rest_codes);
            row += 1;
            length = self.columns.min(out.len());
        }
    }
}
