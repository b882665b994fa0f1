//! What is no matrix is refused.

use taper_quant::{Absmax, Bytes, FourBitType, GgmlType, QuantError, QuantizedTensor};

fn zeros(length: usize) -> Bytes {
    Bytes::new(vec![0_u8; length])
}

fn nf4(
    dims: (usize, usize),
    block_size: usize,
    packed: usize,
    absmax: Absmax,
) -> Result<QuantizedTensor, QuantError> {
    QuantizedTensor::four_bit(
        dims,
        FourBitType::Nf4,
        block_size,
        zeros(packed),
        absmax,
        FourBitType::Nf4.code(),
    )
}

fn double(codes: usize, nested_absmax: usize, nested_block_size: usize) -> Absmax {
    let (codes, nested_absmax) = (zeros(codes), vec![0.0; nested_absmax]);
    Absmax::Double { codes, nested_absmax, nested_block_size, nested_code: Box::new([0.0; 256]), offset: 0.0 }
}

#[test]
fn buffers_of_another_length_are_refused() {
    let wrong = |result: Result<QuantizedTensor, QuantError>| {
        assert!(matches!(result, Err(QuantError::Length { .. })), "{result:?}");
    };
    for given in [0, 17, 19, 36] {
        wrong(QuantizedTensor::ggml(1, 32, GgmlType::Q4_0, zeros(given)));
    }
    for given in [0, 5, 7] {
        wrong(QuantizedTensor::int8(2, 3, zeros(given), vec![1.0; 2]));
        wrong(QuantizedTensor::int8(2, 3, zeros(6), vec![1.0; given]));
        wrong(nf4((1, 11), 32, given, Absmax::Plain(vec![1.0])));
    }
    wrong(nf4((1, 11), 32, 6, Absmax::Plain(vec![])));
    wrong(nf4((1, 33), 32, 17, Absmax::Plain(vec![1.0])));
    wrong(nf4((1, 11), 32, 6, double(2, 1, 256)));
    wrong(nf4((1, 11), 32, 6, double(1, 0, 256)));
    wrong(nf4((17, 32), 32, 272, double(17, 1, 16)));
    assert!(nf4((17, 32), 32, 272, double(17, 2, 16)).is_ok());
}

#[test]
fn shapes_that_are_no_blocks_are_refused() {
    let result = QuantizedTensor::ggml(4, 48, GgmlType::Q4_0, zeros(108));
    assert!(matches!(result, Err(QuantError::Blocks { columns: 48, block: 32, .. })), "{result:?}");
    for block_size in [0, 1, 8, 48, 1 << 17, usize::MAX] {
        let result = nf4((1, 2), block_size, 1, Absmax::Plain(vec![1.0]));
        assert!(matches!(result, Err(QuantError::BlockSize { .. })), "{result:?}");
        let result = nf4((1, 2), 64, 1, double(1, 1, block_size));
        assert!(matches!(result, Err(QuantError::BlockSize { .. })), "{result:?}");
    }
}

#[test]
fn sizes_beyond_all_reason_are_refused() {
    let huge = 1 << 40;
    let too_large = |result: Result<QuantizedTensor, QuantError>| {
        assert!(matches!(result, Err(QuantError::TooLarge { .. })), "{result:?}");
    };
    too_large(QuantizedTensor::ggml(huge, huge, GgmlType::Q4K, zeros(0)));
    too_large(QuantizedTensor::ggml(1 << 31, 1 << 32, GgmlType::F32, zeros(0)));
    too_large(QuantizedTensor::int8(huge, huge, zeros(0), vec![]));
    too_large(nf4((huge, huge), 64, 0, Absmax::Plain(vec![])));
}

#[test]
fn a_matrix_without_elements_is_a_matrix() {
    for tensor in [
        QuantizedTensor::ggml(0, 32, GgmlType::Q4_0, zeros(0)).unwrap(),
        QuantizedTensor::ggml(3, 0, GgmlType::Q4K, zeros(0)).unwrap(),
        QuantizedTensor::int8(2, 0, zeros(0), vec![0.0; 2]).unwrap(),
        nf4((0, 5), 64, 0, Absmax::Plain(vec![])).unwrap(),
    ] {
        assert!(tensor.is_empty());
        tensor.decode(0, &mut []);
    }
}

#[test]
#[should_panic(expected = "2 elements from 31 on, of 32")]
fn elements_outside_are_a_panic_that_says_so() {
    QuantizedTensor::ggml(1, 32, GgmlType::Q8_0, zeros(34)).unwrap().decode(31, &mut [0.0; 2]);
}
