//! LLM.int8()'s rows as bitsandbytes codes them.

use crate::{Bytes, QuantError, QuantizedTensor};

pub(super) fn quantize(values: &[f32], rows: usize, columns: usize) -> Result<QuantizedTensor, QuantError> {
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = vec![0.0; rows];
    if columns > 0 {
        for (row, scale) in values.chunks_exact(columns).zip(&mut scales) {
            *scale = row.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            // torch's `127.0 / scale`: a reciprocal first. That of zero gives no number, which becomes zero.
            let factor = (1.0 / *scale) * 127.0;
            codes.extend(row.iter().map(|v| ((v * factor).round_ties_even() as i8).cast_unsigned()));
        }
    }
    QuantizedTensor::int8(rows, columns, Bytes::new(codes), scales)
}
