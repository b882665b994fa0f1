//! Products against their plain twin over the rounded sides, on every unit.

use super::unit::FORCED;
use super::*;
use crate::gemm::WeightView;
use crate::plain;
use crate::testing::{Dice, assert_close, assert_same_for_any_threads, poisoned, random};
use half::bf16;
use taper_quant::{BlockFormat, GgmlType, QuantizedTensor};

fn units() -> Vec<Unit> {
    let mut units = vec![Unit::Lanes];
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::is_available() {
            units.push(Unit::Bf16);
        }
        if amx::is_testable() {
            units.push(Unit::Amx);
        }
    }
    units
}

fn on_unit<R>(unit: Unit, body: impl FnOnce() -> R) -> R {
    FORCED.set(Some(unit));
    let result = body();
    FORCED.set(None);
    result
}

fn rounded(x: &[f32], scale: f32) -> Vec<f64> {
    x.iter().map(|&x| bf16::from_f32(x * scale).to_f64()).collect()
}

fn target<'a>(out: &'a mut [f32], bias: Option<&'a [f32]>, accumulate: bool) -> Target<'a> {
    Target { out: FloatsMut::F32(out), bias, accumulate }
}

/// (m, k, n): one of everything, odd sizes, edges of tiles, blocks, tasks, groups and rounds.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(1, 1, 1), (3, 0, 2), (16, 32, 16), (17, 33, 49), (32, 64, 96), (5, 4100, 7)];
    shapes.extend([(70, 70, 400), (200, 40, 16), (3, 520, 4500), (40, 8300, 30)]);
    let mut dice = Dice::new(8);
    shapes.extend((0..25).map(|_| (dice.between(1, 90), dice.between(1, 300), dice.between(1, 300))));
    shapes
}

#[test]
fn products_of_any_orientation_equal_the_plain_twin() {
    for unit in units() {
        for (m, k, n) in shapes() {
            let (a, b, bias, c) = (random(m * k, 1), random(k * n, 2), random(n, 3), random(m * n, 4));
            let narrow: Vec<bf16> = b.iter().map(|&b| bf16::from_f32(b)).collect();
            for orientation in 0..4 {
                let (across, down) = (orientation & 1 == 1, orientation & 2 == 2);
                let what = format!("{unit:?} m={m} k={k} n={n} {orientation}");
                let (left, right) = (WeightView::F32(&a), WeightView::BF16(&narrow));
                let left = if across { Operand::columns(left, m, k) } else { Operand::rows(left, m, k) };
                let right = if down { Operand::rows(right, n, k) } else { Operand::columns(right, n, k) };
                let terms = [Term { left: left.scaled(0.3), right }];
                let plain = plain::matmul(&rounded(&a, 0.3), &rounded(&b, 1.0), m, k, n, across, down);
                let mut out = poisoned(m * n);
                on_unit(unit, || multiply(target(&mut out, None, false), m, n, &terms));
                assert_close(&out, &plain, 2e-5, &what);
                let with_bias = |i: usize| f64::from(bias[i % n]);
                let mut out = poisoned(m * n);
                on_unit(unit, || multiply(target(&mut out, Some(&bias), false), m, n, &terms));
                let want: Vec<f64> = plain.iter().enumerate().map(|(i, p)| p + with_bias(i)).collect();
                assert_close(&out, &want, 2e-5, &format!("{what} with bias"));
                let mut out = c.clone();
                on_unit(unit, || multiply(target(&mut out, Some(&bias), true), m, n, &terms));
                let want: Vec<f64> = want.iter().zip(&c).map(|(p, &c)| p + f64::from(c)).collect();
                assert_close(&out, &want, 2e-5, &format!("{what} added"));
            }
        }
    }
}

#[test]
fn rounded_results_are_the_wide_ones_rounded() {
    for (unit, (m, k, n)) in units().into_iter().flat_map(|unit| shapes().into_iter().map(move |s| (unit, s)))
    {
        let (a, b, bias) = (random(m * k, 1), random(k * n, 2), random(n, 3));
        let left = Operand::rows(WeightView::F32(&a), m, k);
        let right = Operand::columns(WeightView::F32(&b), n, k);
        for bias in [None, Some(&bias[..])] {
            let mut wide = poisoned(m * n);
            on_unit(unit, || multiply(target(&mut wide, bias, false), m, n, &[Term { left, right }]));
            let mut narrow = vec![bf16::NAN; m * n];
            let target = Target { out: FloatsMut::BF16(&mut narrow), bias, accumulate: false };
            on_unit(unit, || multiply(target, m, n, &[Term { left, right }]));
            let same = wide.iter().zip(&narrow).all(|(w, n)| bf16::from_f32(*w) == *n);
            assert!(same, "{unit:?} m={m} k={k} n={n}");
        }
    }
}

#[test]
fn several_terms_are_summed() {
    for unit in units() {
        for (m, n, depths) in [(37, 100, [64, 16, 5]), (9, 20, [4090, 10, 4100])] {
            let sides: Vec<(Vec<f32>, Vec<f32>, usize)> =
                depths.iter().map(|&k| (random(m * k, k as u64), random(n * k, 7 + k as u64), k)).collect();
            let term = |(a, b, k): &'_ (Vec<f32>, Vec<f32>, usize)| -> Vec<f64> {
                plain::matmul(&rounded(a, 1.0), &rounded(b, 1.0), m, *k, n, false, true)
            };
            let mut want = vec![0.0; m * n];
            for part in sides.iter().map(term) {
                want.iter_mut().zip(part).for_each(|(w, p)| *w += p);
            }
            let terms: Vec<Term<'_>> = sides
                .iter()
                .map(|(a, b, k)| Term {
                    left: Operand::rows(WeightView::F32(a), m, *k),
                    right: Operand::rows(WeightView::F32(b), n, *k),
                })
                .collect();
            let mut out = poisoned(m * n);
            on_unit(unit, || multiply(target(&mut out, None, false), m, n, &terms));
            assert_close(&out, &want, 2e-5, &format!("{unit:?} {m} {n}"));
        }
    }
}

#[test]
fn quantized_weights_are_decoded_on_the_way() {
    let formats = [
        BlockFormat::Nf4 { block_size: 64, double_quant: true },
        BlockFormat::Ggml(GgmlType::Q8_0),
        BlockFormat::Ggml(GgmlType::Q4K),
    ];
    let (m, rows, columns) = (21, 530, 768);
    let (values, x, g) = (random(rows * columns, 5), random(m * columns, 6), random(m * rows, 7));
    for format in formats {
        let w = QuantizedTensor::quantize(&values, rows, columns, format).expect("whole blocks");
        let mut decoded = vec![0.0; rows * columns];
        w.decode(0, &mut decoded);
        let view = WeightView::Quantized(&w);
        let forward = Term {
            left: Operand::rows(WeightView::F32(&x), m, columns),
            right: Operand::rows(view, rows, columns),
        };
        let backward = Term {
            left: Operand::rows(WeightView::F32(&g), m, rows),
            right: Operand::columns(view, columns, rows),
        };
        let decoded = rounded(&decoded, 1.0);
        let y = plain::matmul(&rounded(&x, 1.0), &decoded, m, columns, rows, false, true);
        let dx = plain::matmul(&rounded(&g, 1.0), &decoded, m, rows, columns, false, false);
        for unit in units() {
            for (term, want, n, what) in
                [(forward, &y, rows, "forward"), (backward, &dx, columns, "backward")]
            {
                let mut out = poisoned(m * n);
                on_unit(unit, || multiply(target(&mut out, None, false), m, n, &[term]));
                assert_close(&out, want, 2e-5, &format!("{unit:?} {format:?} {what}"));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (m, k, n) in [(1, 600, 900), (130, 300, 500), (70, 4200, 330), (1000, 20, 16)] {
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        for (unit, trans) in units().into_iter().flat_map(|unit| [(unit, false), (unit, true)]) {
            assert_same_for_any_threads(&format!("{unit:?} m={m} k={k} n={n}"), || {
                let mut out = poisoned(m * n);
                let b = WeightView::F32(&b);
                let right = if trans { Operand::rows(b, n, k) } else { Operand::columns(b, n, k) };
                let left = Operand::rows(WeightView::F32(&a), m, k);
                on_unit(unit, || multiply(target(&mut out, None, false), m, n, &[Term { left, right }]));
                out
            });
        }
    }
}

#[test]
fn what_is_not_finite_is_passed_on() {
    let mut a = random(20 * 40, 1);
    a[3 * 40 + 5] = f32::NAN;
    a[7 * 40] = f32::INFINITY;
    let b = vec![1.0; 40 * 30];
    let left = Operand::rows(WeightView::F32(&a), 20, 40);
    let right = Operand::rows(WeightView::F32(&b), 30, 40);
    for unit in units() {
        let mut out = poisoned(20 * 30);
        on_unit(unit, || multiply(target(&mut out, None, false), 20, 30, &[Term { left, right }]));
        for (i, row) in out.chunks(30).enumerate() {
            assert_eq!(row.iter().all(|v| v.is_nan()), i == 3, "{unit:?} row {i}");
            assert_eq!(row.iter().all(|v| v.is_infinite()), i == 7, "{unit:?} row {i}");
        }
    }
}

#[test]
fn products_on_one_thread_of_strided_sides_equal_the_plain_twin() {
    for unit in units() {
        for (m, k, n) in [(1, 1, 1), (42, 64, 128), (100, 33, 17), (0, 5, 3), (128, 128, 64)] {
            let (gap_a, gap_b) = (3, 5);
            let (a, b) = (random(m * (k + gap_a), 1), random(k * (n + gap_b), 2));
            let part = |x: &[f32], rows: usize, columns: usize, stride: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| x[i / columns * stride + i % columns]).collect()
            };
            let (a_part, b_part) = (part(&a, m, k, k + gap_a), part(&b, k, n, n + gap_b));
            let left = Operand::strided(WeightView::F32(&a), m, k, k + gap_a, true);
            let right = Operand::strided(WeightView::F32(&b), n, k, n + gap_b, false);
            let mut out = poisoned(m * n);
            on_unit(unit, || {
                multiply_here(left, right, |row, first, sums| {
                    out[row * n + first..][..sums.len()].copy_from_slice(sums);
                });
            });
            let want = plain::matmul(&rounded(&a_part, 1.0), &rounded(&b_part, 1.0), m, k, n, false, false);
            assert_close(&out, &want, 2e-5, &format!("{unit:?} m={m} k={k} n={n}"));
        }
    }
}
