//! Matrix products of `f32` activations with `f32`, `bf16` or `f16` weights.
//!
//! The products are those of the `gemm` crate (AVX-512, AVX2, NEON or plain, found at run time), called on one thread per tile. Tiles are
//! cut at fixed sizes and each tile is summed over k by one task in one order, so the number of threads never shows in a result. The
//! number of rows T may: products of up to [`FEW_ROWS`] rows (decoding) run through a dot-product kernel that reads the weights once and
//! in place, and larger ones sum in another order. A row's result is therefore the same up to rounding, not bit for bit, in batches of
//! different size.
//!
//! Narrow weights are widened panel by panel into at most [`PANEL_BYTES`] per task, never as a whole.

#![expect(unsafe_code, reason = "passes strided views to the gemm crate")]

use crate::shared::SharedMut;
use crate::simd::{LANES, sum_lanes};
use crate::threads::for_each_block;
use core::cell::RefCell;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Up to this many rows a linear layer runs through the dot-product kernel.
pub const FEW_ROWS: usize = 4;
/// The most scratch memory that a task widens weights into.
pub const PANEL_BYTES: usize = 1024 * 1024;

/// Sides of the tiles of a general product.
const TILE: usize = 384;
/// Output features that a task of a linear layer makes: four register blocks of the AVX-512 kernel.
const FEATURES: usize = 192;
/// Rows of x that a task of a linear layer reads.
const ROWS: usize = 1024;
/// Depth of a panel of widened weights.
const DEPTH: usize = 1024;
/// Weights that one task of the dot-product kernel reads.
const DOT_TASK: usize = 256 * 1024;

const _: () = assert!(FEATURES * DEPTH * size_of::<f32>() <= PANEL_BYTES);

/// The weights of a layer, as they are stored. More layouts will come.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum WeightView<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// The upper halves of 32-bit floats.
    BF16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl WeightView<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(w) => w.len(),
            Self::BF16(w) => w.len(),
            Self::F16(w) => w.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes elements `start..start + out.len()` as `f32`. Exact.
    ///
    /// # Panics
    /// When the range is outside the weights.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::F32(w) => out.copy_from_slice(&w[range]),
            Self::BF16(w) => widen_bf16(&w[range], out),
            Self::F16(w) => w[range].convert_to_f32_slice(out),
        }
    }
}

/// y `[T,out]` = x `[T,in]` W^T + b, W `[out,in]`, b `[out]`.
///
/// # Panics
/// When a length does not fit.
pub fn linear_forward(
    x: &[f32],
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    check_linear(x.len(), w.len(), y.len(), t, n_in, n_out);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n_out, "length of the bias");
    }
    if t == 0 {
        return;
    }
    if t <= FEW_ROWS {
        return few_rows(x, w, bias, y, t, n_in, n_out);
    }
    let y = SharedMut::new(y);
    for_each_tile(t, n_out, ROWS, FEATURES, t * n_in * n_out, |rows, features| {
        let (first, count) = features;
        let tile = |row: usize| row * n_out + first;
        if let Some(bias) = bias {
            for row in rows.0..rows.0 + rows.1 {
                // SAFETY: this task alone writes these rows of these columns.
                unsafe { y.part(tile(row), count) }.copy_from_slice(&bias[first..first + count]);
            }
        }
        // SAFETY: as above; the bias slices are gone.
        let mut c = unsafe { MatMut::of(&y, tile(rows.0), rows.1, count, n_out) };
        let x = MatRef::new(&x[rows.0 * n_in..], rows.1, n_in, n_in);
        for (depth, len) in depths(w, n_in) {
            with_panel(w, n_in, features, (depth, len), |panel| {
                multiply(&mut c, x.columns(depth, len), panel.transposed(), 1.0, bias.is_some() || depth > 0);
            });
        }
    });
}

/// dx `[T,in]` = g `[T,out]` W, or `dx += g W` with `accumulate`.
///
/// # Panics
/// When a length does not fit.
pub fn linear_backward_input(
    g: &[f32],
    w: WeightView<'_>,
    dx: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
    accumulate: bool,
) {
    check_linear(dx.len(), w.len(), g.len(), t, n_in, n_out);
    let dx = SharedMut::new(dx);
    for_each_tile(t, n_in, ROWS, FEATURES, t * n_in * n_out, |rows, columns| {
        // SAFETY: this task alone writes these rows of these columns.
        let mut c = unsafe { MatMut::of(&dx, rows.0 * n_in + columns.0, rows.1, columns.1, n_in) };
        let g = MatRef::new(&g[rows.0 * n_out..], rows.1, n_out, n_out);
        for (depth, len) in depths(w, n_out) {
            with_panel(w, n_in, (depth, len), columns, |panel| {
                multiply(&mut c, g.columns(depth, len), panel, 1.0, accumulate || depth > 0);
            });
        }
    });
}

/// dw `[out,in]` = g^T x with g `[T,out]` and x `[T,in]`, or `dw += g^T x` with `accumulate`.
///
/// # Panics
/// When a length does not fit.
pub fn linear_backward_weight(
    g: &[f32],
    x: &[f32],
    dw: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
    accumulate: bool,
) {
    check_linear(x.len(), dw.len(), g.len(), t, n_in, n_out);
    matmul(dw, g, x, n_out, t, n_in, true, false, 1.0, accumulate);
}

/// c `[m,n]` = alpha a b, or `c += alpha a b` with `accumulate`; a is `[m,k]` (`[k,m]` with `trans_a`), b `[k,n]` (`[n,k]` with `trans_b`).
///
/// # Panics
/// When a length does not fit.
#[expect(clippy::too_many_arguments, reason = "plain slices and their sizes")]
pub fn matmul(
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    k: usize,
    n: usize,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    accumulate: bool,
) {
    assert_eq!(
        (c.len(), a.len(), b.len()),
        (m * n, m * k, k * n),
        "lengths of c, a, b for m={m} k={k} n={n}"
    );
    let a = if trans_a { MatRef::new(a, k, m, m).transposed() } else { MatRef::new(a, m, k, k) };
    let b = if trans_b { MatRef::new(b, n, k, k).transposed() } else { MatRef::new(b, k, n, n) };
    let c = SharedMut::new(c);
    for_each_tile(m, n, TILE, TILE, m * k * n, |rows, columns| {
        // SAFETY: this task alone writes these rows of these columns.
        let mut c = unsafe { MatMut::of(&c, rows.0 * n + columns.0, rows.1, columns.1, n) };
        multiply(&mut c, a.rows(rows.0, rows.1), b.columns(columns.0, columns.1), alpha, accumulate);
    });
}

/// A strided matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix whose rows start `row_stride` apart, from the start of `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            span(rows, columns, row_stride) <= data.len(),
            "{rows}x{columns} by {row_stride} in {}",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows);
        Self { data: &self.data[(first * self.row_stride).min(self.data.len())..], rows: count, ..self }
    }

    fn columns(self, first: usize, count: usize) -> Self {
        self.transposed().rows(first, count).transposed()
    }
}

/// A row-major strided matrix to write.
pub(crate) struct MatMut<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrowed: core::marker::PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// The matrix at the start of `data`.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        // SAFETY: `data` is borrowed for as long as the matrix lives.
        unsafe { Self::of(&SharedMut::new(data), 0, rows, columns, row_stride) }
    }

    /// The matrix that starts at element `at` of a shared slice; bounds are checked.
    ///
    /// # Safety
    /// While the result lives, nothing else may access the elements of the matrix (those between its rows may be in use).
    pub(crate) unsafe fn of(
        data: &SharedMut<'a, f32>,
        at: usize,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        assert!(
            columns <= row_stride || rows <= 1,
            "rows of {columns} that start {row_stride} apart overlap"
        );
        let start = data.address(at, span(rows, columns, row_stride));
        Self { start, rows, columns, row_stride, borrowed: core::marker::PhantomData }
    }
}

/// Elements from the first to the last of a row-major strided matrix.
fn span(rows: usize, columns: usize, row_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns }
}

/// `c = alpha a b` or `c += alpha a b`, on the calling thread.
pub(crate) fn multiply(c: &mut MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, alpha: f32, accumulate: bool) {
    assert_eq!((a.rows, b.columns, a.columns), (c.rows, c.columns, b.rows), "shapes of a product");
    // SAFETY: the constructors checked that each view lies within its slice for these sizes and strides (all far below isize::MAX, being
    // lengths of slices), `c` is not accessed elsewhere while its `MatMut` lives, and a destination that is not read may hold any bits.
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.start,
            1,
            c.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn check_linear(x: usize, w: usize, y: usize, t: usize, n_in: usize, n_out: usize) {
    let want = (t * n_in, n_in * n_out, t * n_out);
    assert_eq!((x, w, y), want, "lengths of [T,in], [out,in], [T,out] for T={t} in={n_in} out={n_out}");
}

/// A first index and a count.
type Range = (usize, usize);

/// Cuts an m x n output in tiles of at most `rows` x `columns` and calls `body` with the ranges of each, in parallel.
fn for_each_tile(
    m: usize,
    n: usize,
    rows: usize,
    columns: usize,
    work: usize,
    body: impl Fn(Range, Range) + Sync + Send,
) {
    let (down, across) = (m.div_ceil(rows), n.div_ceil(columns));
    let range = |i: usize, size: usize, end: usize| (i * size, size.min(end - i * size));
    for_each_block(down * across, work, |block| {
        body(range(block / across, rows, m), range(block % across, columns, n));
    });
}

thread_local! {
    /// Scratch for widened weights: at most [`PANEL_BYTES`], or one row.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The parts of `0..len` that a task sums one after the other: the whole for weights that need no widening, else panels.
fn depths(w: WeightView<'_>, len: usize) -> impl Iterator<Item = Range> {
    let depth = if matches!(w, WeightView::F32(_)) { len.max(1) } else { DEPTH };
    // An empty sum still has to write its zeros.
    (0..len.max(1)).step_by(depth).map(move |first| (first, depth.min(len - first)))
}

/// Calls `body` with W[features, columns] as `f32`.
fn with_panel(
    w: WeightView<'_>,
    n_in: usize,
    features: Range,
    columns: Range,
    body: impl FnOnce(MatRef<'_>),
) {
    if let WeightView::F32(w) = w {
        let at = (features.0 * n_in + columns.0).min(w.len());
        return body(MatRef::new(&w[at..], features.1, columns.1, n_in));
    }
    PANEL.with_borrow_mut(|scratch| {
        let panel = grown(scratch, features.1 * columns.1);
        for (row, out) in panel.chunks_exact_mut(columns.1.max(1)).enumerate() {
            w.widen((features.0 + row) * n_in + columns.0, out);
        }
        body(MatRef::new(panel, features.1, columns.1, columns.1));
    });
}

/// The first `len` elements of a scratch buffer that only ever grows.
pub(crate) fn grown(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

/// y = x W^T + b for up to [`FEW_ROWS`] rows: one pass over the weights where they lie.
fn few_rows(
    x: &[f32],
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    let per_task = (DOT_TASK / n_in.max(1)).clamp(1, n_out.max(1));
    let y = SharedMut::new(y);
    for_each_block(n_out.div_ceil(per_task), t * n_in * n_out, |block| {
        let first = block * per_task;
        let count = per_task.min(n_out - first);
        let mut dots = [0.0f32; FEW_ROWS];
        // SAFETY: this task alone writes these columns.
        let mut outs: [&mut [f32]; FEW_ROWS] = core::array::from_fn(|row| unsafe {
            y.part((row * n_out + first).min(t * n_out), if row < t { count } else { 0 })
        });
        for feature in 0..count {
            dot_rows(x, w, (first + feature) * n_in, n_in, &mut dots[..t]);
            let bias = bias.map_or(0.0, |bias| bias[first + feature]);
            for (out, dot) in outs.iter_mut().zip(&dots[..t]) {
                out[feature] = dot + bias;
            }
        }
    });
}

/// The dot products of one row of the weights with each row of x.
fn dot_rows(x: &[f32], w: WeightView<'_>, at: usize, n_in: usize, dots: &mut [f32]) {
    match w {
        WeightView::F32(w) => dot_rows_f32(x, &w[at..at + n_in], dots),
        WeightView::BF16(w) => dot_rows_bf16(x, &w[at..at + n_in], dots),
        WeightView::F16(_) => PANEL.with_borrow_mut(|scratch| {
            let row = grown(scratch, n_in);
            w.widen(at, row);
            dot_rows_f32(x, row, dots);
        }),
    }
}

multiversion! {
    fn widen_bf16(w: &[bf16], out: &mut [f32]) {
        for (out, w) in out.iter_mut().zip(w) {
            *out = widened(*w);
        }
    }
}

multiversion! {
    fn dot_rows_f32(x: &[f32], w: &[f32], dots: &mut [f32]) {
        match dots {
            [_] => dot_rows_of::<1, _>(x, w, |w| w, dots),
            [_, _] => dot_rows_of::<2, _>(x, w, |w| w, dots),
            [_, _, _] => dot_rows_of::<3, _>(x, w, |w| w, dots),
            _ => dot_rows_of::<FEW_ROWS, _>(x, w, |w| w, dots),
        }
    }
}

multiversion! {
    fn dot_rows_bf16(x: &[f32], w: &[bf16], dots: &mut [f32]) {
        match dots {
            [_] => dot_rows_of::<1, _>(x, w, widened, dots),
            [_, _] => dot_rows_of::<2, _>(x, w, widened, dots),
            [_, _, _] => dot_rows_of::<3, _>(x, w, widened, dots),
            _ => dot_rows_of::<FEW_ROWS, _>(x, w, widened, dots),
        }
    }
}

/// Exact, quieting no NaN: bf16 is the upper half of an `f32`.
#[inline(always)]
fn widened(w: bf16) -> f32 {
    f32::from_bits(u32::from(w.to_bits()) << 16)
}

#[inline(always)]
fn dot_rows_of<const T: usize, W: Copy>(x: &[f32], w: &[W], widen: impl Fn(W) -> f32, dots: &mut [f32]) {
    const STEP: usize = 2 * LANES;
    let n = w.len();
    let whole = n / STEP * STEP;
    let rows: [&[f32]; T] = core::array::from_fn(|row| &x[row * n..(row + 1) * n]);
    let mut lanes = [[0.0f32; STEP]; T];
    for at in (0..whole).step_by(STEP) {
        let w: [f32; STEP] = core::array::from_fn(|l| widen(w[at + l]));
        for (lanes, row) in lanes.iter_mut().zip(&rows) {
            let x = &row[at..at + STEP];
            for l in 0..STEP {
                lanes[l] += x[l] * w[l];
            }
        }
    }
    for ((dot, lanes), row) in dots.iter_mut().zip(lanes).zip(&rows) {
        *dot = sum_lanes(lanes);
        for at in whole..n {
            *dot += row[at] * widen(w[at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{Dice, assert_close, assert_same_for_any_threads, poisoned, random};

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
        let mut shapes =
            vec![(0, 3, 2), (3, 0, 2), (6, 0, 5), (1, 1, 1), (2, 33, 1), (5, 1, 7), (17, 2, 300)];
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
            out.iter()
                .zip(&f16s[1..])
                .all(|(&o, w)| f64::from(o) == w.to_f64() || (o.is_nan() && w.is_nan()))
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
}
