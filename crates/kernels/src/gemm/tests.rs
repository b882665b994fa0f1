//! Every product against its plain twin, in every weight type and orientation.

use super::*;
use crate::plain;
use crate::testing::{Dice, assert_close, assert_same_for_any_threads, poisoned, random};
use taper_quant::GgmlType;

/// Weights in all three types, with the exact values of each as `f64`.
struct Weights {
    f32s: Vec<f32>,
    bf16s: Vec<bf16>,
    f16s: Vec<f16>,
}

impl Weights {
    fn new(n: usize, stream: u64) -> Self {
        let f32s = random(n, stream);
        let bf16s = f32s.iter().map(|&w| bf16::from_f32(w)).collect();
        let f16s = f32s.iter().map(|&w| f16::from_f32(w)).collect();
        Self { f32s, bf16s, f16s }
    }

    fn views(&self) -> [(WeightView<'_>, Vec<f64>); 3] {
        [
            (WeightView::F32(&self.f32s), plain::widen(&self.f32s)),
            (WeightView::BF16(&self.bf16s), self.bf16s.iter().map(|w| w.to_f64()).collect()),
            (WeightView::F16(&self.f16s), self.f16s.iter().map(|w| w.to_f64()).collect()),
        ]
    }
}

/// (T, in, out): every small T, odd sizes, and sizes past each tile and panel.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(0, 3, 2), (3, 0, 2), (6, 0, 5), (1, 1, 1), (2, 33, 1), (5, 1, 7), (17, 2, 300)];
    shapes.extend([
        (9, 1100, 200),
        (5, 2050, 193),
        (1030, 31, 17),
        (1, 3000, 130),
        (4, 64, 5000),
        (300, 8, 260),
    ]);
    let mut dice = Dice::new(3);
    shapes.extend((0..30).map(|_| (dice.between(1, 70), dice.between(1, 260), dice.between(1, 260))));
    shapes
}

#[test]
fn linear_layers_equal_the_plain_twin() {
    for (i, (t, n_in, n_out)) in shapes().into_iter().enumerate() {
        let x = random(t * n_in, 1);
        let bias = random(n_out, 2);
        let weights = Weights::new(n_in * n_out, 100 + i as u64);
        for (view, w) in weights.views() {
            for bias in [None, Some(&bias[..])] {
                let mut y = poisoned(t * n_out);
                linear_forward(&x, view, bias, &mut y, t, n_in, n_out);
                let wide = bias.map(plain::widen);
                let want = plain::linear(&plain::widen(&x), &w, wide.as_deref(), t, n_in, n_out);
                assert_close(&y, &want, 2e-5, &format!("y for T={t} in={n_in} out={n_out}"));
            }
        }
    }
}

#[test]
fn gradients_equal_the_plain_twin() {
    for (i, (t, n_in, n_out)) in shapes().into_iter().enumerate() {
        let (x, g) = (random(t * n_in, 1), random(t * n_out, 2));
        let weights = Weights::new(n_in * n_out, 100 + i as u64);
        let what = format!("T={t} in={n_in} out={n_out}");
        for (view, w) in weights.views() {
            let want = plain::matmul(&plain::widen(&g), &w, t, n_out, n_in, false, false);
            let mut dx = poisoned(t * n_in);
            linear_backward_input(&g, view, &mut dx, t, n_in, n_out, false);
            assert_close(&dx, &want, 2e-5, &format!("dx for {what}"));
            let mut dx = x.clone();
            linear_backward_input(&g, view, &mut dx, t, n_in, n_out, true);
            let sum: Vec<f64> = want.iter().zip(&x).map(|(d, &x)| d + f64::from(x)).collect();
            assert_close(&dx, &sum, 2e-5, &format!("dx added to for {what}"));
        }
        let want = plain::matmul(&plain::widen(&g), &plain::widen(&x), n_out, t, n_in, true, false);
        let mut dw = poisoned(n_in * n_out);
        linear_backward_weight(&g, &x, &mut dw, t, n_in, n_out, false);
        assert_close(&dw, &want, 2e-5, &format!("dw for {what}"));
        let mut dw = weights.f32s.clone();
        linear_backward_weight(&g, &x, &mut dw, t, n_in, n_out, true);
        let sum: Vec<f64> = want.iter().zip(&weights.f32s).map(|(d, &w)| d + f64::from(w)).collect();
        assert_close(&dw, &sum, 2e-5, &format!("dw added to for {what}"));
    }
}

#[test]
fn products_of_either_orientation_equal_the_plain_twin() {
    let mut dice = Dice::new(4);
    for round in 0..60 {
        let big = if round % 10 == 0 { 500 } else { 40 };
        let (m, k, n) = (dice.between(1, big), dice.between(0, 40), dice.between(1, big));
        let (a, b, c) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
        for (trans_a, trans_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let product = plain::matmul(&plain::widen(&a), &plain::widen(&b), m, k, n, trans_a, trans_b);
            let mut got = poisoned(m * n);
            matmul(&mut got, &a, &b, m, k, n, trans_a, trans_b, 0.5, false);
            let want: Vec<f64> = product.iter().map(|p| 0.5 * p).collect();
            assert_close(&got, &want, 1e-5, &format!("m={m} k={k} n={n} {trans_a} {trans_b}"));
            let mut got = c.clone();
            matmul(&mut got, &a, &b, m, k, n, trans_a, trans_b, -2.0, true);
            let want: Vec<f64> = product.iter().zip(&c).map(|(p, &c)| f64::from(c) - 2.0 * p).collect();
            assert_close(&got, &want, 1e-5, &format!("added for m={m} k={k} n={n} {trans_a} {trans_b}"));
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (t, n_in, n_out) in [(1, 1500, 700), (4, 1024, 801), (65, 1300, 500), (1100, 40, 90)] {
        let (x, g) = (random(t * n_in, 1), random(t * n_out, 2));
        let weights = Weights::new(n_in * n_out, 3);
        for (view, _) in weights.views() {
            assert_same_for_any_threads(&format!("T={t} in={n_in} out={n_out}"), || {
                let mut results = [poisoned(t * n_out), poisoned(t * n_in), poisoned(n_in * n_out)];
                let [y, dx, dw] = &mut results;
                linear_forward(&x, view, None, y, t, n_in, n_out);
                linear_backward_input(&g, view, dx, t, n_in, n_out, false);
                linear_backward_weight(&g, &x, dw, t, n_in, n_out, false);
                results.concat()
            });
        }
    }
}

#[test]
fn widening_is_exact_for_every_bf16_and_f16() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bf16s: Vec<bf16> = all.iter().map(|&bits| bf16::from_bits(bits)).collect();
    let f16s: Vec<f16> = all.iter().map(|&bits| f16::from_bits(bits)).collect();
    let mut out = poisoned(all.len() - 1);
    WeightView::BF16(&bf16s).widen(1, &mut out);
    assert!(out.iter().zip(&bf16s[1..]).all(|(o, w)| o.to_bits() == u32::from(w.to_bits()) << 16));
    WeightView::F16(&f16s).widen(1, &mut out);
    assert!(
        out.iter().zip(&f16s[1..]).all(|(&o, w)| f64::from(o) == w.to_f64() || (o.is_nan() && w.is_nan()))
    );
}

#[test]
fn a_nan_in_a_weight_reaches_its_feature_alone() {
    for t in [2, 9] {
        let x = random(t * 50, 1);
        let mut w = random(50 * 20, 2);
        w[7 * 50 + 3] = f32::NAN;
        let mut y = poisoned(t * 20);
        linear_forward(&x, WeightView::F32(&w), None, &mut y, t, 50, 20);
        assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i % 20 == 7)));
    }
}

#[test]
#[should_panic(expected = "lengths of [T,in], [out,in], [T,out] for T=2 in=3 out=4")]
fn lengths_that_do_not_fit_are_named() {
    linear_forward(&[0.0; 6], WeightView::F32(&[0.0; 11]), None, &mut [0.0; 8], 2, 3, 4);
}

/// A quantised matrix with exact values, in each layout that has decoding of its own.
fn quantized(rows: usize, columns: usize, format: BlockFormat) -> (QuantizedTensor, Vec<f32>) {
    let weight = QuantizedTensor::quantize(&random(rows * columns, 11), rows, columns, format).unwrap();
    let mut values = vec![0.0; rows * columns];
    weight.decode(0, &mut values);
    (weight, values)
}

#[test]
fn products_with_quantised_weights_equal_the_plain_twin() {
    let flat = [
        BlockFormat::Nf4 { block_size: 64, double_quant: false },
        BlockFormat::Nf4 { block_size: 128, double_quant: true },
        BlockFormat::Fp4 { block_size: 64, double_quant: true },
        BlockFormat::Int8,
    ];
    let ggml =
        [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K].map(BlockFormat::Ggml);
    let odd = [(1, 33, 5), (7, 1100, 41), (9, 70, 300), (4, 257, 130)];
    let whole = [(1, 256, 5), (6, 1280, 33), (9, 512, 300), (1030, 256, 9)];
    let cases = flat.iter().flat_map(|f| odd.iter().map(move |s| (*f, *s)));
    let cases = cases.chain(ggml.iter().chain(&flat).flat_map(|f| whole.iter().map(move |s| (*f, *s))));
    for (format, (t, n_in, n_out)) in cases {
        let what = format!("{format:?} T={t} in={n_in} out={n_out}");
        let (weight, values) = quantized(n_out, n_in, format);
        let (view, w) = (WeightView::Quantized(&weight), plain::widen(&values));
        let (x, g) = (random(t * n_in, 1), random(t * n_out, 2));
        let mut y = poisoned(t * n_out);
        linear_forward(&x, view, None, &mut y, t, n_in, n_out);
        assert_close(&y, &plain::linear(&plain::widen(&x), &w, None, t, n_in, n_out), 2e-5, &what);
        let mut dx = poisoned(t * n_in);
        linear_backward_input(&g, view, &mut dx, t, n_in, n_out, false);
        assert_close(&dx, &plain::matmul(&plain::widen(&g), &w, t, n_out, n_in, false, false), 2e-5, &what);
    }
}

#[test]
fn quantised_products_do_not_depend_on_the_number_of_threads() {
    let (weight, _) = quantized(300, 512, BlockFormat::Ggml(GgmlType::Q4K));
    let (x, g) = (random(70 * 512, 1), random(70 * 300, 2));
    assert_same_for_any_threads("quantised products", || {
        let (mut y, mut dx) = (poisoned(70 * 300), poisoned(70 * 512));
        linear_forward(&x, WeightView::Quantized(&weight), None, &mut y, 70, 512, 300);
        linear_backward_input(&g, WeightView::Quantized(&weight), &mut dx, 70, 512, 300, false);
        [y, dx].concat()
    });
}
