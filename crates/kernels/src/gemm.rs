//! Matrix products of `f32` activations with `f32`, `bf16`, `f16` or quantised weights.
//!
//! The products are those of the `gemm` crate (AVX-512, AVX2, NEON or plain, found at run time), called on one thread per tile. Tiles are
//! cut at fixed sizes and each tile is summed over k by one task in one order, so the number of threads never shows in a result. The
//! number of rows T may: products of up to [`FEW_ROWS`] rows (decoding) run through a dot-product kernel that reads the weights once and
//! in place, and larger ones sum in another order. A row's result is therefore the same up to rounding, not bit for bit, in batches of
//! different size.
//!
//! Narrow and quantised weights are widened panel by panel into at most [`PANEL_BYTES`] per task, never as a whole; forward and backward see
//! the same values.

#![expect(unsafe_code, reason = "passes strided views to the gemm crate")]

#[cfg(test)]
mod tests;
mod thin;

use crate::product::{Operand, multiply_here};
use crate::shared::SharedMut;
use crate::threads::for_each_block;
use core::cell::RefCell;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use taper_quant::{BlockFormat, QuantizedTensor};

/// Up to this many rows a linear layer runs through the dot-product kernel.
pub const FEW_ROWS: usize = 16;
/// The most scratch memory that a task widens weights into.
pub const PANEL_BYTES: usize = 1024 * 1024;

/// Sides of the tiles of a general product.
const TILE: usize = 384;
/// Output features that a task of a linear layer makes: four register blocks of the AVX-512 kernel.
const FEATURES: usize = 192;
/// The same over blocks of 256, so that no block is decoded for two panels.
const BLOCK_FEATURES: usize = 256;
/// Rows of x that a task of a linear layer reads, at most: the more, the less often the weights are packed.
const ROWS: usize = 1024;
/// The least of them, where the layer is too narrow to be shared by its features alone (adapters).
const FEW_FEATURES_ROWS: usize = 64;
/// Depth of a panel of widened weights.
const DEPTH: usize = 1024;

const _: () = assert!(FEATURES * DEPTH * size_of::<f32>() <= PANEL_BYTES);
const _: () = assert!(BLOCK_FEATURES * DEPTH * size_of::<f32>() <= PANEL_BYTES);

/// The weights of a layer, as they are stored.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum WeightView<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// The upper halves of 32-bit floats.
    BF16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Coded in blocks.
    Quantized(&'a QuantizedTensor),
}

impl WeightView<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(w) => w.len(),
            Self::BF16(w) => w.len(),
            Self::F16(w) => w.len(),
            Self::Quantized(w) => w.len(),
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
            Self::Quantized(w) => decode(w, start, out),
        }
    }

    /// Columns of W that a panel spans where rows are summed over (the input gradient).
    fn panel_columns(&self) -> usize {
        match self {
            Self::Quantized(w) => match w.format() {
                BlockFormat::Ggml(t) if t.block_len() > FEATURES => BLOCK_FEATURES,
                _ => FEATURES,
            },
            _ => FEATURES,
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
    if crate::rows::are_few(t) {
        return thin::multiply(thin::Rows::F32(x), w, bias, y, t, n_in, n_out);
    }
    let y = SharedMut::new(y);
    for_each_tile(t, n_out, rows_per_tile(t, n_out), FEATURES, t * n_in * n_out, |rows, features| {
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

/// [`linear_forward`] of up to [`FEW_ROWS`] rows in bf16 over weights in bf16, or rounded to it; false where the processor cannot.
///
/// # Panics
/// When a length does not fit.
pub(crate) fn few_bf16_rows(
    x: &[bf16],
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if crate::rows::are_few(t) && crate::product::has_dots_bf16() {
        check_linear(x.len(), w.len(), y.len(), t, n_in, n_out);
        thin::multiply(thin::Rows::BF16(x), w, bias, y, t, n_in, n_out);
        return true;
    }
    false
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
    let across = w.panel_columns();
    for_each_tile(t, n_in, rows_per_tile(t, n_in), across, t * n_in * n_out, |rows, columns| {
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

    /// The rows of a matrix that is not transposed.
    #[inline(always)]
    pub(crate) fn row_slices(self) -> impl Iterator<Item = &'a [f32]> {
        debug_assert_eq!(self.column_stride, 1, "rows that lie in memory");
        (0..self.rows).map(move |row| &self.data[row * self.row_stride..][..self.columns])
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

/// [`multiply`] by 1 with both sides rounded to bf16.
pub(crate) fn multiply_rounded(c: &mut MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool) {
    assert_eq!((a.rows, b.columns, a.columns), (c.rows, c.columns, b.rows), "shapes of a product");
    let left = match a.column_stride {
        1 => Operand::strided(WeightView::F32(a.data), a.rows, a.columns, a.row_stride, true),
        stride => Operand::strided(WeightView::F32(a.data), a.rows, a.columns, stride, false),
    };
    let right = match b.row_stride {
        1 => Operand::strided(WeightView::F32(b.data), b.columns, b.rows, b.column_stride, true),
        stride => Operand::strided(WeightView::F32(b.data), b.columns, b.rows, stride, false),
    };
    multiply_here(left, right, |row, first, sums| {
        assert!(row < c.rows && first + sums.len() <= c.columns);
        // SAFETY: within the matrix, which `c` has for itself.
        let out =
            unsafe { core::slice::from_raw_parts_mut(c.start.add(row * c.row_stride + first), sums.len()) };
        crate::product::write_row(sums, None, accumulate, out);
    });
}

fn check_linear(x: usize, w: usize, y: usize, t: usize, n_in: usize, n_out: usize) {
    let want = (t * n_in, n_in * n_out, t * n_out);
    assert_eq!((x, w, y), want, "lengths of [T,in], [out,in], [T,out] for T={t} in={n_in} out={n_out}");
}

/// Rows of a tile of a linear layer: a function of the shape alone.
fn rows_per_tile(t: usize, width: usize) -> usize {
    let across = width.div_ceil(FEATURES);
    if across >= 8 {
        ROWS
    } else {
        t.div_ceil(8).next_multiple_of(FEW_FEATURES_ROWS).clamp(FEW_FEATURES_ROWS, ROWS)
    }
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

/// Elements of blocks by the fastest decoder at hand.
fn decode(w: &QuantizedTensor, start: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::decode::decode(w, start, out) {
        return;
    }
    decode_any(w, start, out);
}

multiversion! {
    /// The decoder of `quant` compiled for the instruction set at hand.
    fn decode_any(w: &QuantizedTensor, start: usize, out: &mut [f32]) {
        w.decode(start, out);
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
    /// The dot product.
    pub(crate) fn dot_f32(x: &[f32], w: &[f32]) -> f32 {
        crate::simd::dot(x, w)
    }
}

/// Exact, quieting no NaN: bf16 is the upper half of an `f32`.
#[inline(always)]
fn widened(w: bf16) -> f32 {
    f32::from_bits(u32::from(w.to_bits()) << 16)
}
