//! The fast decoders give the bits of the plain one, on any bytes and for any run.

use crate::support::assert_same;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};
use taper_quant::{Absmax, Bytes, FourBitType, GgmlType, QuantizedTensor, plain};

/// Runs of all kinds: `start` and `length` are cut to what there is.
fn same_as_plain(tensor: &QuantizedTensor, start: usize, length: usize) -> TestCaseResult {
    let start = start % (tensor.len() + 1);
    let length = length % (tensor.len() - start + 1);
    let (mut fast, mut slow) = (vec![7.0; length], vec![8.0; length]);
    tensor.decode(start, &mut fast);
    plain::decode(tensor, start, &mut slow);
    assert_same(&fast, &slow, &format!("{:?}, {length} from {start} on", tensor.format()));
    Ok(())
}

fn bytes(length: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), length).prop_map(Bytes::new)
}

fn floats(length: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(any::<f32>(), length)
}

fn run() -> impl Strategy<Value = (usize, usize)> {
    (any::<usize>(), any::<usize>())
}

#[test]
fn every_type_of_ggml_decodes_as_the_plain_decoder_does() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    for ggml_type in GgmlType::ALL {
        let columns = 3 * ggml_type.block_len();
        let length = ggml_type.bytes_of(2 * columns as u64).unwrap() as usize;
        let case = |(bytes, (start, length))| {
            let tensor = QuantizedTensor::ggml(2, columns, ggml_type, bytes).unwrap();
            same_as_plain(&tensor, 0, tensor.len())?;
            same_as_plain(&tensor, start, length)
        };
        TestRunner::new(config.clone()).run(&(bytes(length), run()), case).unwrap();
    }
}

proptest! {
    #[test]
    fn four_bits_decode_as_the_plain_decoder_does(
        (rows, columns, packed, absmax) in (1_usize..5, 1_usize..150).prop_flat_map(|(rows, columns)| {
            let elements = rows * columns;
            (Just(rows), Just(columns), bytes(elements.div_ceil(2)), floats(elements.div_ceil(32)))
        }),
        code in proptest::array::uniform16(any::<f32>()),
        (start, length) in run(),
    ) {
        let absmax = Absmax::Plain(absmax);
        let tensor = QuantizedTensor::four_bit((rows, columns), FourBitType::Nf4, 32, packed, absmax, code).unwrap();
        same_as_plain(&tensor, start, length)?;
    }

    #[test]
    fn double_quantised_blocks_decode_as_the_plain_decoder_does(
        packed in bytes(2 * 1000),
        codes in bytes(63),
        nested_absmax in floats(4),
        nested_code in proptest::collection::vec(any::<f32>(), 256),
        offset in any::<f32>(),
        (start, length) in run(),
    ) {
        let nested_code = nested_code.into_boxed_slice().try_into().unwrap();
        let absmax = Absmax::Double { codes, nested_absmax, nested_block_size: 16, nested_code, offset };
        let code = FourBitType::Fp4.code();
        let tensor = QuantizedTensor::four_bit((4, 1000), FourBitType::Fp4, 64, packed, absmax, code).unwrap();
        same_as_plain(&tensor, start, length)?;
    }

    #[test]
    fn rows_of_bytes_decode_as_the_plain_decoder_does(
        (rows, columns, codes, scales) in (1_usize..6, 1_usize..100).prop_flat_map(|(rows, columns)| {
            (Just(rows), Just(columns), bytes(rows * columns), floats(rows))
        }),
        (start, length) in run(),
    ) {
        let tensor = QuantizedTensor::int8(rows, columns, codes, scales).unwrap();
        same_as_plain(&tensor, start, length)?;
    }
}
