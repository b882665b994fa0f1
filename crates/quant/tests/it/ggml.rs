//! `tests/golden/gguf/blocks`: bytes that the Python package `gguf` made, or random ones, and the values it reads from them.

use crate::support::{Golden, assert_same, decoded};
use taper_quant::{Bytes, GgmlType, QuantizedTensor};

#[test]
fn blocks_of_ggml_have_the_values_that_gguf_reads() {
    let golden = Golden::open("gguf/blocks.safetensors");
    let mut seen = 0;
    for ggml_type in GgmlType::ALL {
        let name = ggml_type.name();
        if !golden.has(&format!("{name}.bytes")) {
            continue;
        }
        let (rows, columns) = golden.dims(&format!("{name}.values"));
        let bytes = Bytes::new(golden.bytes(&format!("{name}.bytes")));
        let tensor = QuantizedTensor::ggml(rows, columns, ggml_type, bytes).unwrap();
        assert_same(&decoded(&tensor), &golden.floats(&format!("{name}.values")), name);
        seen += 1;
    }
    assert_eq!(seen, 13, "all types but F32 and F16");
}
