use super::{decode, decode_bf16, dots};
use crate::testing::random;
use half::{bf16, f16};
use taper_quant::{BlockFormat, Bytes, GgmlType, QuantizedTensor};

const ROWS: usize = 6;
const COLUMNS: usize = 1024;

/// A matrix in each type that has a decoder here; Q5_0 is read and not written, so its bytes are made up, with finite scales.
fn matrices() -> Vec<(&'static str, QuantizedTensor)> {
    let made = |format| {
        QuantizedTensor::quantize(&random(ROWS * COLUMNS, 1), ROWS, COLUMNS, format).expect("a known format")
    };
    let mut bytes: Vec<u8> =
        (0..22 * (ROWS * COLUMNS / 32) as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(22).enumerate() {
        block[..2].copy_from_slice(&f16::from_f32(0.01 * i as f32 - 0.3).to_le_bytes());
    }
    let q5_0 = QuantizedTensor::ggml(ROWS, COLUMNS, GgmlType::Q5_0, Bytes::new(bytes)).expect("whole blocks");
    vec![
        ("nf4", made(BlockFormat::Nf4 { block_size: 64, double_quant: true })),
        ("fp4", made(BlockFormat::Fp4 { block_size: 32, double_quant: false })),
        ("nf4 in blocks of 256", made(BlockFormat::Nf4 { block_size: 256, double_quant: false })),
        ("q8_0", made(BlockFormat::Ggml(GgmlType::Q8_0))),
        ("q4_0", made(BlockFormat::Ggml(GgmlType::Q4_0))),
        ("q5_0", q5_0),
        ("q4_k", made(BlockFormat::Ggml(GgmlType::Q4K))),
        ("q5_k", made(BlockFormat::Ggml(GgmlType::Q5K))),
        ("q6_k", made(BlockFormat::Ggml(GgmlType::Q6K))),
    ]
}

/// Ranges of whole blocks, and some that are not.
const RANGES: [(usize, usize); 6] =
    [(0, ROWS * COLUMNS), (1024, 512), (256, 256), (512, 0), (16, 32), (0, 16)];

#[test]
fn what_is_decoded_is_what_quant_decodes() {
    for (name, w) in matrices() {
        for (start, len) in RANGES {
            let mut want = vec![0.0; len];
            w.decode(start, &mut want);
            let mut got = vec![f32::NAN; len];
            if decode(&w, start, &mut got) {
                assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits()), "{name} {start}");
            } else {
                assert!(got.iter().all(|v| v.is_nan()), "{name} {start}: nothing is written");
            }
        }
    }
}

#[test]
fn in_bf16_it_is_the_same_rounded() {
    for (name, w) in matrices() {
        for (start, len) in RANGES {
            let mut wide = vec![0.0; len];
            w.decode(start, &mut wide);
            let mut got = vec![bf16::NAN; len];
            if decode_bf16(&w, start, &mut got) {
                assert!(got.iter().zip(&wide).all(|(g, w)| *g == bf16::from_f32(*w)), "{name} {start}");
            } else {
                assert!(got.iter().all(|v| v.is_nan()), "{name} {start}: nothing is written");
            }
        }
    }
}

/// Against sums in `f64` over the rounded elements, for each number of rows of x that has a version, and one more.
#[test]
fn dot_products_are_those_of_what_is_decoded() {
    for (name, w) in matrices() {
        let mut wide = vec![0.0; ROWS * COLUMNS];
        w.decode(0, &mut wide);
        for t in 1..=9 {
            let x: Vec<bf16> = random(t * COLUMNS, 7).iter().map(|x| bf16::from_f32(*x)).collect();
            for features in [0..6, 1..5, 4..6, 5..6, 0..0] {
                let mut sums = vec![[f32::NAN; ROWS]; t];
                let done = dots(&w, features.clone(), &x, COLUMNS, |row, first, some| {
                    for (sums, some) in sums[row..].iter_mut().zip(some) {
                        let count = some.len().min(features.end - first);
                        sums[first..first + count].copy_from_slice(&some[..count]);
                    }
                });
                if !done {
                    continue;
                }
                for (x, sums) in x.chunks(COLUMNS).zip(&sums) {
                    for feature in features.clone() {
                        let row = &wide[feature * COLUMNS..][..COLUMNS];
                        let products =
                            x.iter().zip(row).map(|(x, w)| x.to_f64() * bf16::from_f32(*w).to_f64());
                        let (sum, want) = (f64::from(sums[feature]), products.clone().sum::<f64>());
                        let size: f64 = products.map(f64::abs).sum();
                        assert!((sum - want).abs() <= 1e-6 * size, "{name}: {sum} for {want}");
                    }
                }
            }
        }
        let x = vec![bf16::ZERO; COLUMNS];
        let nothing = |_: usize, _: usize, _: &[[f32; 4]]| panic!("{name}: nothing is computed");
        assert!(!dots(&w, ROWS - 1..ROWS + 1, &x, COLUMNS, nothing), "{name}: a row that is not there");
        assert!(!dots(&w, 0..1, &x[..48], 48, nothing), "{name}: rows that are no whole runs");
    }
}
