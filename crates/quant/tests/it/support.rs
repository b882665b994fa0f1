//! Tensors of the fixtures.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::path::PathBuf;
use taper_quant::QuantizedTensor;

/// A file of `tests/golden`.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(path: &str) -> Self {
        Self(read(path))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    pub(crate) fn dims(&self, name: &str) -> (usize, usize) {
        let tensors = self.tensors();
        let [rows, columns] = tensors.tensor(name).unwrap().shape().try_into().unwrap();
        (rows, columns)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap().data().to_vec()
    }

    pub(crate) fn dtype(&self, name: &str) -> Dtype {
        self.tensors().tensor(name).unwrap().dtype()
    }

    /// Floats of any width, in f32.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap();
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

/// A JSON file of `tests/golden`.
pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&read(path)).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the panic names the file")]
fn read(path: &str) -> Vec<u8> {
    let full = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(path);
    std::fs::read(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()))
}

pub(crate) fn decoded(tensor: &QuantizedTensor) -> Vec<f32> {
    let mut out = vec![0.0; tensor.len()];
    tensor.decode(0, &mut out);
    out
}

/// Equal bits, or both no number.
#[track_caller]
pub(crate) fn assert_same(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
            "{what}: element {i} is {a}, not {b}"
        );
    }
}
