//! `cargo bench -p taper-quant`: decoding and encoding, one thread, in elements a second. The products of `kernels` compile the decoders for
//! the machine's instruction set; here the set is that of the build (`RUSTFLAGS="-C target-cpu=x86-64-v3"`).

#![expect(clippy::unwrap_used, reason = "a bench may fail loudly")]

use divan::Bencher;
use divan::counter::ItemsCount;
use taper_quant::{BlockFormat, Bytes, GgmlType, QuantizedTensor};

const ROWS: usize = 64;
const COLUMNS: usize = 1024;

fn main() {
    divan::main();
}

fn values() -> Vec<f32> {
    (0..ROWS * COLUMNS).map(|i| ((i * 7919 % 65_537) as f32 / 65_537.0 - 0.5) * 0.1).collect()
}

fn format(name: &str) -> BlockFormat {
    match name {
        "NF4" => BlockFormat::Nf4 { block_size: 64, double_quant: false },
        "NF4 double" => BlockFormat::Nf4 { block_size: 64, double_quant: true },
        "FP4" => BlockFormat::Fp4 { block_size: 64, double_quant: false },
        "int8" => BlockFormat::Int8,
        name => BlockFormat::Ggml(GgmlType::ALL.into_iter().find(|t| t.name() == name).unwrap()),
    }
}

#[divan::bench(args = ["NF4", "NF4 double", "int8", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS"])]
fn decode(bencher: Bencher, name: &str) {
    let tensor = match format(name) {
        BlockFormat::Ggml(ggml_type) => {
            let length = ggml_type.bytes_of((ROWS * COLUMNS) as u64).unwrap() as usize;
            // Small bytes make small scales, and no subnormal ones.
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 64 + 1) as u8).collect();
            QuantizedTensor::ggml(ROWS, COLUMNS, ggml_type, Bytes::new(bytes)).unwrap()
        }
        format => QuantizedTensor::quantize(&values(), ROWS, COLUMNS, format).unwrap(),
    };
    let mut row = vec![0.0; COLUMNS];
    bencher.counter(ItemsCount::new(ROWS * COLUMNS)).bench_local(|| {
        for r in 0..ROWS {
            tensor.decode(r * COLUMNS, &mut row);
            divan::black_box(&row);
        }
    });
}

#[divan::bench(args = ["NF4", "NF4 double", "FP4", "int8", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])]
fn encode(bencher: Bencher, name: &str) {
    let (values, format) = (values(), format(name));
    bencher
        .counter(ItemsCount::new(ROWS * COLUMNS))
        .bench_local(|| QuantizedTensor::quantize(&values, ROWS, COLUMNS, format).unwrap());
}
