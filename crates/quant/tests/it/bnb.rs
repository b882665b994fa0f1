//! `tests/golden/quant`: what bitsandbytes 0.50.2 codes, and the values its codes stand for.

use crate::support::{Golden, assert_same, decoded, json};
use half::{bf16, f16};
use safetensors::Dtype;
use taper_quant::{Absmax, BlockFormat, Bytes, FourBitType, Parts, QuantizedTensor, dynamic};

/// One coded tensor of `q4`.
struct Case {
    /// For example `w.nf4.double.b64`.
    name: String,
    /// The tensor it was made of.
    input: String,
    quant_type: FourBitType,
    block_size: usize,
    double_quant: bool,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for input in ["w", "wbf16", "wf16", "outlier", "zeros", "odd"] {
            for (kind, quant_type) in [("nf4", FourBitType::Nf4), ("fp4", FourBitType::Fp4)] {
                for (nest, double_quant) in [("plain", false), ("double", true)] {
                    for block_size in if input == "w" { vec![64, 128] } else { vec![64] } {
                        let name = format!("{input}.{kind}.{nest}.b{block_size}");
                        let input = format!("{input}.input");
                        cases.push(Self { name, input, quant_type, block_size, double_quant });
                    }
                }
            }
        }
        cases
    }

    fn format(&self) -> BlockFormat {
        let Self { block_size, double_quant, .. } = *self;
        match self.quant_type {
            FourBitType::Nf4 => BlockFormat::Nf4 { block_size, double_quant },
            FourBitType::Fp4 => BlockFormat::Fp4 { block_size, double_quant },
        }
    }

    /// As the fixture has it.
    fn tensor(&self, golden: &Golden) -> QuantizedTensor {
        let of = |part: &str| format!("{}.{part}", self.name);
        let absmax = if self.double_quant {
            Absmax::Double {
                codes: Bytes::new(golden.bytes(&of("absmax"))),
                nested_absmax: golden.floats(&of("nested_absmax")),
                nested_block_size: 256,
                nested_code: golden.floats("code.nested").into_boxed_slice().try_into().unwrap(),
                offset: self.offset(),
            }
        } else {
            Absmax::Plain(golden.floats(&of("absmax")))
        };
        let code = match self.quant_type {
            FourBitType::Nf4 => golden.floats("code.nf4"),
            FourBitType::Fp4 => golden.floats("code.fp4"),
        };
        let packed = Bytes::new(golden.bytes(&of("packed")));
        let dims = golden.dims(&self.input);
        QuantizedTensor::four_bit(
            dims,
            self.quant_type,
            self.block_size,
            packed,
            absmax,
            code.try_into().unwrap(),
        )
        .unwrap()
    }

    fn offset(&self) -> f32 {
        json("quant/q4.json")[&self.name]["offset"].as_f64().unwrap() as f32
    }
}

#[test]
fn four_bit_tensors_have_the_values_of_bitsandbytes() {
    let golden = Golden::open("quant/q4.safetensors");
    for case in Case::all() {
        let tensor = case.tensor(&golden);
        assert_eq!(tensor.format(), case.format());
        let name = format!("{}.dequant", case.name);
        // The fixture has the input's type.
        let ours: Vec<f32> = match golden.dtype(&name) {
            Dtype::BF16 => decoded(&tensor).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect(),
            Dtype::F16 => decoded(&tensor).into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
            _ => decoded(&tensor),
        };
        assert_same(&ours, &golden.floats(&name), &case.name);
    }
}

#[test]
fn the_standard_tables_are_those_of_bitsandbytes() {
    let golden = Golden::open("quant/q4.safetensors");
    assert_same(&FourBitType::Nf4.code(), &golden.floats("code.nf4"), "nf4");
    assert_same(&FourBitType::Fp4.code(), &golden.floats("code.fp4"), "fp4");
}

#[test]
fn rows_of_bytes_have_the_values_of_bitsandbytes() {
    let golden = Golden::open("quant/q8.safetensors");
    let (rows, columns) = golden.dims("int8.q");
    let codes = Bytes::new(golden.bytes("int8.q"));
    let tensor = QuantizedTensor::int8(rows, columns, codes, golden.floats("int8.scb")).unwrap();
    assert_same(&decoded(&tensor), &golden.floats("int8.dequant"), "int8");
}

#[test]
fn four_bits_are_coded_to_the_bits_of_bitsandbytes() {
    let golden = Golden::open("quant/q4.safetensors");
    for case in Case::all() {
        let (rows, columns) = golden.dims(&case.input);
        let values = golden.floats(&case.input);
        let ours = QuantizedTensor::quantize(&values, rows, columns, case.format()).unwrap();
        let theirs = case.tensor(&golden);
        let (Parts::FourBit(a), Parts::FourBit(b)) = (ours.parts(), theirs.parts()) else {
            panic!("four bits")
        };
        assert_eq!(**a.packed(), **b.packed(), "{}", case.name);
        match (a.absmax(), b.absmax()) {
            (Absmax::Plain(a), Absmax::Plain(b)) => assert_same(a, b, &case.name),
            (
                Absmax::Double { codes, nested_absmax, nested_block_size, nested_code, offset },
                Absmax::Double {
                    codes: codes_b,
                    nested_absmax: nested_absmax_b,
                    nested_block_size: nested_block_size_b,
                    nested_code: nested_code_b,
                    offset: offset_b,
                },
            ) => {
                assert_same(&[*offset], &[*offset_b], &case.name);
                assert_eq!(**codes, **codes_b, "{}", case.name);
                assert_same(nested_absmax, nested_absmax_b, &case.name);
                assert_same(&**nested_code, &**nested_code_b, &case.name);
                assert_eq!(nested_block_size, nested_block_size_b);
            }
            _ => panic!("{}: one has nested maxima, the other has none", case.name),
        }
    }
}

#[test]
fn rows_of_bytes_are_coded_to_the_bits_of_bitsandbytes() {
    let golden = Golden::open("quant/q8.safetensors");
    let (rows, columns) = golden.dims("input");
    // The fixture gave the coder half precision.
    let values: Vec<f32> = golden.floats("input").into_iter().map(|v| f16::from_f32(v).to_f32()).collect();
    let tensor = QuantizedTensor::quantize(&values, rows, columns, BlockFormat::Int8).unwrap();
    let Parts::Int8(parts) = tensor.parts() else { panic!("bytes") };
    assert_eq!(**parts.codes(), golden.bytes("int8.q"));
    assert_same(parts.scales(), &golden.floats("int8.scb"), "scales");
}

#[test]
fn a_row_of_zeros_is_coded_in_zeros() {
    let values = [0.0, 0.0, 1.0, -2.0];
    let tensor = QuantizedTensor::quantize(&values, 2, 2, BlockFormat::Int8).unwrap();
    let Parts::Int8(parts) = tensor.parts() else { panic!("bytes") };
    assert_eq!(**parts.codes(), [0, 0, 64, 129]);
    assert_eq!(parts.scales(), [0.0, 2.0]);
}

#[test]
fn the_dynamic_maps_are_those_of_bitsandbytes() {
    let golden = Golden::open("quant/q8.safetensors");
    assert_same(&dynamic::map(true), &golden.floats("dynamic_map_signed"), "signed");
    assert_same(&dynamic::map(false), &golden.floats("dynamic_map_unsigned"), "unsigned");
}

#[test]
fn blocks_of_eight_bits_are_coded_to_the_bits_of_bitsandbytes() {
    let golden = Golden::open("quant/q8.safetensors");
    for block_size in [256, 4096] {
        let (codes, absmax) = dynamic::quantize(&golden.floats("input"), block_size, &dynamic::map(true));
        assert_eq!(codes, golden.bytes(&format!("blockwise{block_size}.q")), "{block_size}");
        assert_same(&absmax, &golden.floats(&format!("blockwise{block_size}.absmax")), "absmax");
    }
}
