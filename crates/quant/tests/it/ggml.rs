//! `tests/golden/gguf/blocks`: bytes that the Python package `gguf` made, or random ones, and the values it reads from them.

use crate::support::{Golden, assert_same, decoded};
use proptest::prelude::*;
use taper_quant::{BlockFormat, Bytes, GgmlType, Parts, QuantError, QuantizedTensor};

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

#[test]
fn blocks_of_ggml_are_coded_to_the_bytes_of_gguf() {
    use GgmlType::{BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    let golden = Golden::open("gguf/blocks.safetensors");
    let (rows, columns) = golden.dims("input");
    for ggml_type in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16] {
        let format = BlockFormat::Ggml(ggml_type);
        let tensor = QuantizedTensor::quantize(&golden.floats("input"), rows, columns, format).unwrap();
        let Parts::Ggml(_, bytes) = tensor.parts() else { panic!("blocks") };
        assert_eq!(**bytes, golden.bytes(&format!("{ggml_type}.bytes")), "{ggml_type}");
    }
}

/// What the searching coders are held against: steps from the ends of each sub-block, and everything rounded once.
fn plain_rounding(values: &[f32], ggml_type: GgmlType) -> Vec<f32> {
    let round_to = |v: f32, unit: f32| if unit > 0.0 { (v / unit).round() * unit } else { 0.0 };
    // Sub-block, lowest and highest code, largest integer scale; Q6_K has no minima.
    let (len, low, high, scales) = match ggml_type {
        GgmlType::Q4K => (32, 0.0, 15.0, 63.0),
        GgmlType::Q5K => (32, 0.0, 31.0, 63.0),
        _ => (16, -32.0, 31.0, 127.0),
    };
    let step_and_min = |block: &[f32]| {
        let (min, max) = block.iter().fold((0.0_f32, 0.0_f32), |(min, max), v| (min.min(*v), max.max(*v)));
        if low < 0.0 { (max.max(-min) / high, 0.0) } else { ((max - min) / high, -min) }
    };
    let mut out = Vec::new();
    for super_block in values.chunks(256) {
        let wanted: Vec<_> = super_block.chunks(len).map(step_and_min).collect();
        let d = wanted.iter().fold(0.0_f32, |m, w| m.max(w.0)) / scales;
        let dmin = wanted.iter().fold(0.0_f32, |m, w| m.max(w.1)) / scales;
        for (block, (step, min)) in super_block.chunks(len).zip(wanted) {
            let (step, min) = (round_to(step, d), round_to(min, dmin));
            let code = |v: f32| if step > 0.0 { ((v + min) / step).round().clamp(low, high) } else { 0.0 };
            out.extend(block.iter().map(|v| code(*v) * step - min));
        }
    }
    out
}

fn mean_squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64
}

/// Near enough to a normal distribution: the sum of twelve uniform numbers of a counter that is hashed.
fn normal(count: usize) -> Vec<f32> {
    let uniform = |i: usize| {
        let mut x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|i| ((0..12).map(|j| uniform(i * 12 + j)).sum::<f32>() - 6.0) * 0.02).collect()
}

#[test]
fn the_searching_coders_are_better_than_rounding() {
    let values = normal(64 * 1024);
    // Measured: 0.811, 0.826 and 0.798 of the squared error of plain rounding.
    for (ggml_type, ratio) in [(GgmlType::Q4K, 0.83), (GgmlType::Q5K, 0.85), (GgmlType::Q6K, 0.82)] {
        let tensor = QuantizedTensor::quantize(&values, 64, 1024, BlockFormat::Ggml(ggml_type)).unwrap();
        let ours = mean_squared_error(&decoded(&tensor), &values);
        let plain = mean_squared_error(&plain_rounding(&values, ggml_type), &values);
        assert!(ours < ratio * plain, "{ggml_type}: {ours:e} against {plain:e}");
    }
}

#[test]
fn constant_blocks_of_every_coder_are_near_their_value() {
    for ggml_type in GgmlType::ALL {
        for value in [0.0, 0.75, -0.75, 1e-9, -3e4] {
            let format = BlockFormat::Ggml(ggml_type);
            let tensor = match QuantizedTensor::quantize(&[value; 512], 2, 256, format) {
                Ok(tensor) => tensor,
                Err(QuantError::NotEncoded { .. }) => continue,
                Err(e) => panic!("{ggml_type}: {e}"),
            };
            for v in decoded(&tensor) {
                assert!((v - value).abs() <= 0.01 * value.abs() + 1e-7, "{ggml_type}: {value} became {v}");
            }
        }
    }
}

#[test]
fn values_that_a_format_cannot_hold_are_refused() {
    let code = |value: f32, ggml_type| {
        let mut values = [1.0; 512];
        values[300] = value;
        QuantizedTensor::quantize(&values, 2, 256, BlockFormat::Ggml(ggml_type))
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = code(value, GgmlType::Q8_0);
        assert!(matches!(result, Err(QuantError::NotFinite { index: 300, .. })), "{result:?}");
    }
    for (ggml_type, index) in
        [(GgmlType::Q8_0, 288), (GgmlType::Q4K, 256), (GgmlType::Q6K, 256), (GgmlType::F16, 300)]
    {
        for value in [1e9, -1e9, 1e30, f32::MAX] {
            let result = code(value, ggml_type);
            assert!(
                matches!(result, Err(QuantError::Range { index: i, .. }) if i == index),
                "{ggml_type}: {result:?}"
            );
        }
    }
    let result = code(1.0, GgmlType::Q2K);
    assert!(matches!(result, Err(QuantError::NotEncoded { .. })), "{result:?}");
    let result = QuantizedTensor::quantize(&[0.0; 48], 1, 48, BlockFormat::Ggml(GgmlType::Q4_0));
    assert!(matches!(result, Err(QuantError::Blocks { .. })), "{result:?}");
    let result = QuantizedTensor::quantize(&[0.0; 48], 2, 23, BlockFormat::Int8);
    assert!(matches!(result, Err(QuantError::Length { .. })), "{result:?}");
}

proptest! {
    #[test]
    fn any_finite_values_are_coded_or_refused(values in proptest::collection::vec(
        prop_oneof![any::<f32>(), -1.0_f32..1.0, Just(0.0), -1e-38_f32..1e-38], 256,
    )) {
        let (block_size, double_quant) = (64, true);
        let formats = [
            BlockFormat::Int8,
            BlockFormat::Nf4 { block_size, double_quant },
            BlockFormat::Fp4 { block_size, double_quant },
        ];
        for format in GgmlType::ALL.into_iter().map(BlockFormat::Ggml).chain(formats) {
            if let Ok(tensor) = QuantizedTensor::quantize(&values, 1, 256, format) {
                prop_assert_eq!(tensor.format(), format);
                prop_assert_eq!(decoded(&tensor).len(), 256);
            }
        }
    }
}
