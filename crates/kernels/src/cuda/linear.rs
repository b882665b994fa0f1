//! [`crate::linear`] on a device: linear layers, frozen or with a low-rank delta.
//!
//! As on the CPU the activations decide the arithmetic: f32 ones are multiplied in f32, bf16 ones in bf16 with f32 sums, weights, factors and
//! gradients rounded to bf16 on their way. Weights in blocks are decoded some rows at a time into memory that is used again.

use super::decode::{self, GpuQuantized};
use super::gemm::{Matrix, Target, matmul};
use super::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, elementwise};
use half::bf16;

/// Bytes of decoded weights at a time: large enough for a product to fill the device.
const DECODED_BYTES: usize = 64 << 20;
/// Rows up to which a product reads blocks as they are.
const THIN_ROWS: usize = 8;

/// A weight `[out, in]` on a device.
#[derive(Debug, Clone, Copy)]
pub enum GpuWeight<'a> {
    /// In rows.
    Dense(Slice<'a>),
    /// In blocks.
    Quantized(&'a GpuQuantized),
}

/// The two factors of a delta `s (x A^T) B^T`, f32: A `[r, in]`, B `[out, r]`.
#[derive(Debug, Clone, Copy)]
pub struct GpuDelta<'a> {
    /// A.
    pub a: Slice<'a>,
    /// B.
    pub b: Slice<'a>,
    /// r.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

/// T, in and out of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of activations.
    pub t: usize,
    /// in.
    pub n_in: usize,
    /// out.
    pub n_out: usize,
}

/// Values in another type: where they lie, or converted.
#[derive(Debug)]
pub enum Converted<'a> {
    /// In that type already.
    Same(Slice<'a>),
    /// Now f32.
    F32(Buffer<f32>, usize),
    /// Now bf16.
    BF16(Buffer<bf16>, usize),
}

impl<'a> Converted<'a> {
    /// `values` in `dtype`, f32 or bf16.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: &Gpu, values: Slice<'a>, dtype: FloatType) -> Result<Self, GpuError> {
        let (len, stream) = (values.len(), gpu.stream());
        if values.dtype() == dtype {
            return Ok(Self::Same(values));
        }
        if dtype == FloatType::BF16 {
            let mut buffer = Buffer::new(stream, len)?;
            elementwise::scale(gpu, values, 1.0, &mut buffer.slice_mut(stream).part(0..len))?;
            return Ok(Self::BF16(buffer, len));
        }
        let mut buffer = Buffer::new(stream, len)?;
        elementwise::scale(gpu, values, 1.0, &mut buffer.slice_mut(stream).part(0..len))?;
        Ok(Self::F32(buffer, len))
    }

    /// The values.
    pub fn slice(&self, gpu: &Gpu) -> Slice<'_> {
        match self {
            Self::Same(values) => *values,
            Self::F32(buffer, len) => buffer.slice(gpu.stream()).part(0..*len),
            Self::BF16(buffer, len) => buffer.slice(gpu.stream()).part(0..*len),
        }
    }
}

/// y `[T, out]` = x `[T, in]` W^T + b; y f32, or bf16 where x is.
///
/// # Errors
/// What the driver and cuBLAS say.
pub fn forward(
    gpu: &Gpu,
    x: Slice<'_>,
    w: GpuWeight<'_>,
    bias: Option<Slice<'_>>,
    y: &mut SliceMut<'_>,
    sizes: Sizes,
) -> Result<(), GpuError> {
    let Sizes { t, n_in, n_out } = sizes;
    assert_eq!((x.len(), y.len()), (t * n_in, t * n_out), "x and y of a layer");
    if let GpuWeight::Quantized(blocks) = w
        && t <= THIN_ROWS
        && decode::has_thin(blocks)
    {
        return decode::thin(gpu, x, blocks, bias, y, t);
    }
    for_each_rows(gpu, w, x.dtype(), sizes, |first, rows, weight| {
        let values = y.part(first..t.max(1) * n_out - n_out + first + rows);
        let mut target = Target { values, stride: n_out, accumulate: false };
        let transposed = Matrix::transpose_of(weight, n_in);
        matmul(gpu, &mut target, Matrix::rows(x, n_in), transposed, (t, rows, n_in), 1.0)
    })?;
    let Some(bias) = bias else { return Ok(()) };
    elementwise::add_bias_in_place(gpu, y, bias)
}

/// dx `[T, in]` f32 = g `[T, out]` W, or what is added to it with `accumulate`; g in the type of the layer's products.
///
/// # Errors
/// What the driver and cuBLAS say.
pub fn backward_input(
    gpu: &Gpu,
    g: Slice<'_>,
    w: GpuWeight<'_>,
    dx: &mut SliceMut<'_>,
    sizes: Sizes,
    accumulate: bool,
) -> Result<(), GpuError> {
    let Sizes { t, n_in, n_out } = sizes;
    assert_eq!((g.len(), dx.len()), (t * n_out, t * n_in), "g and dx of a layer");
    for_each_rows(gpu, w, g.dtype(), sizes, |first, rows, weight| {
        let values = dx.reborrow();
        let mut target = Target { values, stride: n_in, accumulate: accumulate || first > 0 };
        let part = g.part(first..t.max(1) * n_out - n_out + first + rows);
        let g = Matrix { values: part, stride: n_out, transposed: false };
        matmul(gpu, &mut target, g, Matrix::rows(weight, n_in), (t, n_in, rows), 1.0)
    })
}

/// dw `[out, in]` f32 = g^T x, or what is added to it with `accumulate`; g and x of one type.
///
/// # Errors
/// What cuBLAS says.
pub fn backward_weight(
    gpu: &Gpu,
    g: Slice<'_>,
    x: Slice<'_>,
    dw: &mut SliceMut<'_>,
    sizes: Sizes,
    accumulate: bool,
) -> Result<(), GpuError> {
    let Sizes { t, n_in, n_out } = sizes;
    let mut target = Target { values: dw.reborrow(), stride: n_in, accumulate };
    matmul(gpu, &mut target, Matrix::transpose_of(g, n_out), Matrix::rows(x, n_in), (n_out, n_in, t), 1.0)
}

/// y `[T, out]` = x W^T + b + s (x' A^T) B^T, with x' = `dropped` where there is dropout; h = x' A^T `[T, r]` f32 is kept.
///
/// # Errors
/// What the driver and cuBLAS say.
pub fn lora_forward(
    gpu: &Gpu,
    (x, dropped): (Slice<'_>, Option<Slice<'_>>),
    base: Option<(GpuWeight<'_>, Option<Slice<'_>>)>,
    delta: &GpuDelta<'_>,
    y: &mut SliceMut<'_>,
    h: &mut SliceMut<'_>,
    sizes: Sizes,
) -> Result<(), GpuError> {
    let Sizes { t, n_in, n_out } = sizes;
    let (r, dtype) = (delta.rank, x.dtype());
    let a = Converted::new(gpu, delta.a, dtype)?;
    let mut target = Target { values: h.reborrow(), stride: r, accumulate: false };
    let low_in = Matrix::rows(dropped.unwrap_or(x), n_in);
    matmul(gpu, &mut target, low_in, Matrix::transpose_of(a.slice(gpu), n_in), (t, r, n_in), 1.0)?;
    let has_base = base.is_some();
    if let Some((weight, bias)) = base {
        forward(gpu, x, weight, bias, y, sizes)?;
    }
    let (h, b) = (Converted::new(gpu, h.as_slice(), dtype)?, Converted::new(gpu, delta.b, dtype)?);
    let mut target = Target { values: y.reborrow(), stride: n_out, accumulate: has_base };
    let b = Matrix::transpose_of(b.slice(gpu), r);
    matmul(gpu, &mut target, Matrix::rows(h.slice(gpu), r), b, (t, n_out, r), delta.scale)
}

/// gh `[T, r]` f32 = s g B, with g in the type of the layer's products.
///
/// # Errors
/// What the driver and cuBLAS say.
pub fn lora_backward_hidden(
    gpu: &Gpu,
    g: Slice<'_>,
    delta: &GpuDelta<'_>,
    gh: &mut SliceMut<'_>,
    sizes: Sizes,
) -> Result<(), GpuError> {
    let b = Converted::new(gpu, delta.b, g.dtype())?;
    let mut target = Target { values: gh.reborrow(), stride: delta.rank, accumulate: false };
    let (g, b) = (Matrix::rows(g, sizes.n_out), Matrix::rows(b.slice(gpu), delta.rank));
    matmul(gpu, &mut target, g, b, (sizes.t, delta.rank, sizes.n_out), delta.scale)
}

/// dx `[T, in]` f32 (+)= gh A, with gh in the type of the layer's products.
///
/// # Errors
/// What the driver and cuBLAS say.
pub fn lora_backward_low(
    gpu: &Gpu,
    gh: Slice<'_>,
    delta: &GpuDelta<'_>,
    dx: &mut SliceMut<'_>,
    sizes: Sizes,
    accumulate: bool,
) -> Result<(), GpuError> {
    let a = Converted::new(gpu, delta.a, gh.dtype())?;
    let mut target = Target { values: dx.reborrow(), stride: sizes.n_in, accumulate };
    let (gh, a) = (Matrix::rows(gh, delta.rank), Matrix::rows(a.slice(gpu), sizes.n_in));
    matmul(gpu, &mut target, gh, a, (sizes.t, sizes.n_in, delta.rank), 1.0)
}

/// dA `[r, in]` (+)= gh^T x', dB `[out, r]` (+)= s g^T h: the transpose of the left `[T, m]` times the right `[T, n]`, of one type, into f32.
///
/// # Errors
/// What cuBLAS says.
pub fn factor_gradient(
    gpu: &Gpu,
    left: Slice<'_>,
    right: Slice<'_>,
    out: &mut SliceMut<'_>,
    (t, m, n): (usize, usize, usize),
    (scale, accumulate): (f32, bool),
) -> Result<(), GpuError> {
    let mut target = Target { values: out.reborrow(), stride: n, accumulate };
    matmul(gpu, &mut target, Matrix::transpose_of(left, m), Matrix::rows(right, n), (m, n, t), scale)
}

/// Calls `body(first, rows, weight)` with parts of the weight in `dtype`, from the first row to the last: all of it where it lies so.
fn for_each_rows(
    gpu: &Gpu,
    w: GpuWeight<'_>,
    dtype: FloatType,
    sizes: Sizes,
    mut body: impl FnMut(usize, usize, Slice<'_>) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let (n_in, n_out, stream) = (sizes.n_in, sizes.n_out, gpu.stream());
    let rows = (DECODED_BYTES / (n_in * dtype.bytes()).max(1)).clamp(1, n_out.max(1));
    let blocks = match w {
        GpuWeight::Dense(values) => {
            assert_eq!(values.len(), n_out * n_in, "a weight of [{n_out}, {n_in}]");
            let rows = if values.dtype() == dtype { n_out } else { rows };
            for first in (0..n_out).step_by(rows.max(1)) {
                let rows = rows.min(n_out - first);
                let part = Converted::new(gpu, values.part(first * n_in..(first + rows) * n_in), dtype)?;
                body(first, rows, part.slice(gpu))?;
            }
            return Ok(());
        }
        GpuWeight::Quantized(blocks) => blocks,
    };
    assert_eq!(blocks.dims(), (n_out, n_in), "a weight in blocks");
    let (mut narrow, mut wide) = (None, None);
    for first in (0..n_out).step_by(rows) {
        let here = rows.min(n_out - first);
        let mut decoded = if dtype == FloatType::BF16 {
            let buffer = match &mut narrow {
                Some(buffer) => buffer,
                None => narrow.insert(Buffer::<bf16>::new(stream, rows * n_in)?),
            };
            buffer.slice_mut(stream)
        } else {
            let buffer = match &mut wide {
                Some(buffer) => buffer,
                None => wide.insert(Buffer::<f32>::new(stream, rows * n_in)?),
            };
            buffer.slice_mut(stream)
        };
        let mut decoded = decoded.part(0..here * n_in);
        decode::decode(gpu, blocks, first, here, &mut decoded)?;
        body(first, here, decoded.as_slice())?;
    }
    Ok(())
}
