//! Throughput of the kernels on one and two threads. For products and attention an item is a floating-point operation (so Gitem/s is
//! GFLOP/s); for the elementwise kernels the rate is that of the bytes read and written.
//!
//! `cargo bench -p taper-kernels`, on an otherwise idle machine.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use half::bf16;
use taper_kernels::activation::{self, Gate};
use taper_kernels::attention::{AttentionShape, Segment, attention_backward, attention_forward};
use taper_kernels::floats::{Floats, FloatsMut};
use taper_kernels::gemm::{WeightView, linear_backward_input, linear_backward_weight, linear_forward};
use taper_kernels::linear::{self, Precision};
use taper_kernels::{cross_entropy, norm, rng::CounterRng};
use taper_quant::{BlockFormat, GgmlType, QuantizedTensor};

const THREADS: [usize; 2] = [1, 2];
const T: usize = 512;
const H: usize = 2048;

fn main() {
    divan::main();
}

fn random(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    CounterRng::new(1, n as u64).fill_uniform(0, -1.0, 1.0, &mut x);
    x
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Runs `f` in a pool of `threads`, each of whose runs is counted as `flops`.
fn bench_flops(bencher: Bencher<'_, '_>, threads: usize, flops: usize, mut f: impl FnMut() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    bencher.counter(ItemsCount::new(flops)).bench_local(|| pool.install(&mut f));
}

fn bench_bytes(bencher: Bencher<'_, '_>, threads: usize, floats: usize, mut f: impl FnMut() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    bencher.counter(BytesCount::new(4 * floats)).bench_local(|| pool.install(&mut f));
}

#[divan::bench(args = THREADS)]
fn linear_forward_512x2048x2048_f32(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(T * H), random(H * H), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        linear_forward(&x, WeightView::F32(&w), None, &mut y, T, H, H);
    });
}

#[divan::bench(args = THREADS)]
fn linear_forward_512x2048x2048_bf16(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(T * H), narrow(&random(H * H)), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        linear_forward(&x, WeightView::BF16(&w), None, &mut y, T, H, H);
    });
}

#[divan::bench(args = THREADS)]
fn linear_backward_input_512x2048x2048_f32(bencher: Bencher<'_, '_>, threads: usize) {
    let (g, w, mut dx) = (random(T * H), random(H * H), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        linear_backward_input(&g, WeightView::F32(&w), &mut dx, T, H, H, false);
    });
}

#[divan::bench(args = THREADS)]
fn linear_backward_input_512x2048x2048_bf16(bencher: Bencher<'_, '_>, threads: usize) {
    let (g, w, mut dx) = (random(T * H), narrow(&random(H * H)), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        linear_backward_input(&g, WeightView::BF16(&w), &mut dx, T, H, H, false);
    });
}

/// The rate that a whole training step in bf16 is held against.
#[divan::bench(args = THREADS)]
fn bf16_product_512x2048x2048(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (narrow(&random(T * H)), narrow(&random(H * H)), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        let y = FloatsMut::F32(&mut y);
        linear::forward(Floats::BF16(&x), WeightView::BF16(&w), None, y, T, H, H);
    });
}

#[divan::bench(args = THREADS)]
fn bf16_input_gradient_512x2048x2048(bencher: Bencher<'_, '_>, threads: usize) {
    let (g, w, mut dx) = (random(T * H), narrow(&random(H * H)), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || {
        linear::backward_input(Precision::BF16, &g, WeightView::BF16(&w), &mut dx, T, H, H, false);
    });
}

/// The block formats that are trained over most; decoding is within the product.
const FORMATS: [(&str, BlockFormat); 4] = [
    ("nf4", BlockFormat::Nf4 { block_size: 64, double_quant: true }),
    ("q8_0", BlockFormat::Ggml(GgmlType::Q8_0)),
    ("q4_k", BlockFormat::Ggml(GgmlType::Q4K)),
    ("q6_k", BlockFormat::Ggml(GgmlType::Q6K)),
];

fn coded(name: &str, rows: usize, columns: usize) -> QuantizedTensor {
    let format = FORMATS.iter().find(|(n, _)| *n == name).expect("a format").1;
    QuantizedTensor::quantize(&random(rows * columns), rows, columns, format).expect("whole blocks")
}

/// The labels of a case that divan prints.
struct Case(&'static str, usize);

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} threads", self.0, self.1)
    }
}

fn cases() -> Vec<Case> {
    FORMATS.iter().flat_map(|(name, _)| THREADS.map(|threads| Case(name, threads))).collect()
}

#[divan::bench(args = cases())]
fn linear_forward_512x2048x2048_quantised(bencher: Bencher<'_, '_>, case: &Case) {
    let (x, w, mut y) = (random(T * H), coded(case.0, H, H), vec![0.0; T * H]);
    bench_flops(bencher, case.1, 2 * T * H * H, || {
        linear_forward(&x, WeightView::Quantized(&w), None, &mut y, T, H, H);
    });
}

#[divan::bench(args = cases())]
fn linear_backward_input_512x2048x2048_quantised(bencher: Bencher<'_, '_>, case: &Case) {
    let (g, w, mut dx) = (random(T * H), coded(case.0, H, H), vec![0.0; T * H]);
    bench_flops(bencher, case.1, 2 * T * H * H, || {
        linear_backward_input(&g, WeightView::Quantized(&w), &mut dx, T, H, H, false);
    });
}

/// Decoding: an item is a floating-point operation here too, two a weight.
#[divan::bench(args = cases())]
fn linear_forward_1x2048x8192_quantised(bencher: Bencher<'_, '_>, case: &Case) {
    let (x, w, mut y) = (random(H), coded(case.0, 4 * H, H), vec![0.0; 4 * H]);
    bench_flops(bencher, case.1, 8 * H * H, || {
        linear_forward(&x, WeightView::Quantized(&w), None, &mut y, 1, H, 4 * H);
    });
}

#[divan::bench(args = THREADS)]
fn linear_backward_weight_512x2048x2048(bencher: Bencher<'_, '_>, threads: usize) {
    let (g, x, mut dw) = (random(T * H), random(T * H), vec![0.0; H * H]);
    bench_flops(bencher, threads, 2 * T * H * H, || linear_backward_weight(&g, &x, &mut dw, T, H, H, false));
}

/// The products of an adapter: narrow, 8 outputs or 8 inputs.
#[divan::bench(args = THREADS)]
fn linear_forward_512x2048x8_f32(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(T * H), random(8 * H), vec![0.0; T * 8]);
    bench_flops(bencher, threads, 2 * T * H * 8, || {
        linear_forward(&x, WeightView::F32(&w), None, &mut y, T, H, 8);
    });
}

#[divan::bench(args = THREADS)]
fn linear_forward_512x8x2048_f32(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(T * 8), random(8 * H), vec![0.0; T * H]);
    bench_flops(bencher, threads, 2 * T * H * 8, || {
        linear_forward(&x, WeightView::F32(&w), None, &mut y, T, 8, H);
    });
}

#[divan::bench(args = THREADS)]
fn linear_backward_weight_512x2048x8(bencher: Bencher<'_, '_>, threads: usize) {
    let (g, x, mut dw) = (random(T * 8), random(T * H), vec![0.0; 8 * H]);
    bench_flops(bencher, threads, 2 * T * H * 8, || linear_backward_weight(&g, &x, &mut dw, T, H, 8, false));
}

/// One row, as in decoding: bound by reading the weights.
#[divan::bench(args = THREADS)]
fn linear_forward_1x2048x8192_f32(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(H), random(4 * H * H), vec![0.0; 4 * H]);
    bench_bytes(bencher, threads, 4 * H * H, || {
        linear_forward(&x, WeightView::F32(&w), None, &mut y, 1, H, 4 * H);
    });
}

#[divan::bench(args = THREADS)]
fn linear_forward_1x2048x8192_bf16(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y) = (random(H), narrow(&random(4 * H * H)), vec![0.0; 4 * H]);
    bench_bytes(bencher, threads, 2 * H * H, || {
        linear_forward(&x, WeightView::BF16(&w), None, &mut y, 1, H, 4 * H);
    });
}

const ATTENTION: AttentionShape =
    AttentionShape { heads: 16, kv_heads: 8, head_dim: 64, scale: 0.125, window: None, soft_cap: None };
const WHOLE: [Segment; 1] = [Segment { q_start: 0, q_len: 1024 }];
/// Products with half of the scores masked: 2 D (n^2 / 2) a head and product.
const ATTENTION_PRODUCT: usize = 16 * 64 * 1024 * 1024;

#[divan::bench(args = THREADS)]
fn attention_forward_1024_16x64(bencher: Bencher<'_, '_>, threads: usize) {
    let (q, k, v) = (random(1024 * 1024), random(1024 * 512), random(1024 * 512));
    let (mut out, mut lse) = (vec![0.0; 1024 * 1024], vec![0.0; 1024 * 16]);
    bench_flops(bencher, threads, 2 * ATTENTION_PRODUCT, || {
        attention_forward(&q, &k, &v, &WHOLE, &ATTENTION, &mut out, &mut lse);
    });
}

#[divan::bench(args = THREADS)]
fn attention_backward_1024_16x64(bencher: Bencher<'_, '_>, threads: usize) {
    let (q, k, v, g) = (random(1024 * 1024), random(1024 * 512), random(1024 * 512), random(1024 * 1024));
    let (mut out, mut lse) = (vec![0.0; 1024 * 1024], vec![0.0; 1024 * 16]);
    attention_forward(&q, &k, &v, &WHOLE, &ATTENTION, &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![0.0; 1024 * 1024], vec![0.0; 1024 * 512], vec![0.0; 1024 * 512]);
    bench_flops(bencher, threads, 5 * ATTENTION_PRODUCT, || {
        attention_backward(&g, &q, &k, &v, &out, &lse, &WHOLE, &ATTENTION, &mut dq, &mut dk, &mut dv);
    });
}

#[divan::bench(args = THREADS)]
fn rms_norm_forward_512x2048(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, mut y, mut inv) = (random(T * H), random(H), vec![0.0; T * H], vec![0.0; T]);
    bench_bytes(bencher, threads, 2 * T * H, || {
        norm::rms_norm_forward(&x, &w, 0.0, 1e-6, &mut y, T, H, &mut inv);
    });
}

#[divan::bench(args = THREADS)]
fn rms_norm_backward_512x2048(bencher: Bencher<'_, '_>, threads: usize) {
    let (x, w, g, mut y, mut inv) = (random(T * H), random(H), random(T * H), vec![0.0; T * H], vec![0.0; T]);
    norm::rms_norm_forward(&x, &w, 0.0, 1e-6, &mut y, T, H, &mut inv);
    bench_bytes(bencher, threads, 3 * T * H, || {
        norm::rms_norm_backward(&g, &x, &w, 0.0, &inv, &mut y, false, T, H);
    });
}

#[divan::bench(args = THREADS)]
fn silu_mul_forward_512x8192(bencher: Bencher<'_, '_>, threads: usize) {
    let (gate, up, mut y) = (random(4 * T * H), random(4 * T * H), vec![0.0; 4 * T * H]);
    bench_bytes(bencher, threads, 12 * T * H, || activation::gated_forward(Gate::Silu, &gate, &up, &mut y));
}

#[divan::bench(args = THREADS)]
fn cross_entropy_128x32000(bencher: Bencher<'_, '_>, threads: usize) {
    let (logits, targets, mut losses) = (random(128 * 32_000), vec![5; 128], vec![0.0; 128]);
    let mut g = logits.clone();
    bench_bytes(bencher, threads, 2 * logits.len(), || {
        // The copy is part of the time: the kernel works in place.
        g.copy_from_slice(&logits);
        cross_entropy::cross_entropy_forward_backward(&mut g, &targets, &mut losses, 32_000);
    });
}

/// The output head of a small model over one token and over eight: larger than the caches, so the rate is that of memory. Bytes of weights.
#[divan::bench(args = [(1, 1), (1, 2), (8, 1), (8, 2)])]
fn bf16_head_576x49152(bencher: Bencher<'_, '_>, (rows, threads): (usize, usize)) {
    let (x, w) = (narrow(&random(rows * 576)), narrow(&random(576 * 49152)));
    let mut y = vec![0.0; rows * 49152];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    bencher.counter(BytesCount::new(2usize * 576 * 49152)).bench_local(|| {
        pool.install(|| {
            let y = FloatsMut::F32(&mut y);
            linear::forward(Floats::BF16(&x), WeightView::BF16(&w), None, y, rows, 576, 49152);
        });
    });
}
