//! Linear layers, frozen or with a low-rank delta, over activations in `f32` or `bf16`.
//!
//! The activations decide the arithmetic: `f32` ones are multiplied in `f32` ([`crate::gemm`]), `bf16` ones in bf16 with `f32` sums: weights,
//! factors and gradients are then rounded to bf16 on their way into the matrix units (the `product` module), the delta is summed in the same
//! pass over the result as the base. Gradients are `f32` throughout.

use crate::floats::{Floats, FloatsMut, buffer, round, widen};
use crate::gemm::{self, WeightView};
use crate::product::{LowRank, Operand, Target, Term, multiply, multiply_low_rank};
use crate::rows::are_few;
use half::bf16;

/// y `[T,out]` = x `[T,in]` W^T + b, W `[out,in]`, b `[out]`. A y in bf16 is rounded once, from the sum.
///
/// # Panics
/// When a length does not fit, or x is `f32` and y is not.
pub fn forward(
    x: Floats<'_>,
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: FloatsMut<'_>,
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    match (x, y) {
        (Floats::F32(x), FloatsMut::F32(y)) => gemm::linear_forward(x, w, bias, y, t, n_in, n_out),
        (Floats::F32(_), FloatsMut::BF16(_)) => panic!("a result in bf16 of activations in f32"),
        (Floats::BF16(x), FloatsMut::F32(y)) if are_few(t) => few_rows(x, w, bias, y, t, n_in, n_out),
        (Floats::BF16(x), FloatsMut::BF16(y)) if are_few(t) => {
            let mut sums = buffer(y.len());
            few_rows(x, w, bias, &mut sums, t, n_in, n_out);
            round(&sums, y);
        }
        (x @ Floats::BF16(_), out) => {
            let term = Term { left: Operand::rows(x.view(), t, n_in), right: Operand::rows(w, n_out, n_in) };
            multiply(Target { out, bias, accumulate: false }, t, n_out, &[term]);
        }
    }
}

fn few_rows(
    x: &[bf16],
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    if !gemm::few_bf16_rows(x, w, bias, y, t, n_in, n_out) {
        let mut wide = buffer(x.len());
        widen(x, &mut wide);
        gemm::linear_forward(&wide, w, bias, y, t, n_in, n_out);
    }
}

fn put(from: &[f32], to: FloatsMut<'_>) {
    match to {
        FloatsMut::F32(to) => to.copy_from_slice(from),
        FloatsMut::BF16(to) => round(from, to),
    }
}

/// How the gradients of a layer are computed: as its forward was, by the type of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// In `f32`.
    F32,
    /// Both sides rounded to bf16, sums in `f32`.
    BF16,
}

impl Precision {
    /// That of a layer with such an input.
    pub fn of(x: Floats<'_>) -> Self {
        match x {
            Floats::F32(_) => Self::F32,
            Floats::BF16(_) => Self::BF16,
        }
    }
}

/// dx `[T,in]` = g `[T,out]` W, or `dx += g W` with `accumulate`.
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn backward_input(
    precision: Precision,
    g: &[f32],
    w: WeightView<'_>,
    dx: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
    accumulate: bool,
) {
    match precision {
        Precision::F32 => gemm::linear_backward_input(g, w, dx, t, n_in, n_out, accumulate),
        Precision::BF16 => {
            let target = Target { out: FloatsMut::F32(dx), bias: None, accumulate };
            multiply(target, t, n_in, &[input_gradient(g, w, t, n_in, n_out)]);
        }
    }
}

/// dw `[out,in]` = g^T x with g `[T,out]` and x `[T,in]`, or `dw += g^T x` with `accumulate`.
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn backward_weight(
    precision: Precision,
    g: &[f32],
    x: Floats<'_>,
    dw: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
    accumulate: bool,
) {
    matmul(precision, dw, Floats::F32(g), x, n_out, t, n_in, true, false, 1.0, accumulate);
}

fn input_gradient<'a>(g: &'a [f32], w: WeightView<'a>, t: usize, n_in: usize, n_out: usize) -> Term<'a> {
    Term { left: Operand::rows(WeightView::F32(g), t, n_out), right: Operand::columns(w, n_in, n_out) }
}

/// c `[m,n]` = alpha a b, or `c += alpha a b` with `accumulate`; a is `[m,k]` (`[k,m]` with `trans_a`), b `[k,n]` (`[n,k]` with `trans_b`).
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub(crate) fn matmul(
    precision: Precision,
    c: &mut [f32],
    a: Floats<'_>,
    b: Floats<'_>,
    m: usize,
    k: usize,
    n: usize,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    accumulate: bool,
) {
    match (precision, a, b) {
        (Precision::F32, Floats::F32(a), Floats::F32(b)) => {
            gemm::matmul(c, a, b, m, k, n, trans_a, trans_b, alpha, accumulate);
        }
        _ => {
            let left = if trans_a { Operand::columns(a.view(), m, k) } else { Operand::rows(a.view(), m, k) };
            let right =
                if trans_b { Operand::rows(b.view(), n, k) } else { Operand::columns(b.view(), n, k) };
            let target = Target { out: FloatsMut::F32(c), bias: None, accumulate };
            multiply(target, m, n, &[Term { left: left.scaled(alpha), right }]);
        }
    }
}

/// What a low-rank delta is made of: s (x' A^T) B^T.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// A `[r,in]`.
    pub a: &'a [f32],
    /// B `[out,r]`.
    pub b: &'a [f32],
    /// r.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

/// The frozen part under a delta.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// W `[out,in]`.
    pub weight: WeightView<'a>,
    /// b `[out]`.
    pub bias: Option<&'a [f32]>,
}

/// y `[T,out]` = x `[T,in]` W^T + b + s h B^T, and h `[T,r]` = x' A^T for the backward; x' `[T,in]` is what dropout left of x
/// (`dropped`), or x.
/// Without a base y is the delta alone.
///
/// # Panics
/// When a length does not fit, or x is `f32` and y is not.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn lora_forward(
    x: Floats<'_>,
    dropped: Option<Floats<'_>>,
    base: Option<Base<'_>>,
    delta: &Delta<'_>,
    y: FloatsMut<'_>,
    h: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    let (precision, r) = (Precision::of(x), delta.rank);
    if let (Precision::BF16, Some(base), true) = (precision, base, !are_few(t) && dropped.is_none()) {
        let mut low = LowRank {
            full: Some(Operand::rows(base.weight, n_out, n_in)),
            down: Operand::rows(WeightView::F32(delta.a), r, n_in),
            up: Operand::rows(WeightView::F32(delta.b), n_out, r),
            hidden: h,
            first: 1.0,
            by: delta.scale,
        };
        let target = Target { out: y, bias: base.bias, accumulate: false };
        return multiply_low_rank(target, t, n_out, Operand::rows(x.view(), t, n_in), &mut low);
    }
    let low_in = dropped.unwrap_or(x);
    matmul(precision, h, low_in, Floats::F32(delta.a), t, n_in, r, false, true, 1.0, false);
    match (y, base) {
        (FloatsMut::F32(y), Some(base)) if precision == Precision::F32 => {
            forward(x, base.weight, base.bias, FloatsMut::F32(&mut *y), t, n_in, n_out);
            gemm::matmul(y, h, delta.b, t, r, n_out, false, true, delta.scale, true);
        }
        (FloatsMut::F32(y), None) if precision == Precision::F32 => {
            gemm::matmul(y, h, delta.b, t, r, n_out, false, true, delta.scale, false);
        }
        (y, Some(base)) if are_few(t) => {
            let mut sums = buffer(t * n_out);
            forward(x, base.weight, base.bias, FloatsMut::F32(&mut sums), t, n_in, n_out);
            gemm::matmul(&mut sums, h, delta.b, t, r, n_out, false, true, delta.scale, true);
            put(&sums, y);
        }
        (out, base) => {
            let low = Term {
                left: Operand::rows(WeightView::F32(h), t, r).scaled(delta.scale),
                right: Operand::rows(WeightView::F32(delta.b), n_out, r),
            };
            let full = base.map(|base| Term {
                left: Operand::rows(x.view(), t, n_in),
                right: Operand::rows(base.weight, n_out, n_in),
            });
            let terms: Vec<Term<'_>> = full.into_iter().chain([low]).collect();
            let bias = base.and_then(|base| base.bias);
            multiply(Target { out, bias, accumulate: false }, t, n_out, &terms);
        }
    }
}

/// d/d(h) of [`lora_forward`], `[T,r]` = s g B, which the gradients of A and x share.
///
/// # Panics
/// When a length does not fit.
pub fn lora_backward_hidden(
    precision: Precision,
    g: &[f32],
    delta: &Delta<'_>,
    gh: &mut [f32],
    t: usize,
    n_out: usize,
) {
    let (g, b) = (Floats::F32(g), Floats::F32(delta.b));
    matmul(precision, gh, g, b, t, n_out, delta.rank, false, false, delta.scale, false);
}

/// dA `[r,in]` (+)= gh^T x', with gh of [`lora_backward_hidden`].
///
/// # Panics
/// When a length does not fit.
pub fn lora_backward_a(
    gh: &[f32],
    dropped: Floats<'_>,
    da: &mut [f32],
    t: usize,
    n_in: usize,
    rank: usize,
    accumulate: bool,
) {
    matmul(Precision::of(dropped), da, Floats::F32(gh), dropped, rank, t, n_in, true, false, 1.0, accumulate);
}

/// dB `[out,r]` (+)= s g^T h.
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn lora_backward_b(
    precision: Precision,
    g: &[f32],
    h: &[f32],
    db: &mut [f32],
    t: usize,
    n_out: usize,
    rank: usize,
    scale: f32,
    accumulate: bool,
) {
    matmul(precision, db, Floats::F32(g), Floats::F32(h), n_out, t, rank, true, false, scale, accumulate);
}

/// dx `[T,in]` (+)= g W + gh A without dropout, and gh `[T,r]` = s g B on the way.
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn lora_backward_input(
    precision: Precision,
    g: &[f32],
    weight: Option<WeightView<'_>>,
    delta: &Delta<'_>,
    gh: &mut [f32],
    dx: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
    accumulate: bool,
) {
    let r = delta.rank;
    if precision == Precision::F32 {
        lora_backward_hidden(precision, g, delta, gh, t, n_out);
        gemm::matmul(dx, gh, delta.a, t, r, n_in, false, false, 1.0, accumulate);
        if let Some(w) = weight {
            gemm::linear_backward_input(g, w, dx, t, n_in, n_out, true);
        }
        return;
    }
    let mut low = LowRank {
        full: weight.map(|w| Operand::columns(w, n_in, n_out)),
        down: Operand::columns(WeightView::F32(delta.b), r, n_out),
        up: Operand::columns(WeightView::F32(delta.a), n_in, r),
        hidden: gh,
        first: delta.scale,
        by: 1.0,
    };
    let target = Target { out: FloatsMut::F32(dx), bias: None, accumulate };
    multiply_low_rank(target, t, n_in, Operand::rows(WeightView::F32(g), t, n_out), &mut low);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{assert_close, poisoned, random};

    fn narrow(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&x| bf16::from_f32(x)).collect()
    }

    fn rounded(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect()
    }

    fn sum(parts: &[Vec<f64>]) -> Vec<f64> {
        (0..parts[0].len()).map(|i| parts.iter().map(|p| p[i]).sum()).collect()
    }

    /// All passes of a layer with a delta in bf16 against the plain twin over what the units see: rounded inputs, exact sums.
    #[test]
    fn a_layer_in_bf16_equals_the_plain_twin_over_rounded_inputs() {
        for (t, n_in, n_out, r) in [(1, 40, 33, 3), (4, 64, 48, 8), (9, 70, 130, 16), (150, 96, 200, 5)] {
            let (x, w, g) = (random(t * n_in, 1), random(n_out * n_in, 2), random(t * n_out, 3));
            let (a, b, bias) = (random(r * n_in, 4), random(n_out * r, 5), random(n_out, 6));
            let (x, w) = (narrow(&x), narrow(&w));
            let (wide_x, wide_w): (Vec<f64>, Vec<f64>) =
                (x.iter().map(|x| x.to_f64()).collect(), w.iter().map(|w| w.to_f64()).collect());
            let delta = Delta { a: &a, b: &b, rank: r, scale: 0.5 };
            let base = Base { weight: WeightView::BF16(&w), bias: Some(&bias) };
            let (mut y, mut h) = (poisoned(t * n_out), poisoned(t * r));
            let x_view = Floats::BF16(&x);
            lora_forward(x_view, None, Some(base), &delta, FloatsMut::F32(&mut y), &mut h, t, n_in, n_out);
            let want_h = plain::matmul(&wide_x, &rounded(&a), t, n_in, r, false, true);
            assert_close(&h, &want_h, 2e-5, "h");
            let half: Vec<f32> = h.iter().map(|h| 0.5 * h).collect();
            let few = are_few(t);
            let (half, wide_b) =
                if few { (plain::widen(&half), plain::widen(&b)) } else { (rounded(&half), rounded(&b)) };
            let low = plain::matmul(&half, &wide_b, t, r, n_out, false, true);
            let full = plain::linear(&wide_x, &wide_w, Some(&plain::widen(&bias)), t, n_in, n_out);
            assert_close(&y, &sum(&[full, low.clone()]), 2e-5, "y");
            let mut short = vec![bf16::NAN; t * n_out];
            lora_forward(
                x_view,
                None,
                Some(base),
                &delta,
                FloatsMut::BF16(&mut short),
                &mut h,
                t,
                n_in,
                n_out,
            );
            assert!(y.iter().zip(&short).all(|(y, s)| bf16::from_f32(*y) == *s), "y in bf16");
            if !few {
                lora_forward(x_view, None, None, &delta, FloatsMut::F32(&mut y), &mut h, t, n_in, n_out);
                assert_close(&y, &low, 2e-5, "the delta alone");
            }
            let bf = Precision::BF16;
            let mut gh = poisoned(t * r);
            lora_backward_hidden(bf, &g, &delta, &mut gh, t, n_out);
            let scaled_g: Vec<f32> = g.iter().map(|g| 0.5 * g).collect();
            let want = plain::matmul(&rounded(&g), &rounded(&b), t, n_out, r, false, false);
            let want: Vec<f64> = want.iter().map(|gh| 0.5 * gh).collect();
            assert_close(&gh, &want, 2e-5, "gh");
            let mut da = vec![1.0; r * n_in];
            lora_backward_a(&gh, x_view, &mut da, t, n_in, r, true);
            let want = plain::matmul(&rounded(&gh), &wide_x, r, t, n_in, true, false);
            assert_close(&da, &sum(&[want, vec![1.0; r * n_in]]), 2e-5, "da");
            let mut db = vec![1.0; n_out * r];
            lora_backward_b(bf, &g, &h, &mut db, t, n_out, r, 0.5, true);
            let want = plain::matmul(&rounded(&scaled_g), &rounded(&h), n_out, t, r, true, false);
            assert_close(&db, &sum(&[want, vec![1.0; n_out * r]]), 2e-5, "db");
            let (mut dx, mut fused) = (vec![1.0; t * n_in], poisoned(t * r));
            let w = Some(WeightView::BF16(&w));
            lora_backward_input(bf, &g, w, &delta, &mut fused, &mut dx, t, n_in, n_out, true);
            assert_close(&fused, &plain::widen(&gh), 2e-5, "gh on the way");
            let full = plain::matmul(&rounded(&g), &wide_w, t, n_out, n_in, false, false);
            let low = plain::matmul(&rounded(&gh), &rounded(&a), t, r, n_in, false, false);
            assert_close(&dx, &sum(&[full, low, vec![1.0; t * n_in]]), 2e-5, "dx");
        }
    }

    /// Each row of some is, bit for bit, what it is among others: few among few, many among many.
    #[test]
    fn a_row_in_bf16_does_not_depend_on_the_rows_beside_it() {
        use taper_quant::{BlockFormat, GgmlType, QuantizedTensor};
        let (n_in, n_out) = (512, 200);
        let (x, dense) = (narrow(&random(40 * n_in, 1)), random(n_out * n_in, 2));
        let short = narrow(&dense);
        let halves: Vec<half::f16> = dense.iter().map(|&w| half::f16::from_f32(w)).collect();
        let quantized = |format| QuantizedTensor::quantize(&dense, n_out, n_in, format).unwrap();
        let blocks: Vec<QuantizedTensor> =
            [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K]
                .map(BlockFormat::Ggml)
                .into_iter()
                .chain([BlockFormat::Nf4 { block_size: 64, double_quant: false }, BlockFormat::Int8])
                .map(quantized)
                .collect();
        let weights = [WeightView::BF16(&short), WeightView::F16(&halves), WeightView::F32(&dense)];
        let weights: Vec<_> = weights.into_iter().chain(blocks.iter().map(WeightView::Quantized)).collect();
        for (kind, w) in weights.iter().enumerate() {
            let run = |rows: core::ops::Range<usize>| {
                let t = rows.len();
                let mut y = poisoned(t * n_out);
                forward(
                    Floats::BF16(&x[rows.start * n_in..rows.end * n_in]),
                    *w,
                    None,
                    FloatsMut::F32(&mut y),
                    t,
                    n_in,
                    n_out,
                );
                y
            };
            let many = |rows: core::ops::Range<usize>| crate::rows::as_many(|| run(rows));
            for (all, part) in [(run(0..16), &run as &dyn Fn(_) -> _), (many(0..40), &many)] {
                for rows in [0..1, 3..4, 2..4, 5..8, 1..5, 4..13, 0..15] {
                    let want = &all[rows.start * n_out..rows.end * n_out];
                    assert!(
                        part(rows.clone()) == want,
                        "weights {kind}, rows {rows:?} of {}",
                        all.len() / n_out
                    );
                }
            }
        }
    }
}
