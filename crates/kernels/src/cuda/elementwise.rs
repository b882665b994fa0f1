//! [`crate::elementwise`], [`crate::columns`], [`crate::soft_cap`] and the rows of [`crate::embedding`] on a device.

use super::{Buffer, Gpu, GpuError, Slice, SliceMut, launch};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::ops::Range;

/// Threads of a block whose threads have elements of their own.
pub(super) const THREADS: u32 = 256;
/// Rows that one block sums where there are many.
const ROWS_PER_BLOCK: usize = 256;

/// Blocks for `n` elements; with more than this each thread has several.
pub(super) fn blocks(n: usize) -> (u32, u32, u32) {
    (n.div_ceil(THREADS as usize).clamp(1, 1 << 20) as u32, 1, 1)
}

/// Blocks whose threads have a column of a matrix each, in some of its rows.
pub(super) fn blocks_of_columns(rows: usize, width: usize) -> (u32, u32, u32) {
    (width.div_ceil(THREADS as usize).max(1) as u32, rows.clamp(1, 1 << 12) as u32, 1)
}

/// `out = x + y`: f32, or bf16 where all are.
///
/// # Errors
/// What the driver says.
pub fn add(gpu: &Gpu, x: Slice<'_>, y: Slice<'_>, out: &mut SliceMut<'_>) -> Result<(), GpuError> {
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "lengths of x and y against out");
    let name = format!("add_{}_{}_{}", x.dtype().name(), y.dtype().name(), out.dtype().name());
    let n = out.len();
    launch!(
        gpu,
        Elementwise,
        &name,
        blocks(n),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &y.ptr(), &out.ptr(), &(n as i64)]
    );
    Ok(())
}

/// `out = factor x`, in the type of out.
///
/// # Errors
/// What the driver says.
pub fn scale(gpu: &Gpu, x: Slice<'_>, factor: f32, out: &mut SliceMut<'_>) -> Result<(), GpuError> {
    assert_eq!(x.len(), out.len(), "lengths of x and out");
    let (name, n) = (format!("scale_{}_{}", x.dtype().name(), out.dtype().name()), out.len());
    launch!(
        gpu,
        Elementwise,
        &name,
        blocks(n),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &factor, &out.ptr(), &(n as i64)]
    );
    Ok(())
}

/// `y += alpha x`, f32.
///
/// # Errors
/// What the driver says.
pub fn axpy(gpu: &Gpu, alpha: f32, x: Slice<'_>, y: &mut SliceMut<'_>) -> Result<(), GpuError> {
    assert_eq!(x.len(), y.len(), "lengths of x and y");
    let n = y.len();
    launch!(
        gpu,
        Elementwise,
        "axpy_f32",
        blocks(n),
        (THREADS, 1, 1),
        0,
        [&alpha, &x.ptr(), &y.ptr(), &(n as i64)]
    );
    Ok(())
}

/// Zeros.
///
/// # Errors
/// What the driver says.
pub fn fill_zeros(gpu: &Gpu, y: &mut SliceMut<'_>) -> Result<(), GpuError> {
    y.set_zero(gpu.stream()).map_err(|e| GpuError::launch("fill with zeros", e))
}

/// `out = x y`, f32.
///
/// # Errors
/// What the driver says.
pub fn multiply(gpu: &Gpu, x: Slice<'_>, y: Slice<'_>, out: &mut SliceMut<'_>) -> Result<(), GpuError> {
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "lengths of x and y against out");
    let n = out.len() as i64;
    launch!(
        gpu,
        Elementwise,
        "multiply_f32",
        blocks(out.len()),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &y.ptr(), &out.ptr(), &n]
    );
    Ok(())
}

/// y `[T, n]` = x plus `bias` `[n]`, in the type of x.
///
/// # Errors
/// What the driver says.
pub fn add_bias(gpu: &Gpu, x: Slice<'_>, bias: Slice<'_>, y: &mut SliceMut<'_>) -> Result<(), GpuError> {
    over_columns(gpu, "add_bias", x, bias, y)
}

/// y `[T, n]` plus `bias` `[n]`, where it lies: each thread reads the element that it writes.
///
/// # Errors
/// What the driver says.
pub fn add_bias_in_place(gpu: &Gpu, y: &mut SliceMut<'_>, bias: Slice<'_>) -> Result<(), GpuError> {
    let (ptr, len, name) = (y.ptr(), y.len(), format!("add_bias_{}", y.dtype().name()));
    assert!(len.is_multiple_of(bias.len().max(1)), "{len} elements in rows of {}", bias.len());
    let (rows, width) = (len / bias.len().max(1), bias.len());
    launch!(
        gpu,
        Elementwise,
        &name,
        blocks_of_columns(rows, width),
        (THREADS, 1, 1),
        0,
        [&ptr, &bias.ptr(), &ptr, &(rows as i64), &(width as i64)]
    );
    Ok(())
}

/// y `[T, n]` = x times `factors` `[n]`, in the type of x.
///
/// # Errors
/// What the driver says.
pub fn scale_columns(
    gpu: &Gpu,
    x: Slice<'_>,
    factors: Slice<'_>,
    y: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    over_columns(gpu, "scale_columns", x, factors, y)
}

fn over_columns(
    gpu: &Gpu,
    what: &str,
    x: Slice<'_>,
    columns: Slice<'_>,
    y: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    assert_eq!((x.len(), x.dtype()), (y.len(), y.dtype()), "x and y");
    assert!(
        x.len().is_multiple_of(columns.len().max(1)),
        "{} elements in rows of {}",
        x.len(),
        columns.len()
    );
    let (rows, width) = (y.len() / columns.len().max(1), columns.len());
    let name = format!("{what}_{}", x.dtype().name());
    launch!(
        gpu,
        Elementwise,
        &name,
        blocks_of_columns(rows, width),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &columns.ptr(), &y.ptr(), &(rows as i64), &(width as i64)]
    );
    Ok(())
}

/// y `[T, n]` = columns `range` of x `[T, width]`.
///
/// # Errors
/// What the driver says.
pub fn columns(
    gpu: &Gpu,
    x: Slice<'_>,
    y: &mut SliceMut<'_>,
    width: usize,
    range: Range<usize>,
) -> Result<(), GpuError> {
    assert!(range.end <= width && x.dtype() == y.dtype(), "columns {range:?} of {width}");
    assert_eq!(x.len() / width * range.len(), y.len(), "lengths of x and y for columns {range:?} of {width}");
    let (name, rows) = (format!("columns_{}", x.dtype().name()), x.len() / width);
    let sizes = (width as i64, range.start as i64, range.len() as i64);
    launch!(
        gpu,
        Elementwise,
        &name,
        blocks_of_columns(rows, range.len()),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &y.ptr(), &(rows as i64), &sizes.0, &sizes.1, &sizes.2]
    );
    Ok(())
}

/// Adds g `[T, n]` to columns `range` of dx `[T, width]`.
///
/// # Errors
/// What the driver says.
pub fn add_columns(
    gpu: &Gpu,
    g: Slice<'_>,
    dx: &mut SliceMut<'_>,
    width: usize,
    range: Range<usize>,
) -> Result<(), GpuError> {
    assert!(range.end <= width, "columns {range:?} of {width}");
    assert_eq!(
        dx.len() / width * range.len(),
        g.len(),
        "lengths of dx and g for columns {range:?} of {width}"
    );
    let rows = dx.len() / width;
    let sizes = (width as i64, range.start as i64, range.len() as i64);
    launch!(
        gpu,
        Elementwise,
        "add_columns_f32",
        blocks_of_columns(rows, range.len()),
        (THREADS, 1, 1),
        0,
        [&g.ptr(), &dx.ptr(), &(rows as i64), &sizes.0, &sizes.1, &sizes.2]
    );
    Ok(())
}

/// sum `[n]` = the sum of the rows of x `[T, n]` f32, or what is added to it with `accumulate`.
///
/// # Errors
/// What the driver says.
pub fn sum_rows(gpu: &Gpu, x: Slice<'_>, sum: &mut SliceMut<'_>, accumulate: bool) -> Result<(), GpuError> {
    let width = sum.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "{} elements in rows of {width}", x.len());
    let rows = x.len() / width;
    let parts = rows.div_ceil(ROWS_PER_BLOCK).max(1);
    if parts == 1 {
        return sum_rows_once(gpu, x, sum, (rows, width, 1), accumulate);
    }
    let mut partial = Buffer::<f32>::new(gpu.stream(), parts * width)?;
    sum_rows_once(gpu, x, &mut partial.slice_mut(gpu.stream()), (rows, width, parts), false)?;
    sum_rows_once(gpu, partial.slice(gpu.stream()), sum, (parts, width, 1), accumulate)
}

fn sum_rows_once(
    gpu: &Gpu,
    x: Slice<'_>,
    out: &mut SliceMut<'_>,
    (rows, width, parts): (usize, usize, usize),
    accumulate: bool,
) -> Result<(), GpuError> {
    let grid = (width.div_ceil(THREADS as usize) as u32, parts as u32, 1);
    let sizes = (rows as i64, width as i64, rows.div_ceil(parts) as i64);
    launch!(
        gpu,
        Elementwise,
        "sum_rows_f32",
        grid,
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &out.ptr(), &sizes.0, &sizes.1, &sizes.2, &i32::from(accumulate)]
    );
    Ok(())
}

/// [`crate::soft_cap::soft_cap_forward`].
///
/// # Errors
/// What the driver says.
pub fn soft_cap_forward(gpu: &Gpu, x: Slice<'_>, cap: f32, y: &mut SliceMut<'_>) -> Result<(), GpuError> {
    assert_eq!(x.len(), y.len(), "lengths of x and y");
    let n = y.len() as i64;
    launch!(
        gpu,
        Elementwise,
        "soft_cap_forward_f32",
        blocks(y.len()),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &cap, &y.ptr(), &n]
    );
    Ok(())
}

/// [`crate::soft_cap::soft_cap_backward`].
///
/// # Errors
/// What the driver says.
pub fn soft_cap_backward(
    gpu: &Gpu,
    g: Slice<'_>,
    y: Slice<'_>,
    cap: f32,
    dx: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    assert_eq!((g.len(), y.len()), (dx.len(), dx.len()), "lengths of g and y against dx");
    let n = dx.len() as i64;
    launch!(
        gpu,
        Elementwise,
        "soft_cap_backward_f32",
        blocks(dx.len()),
        (THREADS, 1, 1),
        0,
        [&g.ptr(), &y.ptr(), &cap, &dx.ptr(), &n]
    );
    Ok(())
}

/// y `[n, width]` = rows `ids` of x `[T, width]`, f32. Ids are the caller's to check.
///
/// # Errors
/// What the driver says.
pub fn take_rows(
    gpu: &Gpu,
    x: Slice<'_>,
    ids: &CudaSlice<u32>,
    y: &mut SliceMut<'_>,
    width: usize,
) -> Result<(), GpuError> {
    move_rows(gpu, "take_rows_f32", x, ids, y, width)
}

/// Rows of x `[n, width]` to rows `ids` of y `[T, width]`, f32, no two of them one. Ids are the caller's to check.
///
/// # Errors
/// What the driver says.
pub fn put_rows(
    gpu: &Gpu,
    x: Slice<'_>,
    ids: &CudaSlice<u32>,
    y: &mut SliceMut<'_>,
    width: usize,
) -> Result<(), GpuError> {
    move_rows(gpu, "put_rows_f32", x, ids, y, width)
}

fn move_rows(
    gpu: &Gpu,
    name: &str,
    x: Slice<'_>,
    ids: &CudaSlice<u32>,
    y: &mut SliceMut<'_>,
    width: usize,
) -> Result<(), GpuError> {
    let n = ids.len() * width;
    assert!(
        x.len().min(y.len()) == n,
        "{} and {} elements for {} rows of {width}",
        x.len(),
        y.len(),
        ids.len()
    );
    let rows = ids.len();
    let (ids, _guard) = ids.device_ptr(gpu.stream());
    launch!(
        gpu,
        Elementwise,
        name,
        blocks_of_columns(rows, width),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &ids, &y.ptr(), &(rows as i64), &(width as i64)]
    );
    Ok(())
}

/// [`crate::embedding::scatter_add`]: each row of g `[T, width]` added to row `ids[t]` of the table, in the order of t.
///
/// # Errors
/// What the driver says.
pub fn scatter_add(
    gpu: &Gpu,
    g: Slice<'_>,
    ids: &[u32],
    table: &mut SliceMut<'_>,
    width: usize,
) -> Result<(), GpuError> {
    assert_eq!(g.len(), ids.len() * width, "length of g for {} ids and rows of {width}", ids.len());
    assert!(ids.iter().all(|id| (*id as usize) < table.len() / width), "an id outside the table");
    if ids.is_empty() {
        return Ok(());
    }
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|t| ids[*t as usize]);
    let (mut rows, mut starts) = (Vec::new(), vec![0u32]);
    for group in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
        rows.push(ids[group[0] as usize]);
        starts.push(starts[starts.len() - 1] + group.len() as u32);
    }
    // The second dimension of a grid ends at 65535 blocks.
    for first in (0..rows.len()).step_by(65535) {
        let last = rows.len().min(first + 65535);
        let upload = |values: &[u32]| gpu.upload(values);
        let (rows, starts, order) =
            (upload(&rows[first..last])?, upload(&starts[first..=last])?, upload(&order)?);
        let pointer = |buffer: &CudaSlice<u32>| buffer.device_ptr(gpu.stream()).0;
        let (rows, starts, order) = (pointer(&rows), pointer(&starts), pointer(&order));
        let grid = (width.div_ceil(THREADS as usize) as u32, (last - first) as u32, 1);
        launch!(
            gpu,
            Elementwise,
            "scatter_add_f32",
            grid,
            (THREADS, 1, 1),
            0,
            [&g.ptr(), &rows, &starts, &order, &table.ptr(), &(width as i64)]
        );
    }
    Ok(())
}
