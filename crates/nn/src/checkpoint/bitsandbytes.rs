//! Matrices as bitsandbytes quantises them and transformers saves them.
//!
//! 4 bits: `X.weight` holds two codes a byte, of the flattened matrix; beside it lie `X.weight.absmax`, `X.weight.quant_map` and a JSON
//! object in `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`); with double quantisation `absmax` is in codes too, whose scales and table are
//! `X.weight.nested_absmax` and `X.weight.nested_quant_map`. 8 bits: `X.weight` in i8, and the absolute maximum of each row in `X.SCB`.
//! Source: `QuantState.as_dict` and `Int8Params` of bitsandbytes 0.50.

use super::{Checkpoint, CheckpointError, Element, Stored};
use candle_core::DType;
use serde::Deserialize;
use taper_hub::safetensors::Dtype;
use taper_quant::{Absmax, BlockFormat, Bytes, FourBitType, QuantizedTensor};

const STATE: &str = ".quant_state.bitsandbytes__";
/// What ends the name of a 4-bit matrix's state.
const KINDS: [&str; 2] = ["nf4", "fp4"];

/// The JSON beside a 4-bit matrix. `dtype` (what bitsandbytes would decode to) does not matter here.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The names of what lies beside tensor `name`, where anything does. By look-ups: a mixture of experts has tens of thousands of names.
pub(super) fn state_names(checkpoint: &Checkpoint, name: &str) -> Vec<String> {
    let mut names: Vec<String> = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"]
        .map(|part| format!("{name}.{part}"))
        .to_vec();
    names.extend(KINDS.map(|kind| format!("{name}{STATE}{kind}")));
    if let Some(path) = name.strip_suffix(".weight") {
        names.extend(["SCB", "weight_format"].map(|part| format!("{path}.{part}")));
    }
    names.retain(|name| checkpoint.contains(name));
    names
}

/// The quantised matrix `name`, when it is one.
pub(super) fn read(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<QuantizedTensor>, CheckpointError> {
    let Some(stored) = checkpoint.tensors.get(name) else { return Ok(None) };
    let keys = KINDS.map(|kind| format!("{name}{STATE}{kind}"));
    if let Some(key) = keys.iter().find(|key| checkpoint.contains(key)) {
        return Reader { checkpoint, name, stored }.four_bit(key, shape).map(Some);
    }
    if matches!(stored.element, Element::Plain(Dtype::I8)) {
        return Reader { checkpoint, name, stored }.int8(shape).map(Some);
    }
    Ok(None)
}

/// What the matrix `name` is coded in, when it is.
pub(super) fn format(checkpoint: &Checkpoint, name: &str) -> Option<BlockFormat> {
    let stored = checkpoint.tensors.get(name)?;
    if matches!(stored.element, Element::Plain(Dtype::I8)) {
        return Some(BlockFormat::Int8);
    }
    KINDS.into_iter().find_map(|kind| {
        let state = checkpoint.tensors.get(&format!("{name}{STATE}{kind}"))?;
        let state: QuantState = serde_json::from_slice(checkpoint.bytes(state)).ok()?;
        let absmax = checkpoint.tensors.get(&format!("{name}.absmax"))?;
        let (block_size, double_quant) =
            (state.blocksize, matches!(absmax.element, Element::Plain(Dtype::U8)));
        Some(match kind {
            "nf4" => BlockFormat::Nf4 { block_size, double_quant },
            _ => BlockFormat::Fp4 { block_size, double_quant },
        })
    })
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    stored: &'a Stored,
}

impl Reader<'_> {
    fn four_bit(&self, key: &str, [rows, columns]: [usize; 2]) -> Result<QuantizedTensor, CheckpointError> {
        let text = self.checkpoint.bytes(self.checkpoint.find(key)?);
        let state: QuantState =
            serde_json::from_slice(text).map_err(|e| self.broken(format!("`{key}`: {e}")))?;
        if state.shape != [rows, columns] {
            return Err(CheckpointError::Shape {
                tensor: self.name.into(),
                path: self.checkpoint.path_of(self.stored).into(),
                given: state.shape,
                expected: vec![rows, columns],
            });
        }
        let kind = match state.quant_type.as_str() {
            "nf4" => FourBitType::Nf4,
            "fp4" => FourBitType::Fp4,
            other => {
                let other: String = other.chars().take(32).collect();
                return Err(self.broken(format!("quant_type `{}`", other.escape_debug())));
            }
        };
        let code = self.table::<16>("quant_map")?;
        let absmax = self.absmax(&state)?;
        let packed = self.checkpoint.mapped(self.stored);
        QuantizedTensor::four_bit((rows, columns), kind, state.blocksize, packed, absmax, code)
            .map_err(|source| self.checkpoint.not_quantized(self.name, self.stored, source))
    }

    fn absmax(&self, state: &QuantState) -> Result<Absmax, CheckpointError> {
        let absmax = format!("{}.absmax", self.name);
        let stored = self.checkpoint.find(&absmax)?;
        if !matches!(stored.element, Element::Plain(Dtype::U8)) {
            return Ok(Absmax::Plain(self.floats(&absmax)?));
        }
        let (Some(nested_block_size), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return Err(self.broken(
                "`absmax` is in codes, and `nested_blocksize` or `nested_offset` is missing".into(),
            ));
        };
        Ok(Absmax::Double {
            codes: Bytes::new(self.checkpoint.bytes(stored).to_vec()),
            nested_absmax: self.floats(&format!("{}.nested_absmax", self.name))?,
            nested_block_size,
            nested_code: Box::new(self.table::<256>("nested_quant_map")?),
            offset,
        })
    }

    fn int8(&self, [rows, columns]: [usize; 2]) -> Result<QuantizedTensor, CheckpointError> {
        self.checkpoint.expect_shape(self.name, &[rows, columns])?;
        let path = self.name.strip_suffix(".weight").unwrap_or(self.name);
        let scale = format!("{path}.SCB");
        if !self.checkpoint.contains(&scale) {
            return Err(self.broken(format!("it is stored as I8, and there is no `{scale}`")));
        }
        // Other layouts belonged to GPUs' matrix units; transformers saves rows.
        let format = format!("{path}.weight_format");
        if self.checkpoint.contains(&format) && self.checkpoint.bytes(self.checkpoint.find(&format)?) != [0] {
            return Err(self.broken(format!("`{format}` is not 0, which is row-major")));
        }
        let codes = self.checkpoint.mapped(self.stored);
        QuantizedTensor::int8(rows, columns, codes, self.floats(&scale)?)
            .map_err(|source| self.checkpoint.not_quantized(self.name, self.stored, source))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.checkpoint.weight(name, Some(DType::F32))?;
        let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
        values.map_err(|source| CheckpointError::Candle { tensor: name.into(), source })
    }

    fn table<const N: usize>(&self, part: &str) -> Result<[f32; N], CheckpointError> {
        let values = self.floats(&format!("{}.{part}", self.name))?;
        let len = values.len();
        values.try_into().map_err(|_| self.broken(format!("`{part}` has {len} entries, not {N}")))
    }

    fn broken(&self, reason: String) -> CheckpointError {
        CheckpointError::State {
            tensor: self.name.into(),
            path: self.checkpoint.path_of(self.stored).into(),
            reason,
        }
    }
}
