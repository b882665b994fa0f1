//! Frozen weights in their coded form on a device: decoded, row by row looked up, and multiplied by few rows.
//!
//! The bytes on the device are those of [`QuantizedTensor`], so a matrix takes there what it takes in its file; the values are
//! those of [`QuantizedTensor::decode`] to the bit.

use super::elementwise::{THREADS, blocks};
use super::{FloatType, Gpu, GpuError, Slice, SliceMut, launch};
use cudarc::driver::{CudaSlice, DevicePtr};
use taper_quant::plain::IQ4_VALUES;
use taper_quant::{Absmax, FourBit, GgmlType, Parts, QuantizedTensor};

/// Rows that [`thin`] takes at most.
pub const THIN_ROWS: usize = 8;

/// Warps of a block of the thin kernels, `THIN_WARPS` there.
const THIN_WARPS: usize = 8;
/// Warps of all rows together up to which [`thin`] gives a row several.
const ENOUGH_WARPS: usize = 8192;
/// Columns that a warp should have at least when it shares a row: four steps of 32 lanes with 8 elements.
const COLUMNS_A_WARP: usize = 1024;

/// A matrix `[rows, columns]` on a device, coded as it was.
#[derive(Debug)]
pub struct GpuQuantized {
    rows: usize,
    columns: usize,
    /// As kernels are named.
    format: &'static str,
    codes: CudaSlice<u8>,
    /// A scale a row, an absolute maximum a block, or a nested one.
    scales: Option<CudaSlice<f32>>,
    /// Absolute maxima that are themselves coded.
    scale_codes: Option<CudaSlice<u8>>,
    /// What a nibble stands for (16), what a coded absolute maximum stands for (256), what is added to it.
    tables: Option<CudaSlice<f32>>,
    block_shift: i32,
    nested_shift: i32,
}

impl GpuQuantized {
    /// A copy of a matrix on the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn upload(gpu: &Gpu, matrix: &QuantizedTensor) -> Result<Self, GpuError> {
        let (rows, columns) = matrix.dims();
        let (format, codes) = match matrix.parts() {
            Parts::FourBit(m) => ("four_bit", m.packed()),
            Parts::Int8(m) => ("int8", m.codes()),
            Parts::Ggml(ggml_type, bytes) => (ggml_name(ggml_type), bytes),
        };
        let (codes, scales, scale_codes, tables) = (gpu.upload::<u8>(codes)?, None, None, None);
        let (block_shift, nested_shift) = (0, 0);
        let mut coded =
            Self { rows, columns, format, codes, scales, scale_codes, tables, block_shift, nested_shift };
        match matrix.parts() {
            Parts::FourBit(m) => coded.upload_maxima(gpu, m)?,
            Parts::Int8(m) => coded.scales = Some(gpu.upload(m.scales())?),
            Parts::Ggml(GgmlType::Iq4Nl | GgmlType::Iq4Xs, _) => {
                coded.tables = Some(gpu.upload(&tables_of(&IQ4_VALUES))?);
            }
            Parts::Ggml(..) => {}
        }
        Ok(coded)
    }

    fn upload_maxima(&mut self, gpu: &Gpu, matrix: &FourBit) -> Result<(), GpuError> {
        self.block_shift = shift_of(matrix.block_size());
        let mut tables = tables_of(matrix.code());
        match matrix.absmax() {
            Absmax::Plain(values) => self.scales = Some(gpu.upload(values)?),
            Absmax::Double { codes, nested_absmax, nested_block_size, nested_code, offset } => {
                self.scales = Some(gpu.upload(nested_absmax)?);
                self.scale_codes = Some(gpu.upload::<u8>(codes)?);
                self.nested_shift = shift_of(*nested_block_size);
                tables[16..272].copy_from_slice(&nested_code[..]);
                tables[272] = *offset;
            }
        }
        self.tables = Some(gpu.upload(&tables)?);
        Ok(())
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let floats = |values: &Option<CudaSlice<f32>>| values.as_ref().map_or(0, CudaSlice::num_bytes);
        let scale_codes = self.scale_codes.as_ref().map_or(0, CudaSlice::num_bytes);
        self.codes.num_bytes() + floats(&self.scales) + scale_codes + floats(&self.tables)
    }

    /// As all kernels take it.
    fn args(&self, gpu: &Gpu) -> Args {
        let floats =
            |values: &Option<CudaSlice<f32>>| values.as_ref().map_or(0, |v| v.device_ptr(gpu.stream()).0);
        Args {
            codes: self.codes.device_ptr(gpu.stream()).0,
            scales: floats(&self.scales),
            scale_codes: self.scale_codes.as_ref().map_or(0, |v| v.device_ptr(gpu.stream()).0),
            tables: floats(&self.tables),
            block_shift: self.block_shift,
            nested_shift: self.nested_shift,
            columns: self.columns as i64,
        }
    }
}

/// The parameters that all kernels begin with; an address is 0 where a format has no such part.
#[derive(Clone, Copy)]
struct Args {
    codes: u64,
    scales: u64,
    scale_codes: u64,
    tables: u64,
    block_shift: i32,
    nested_shift: i32,
    columns: i64,
}

/// [`launch!`] for a kernel that takes a matrix first. What is given lives until the launch.
macro_rules! launch_coded {
    ($gpu:expr, $name:expr, $grid:expr, $threads:expr, $coded:expr, [$($arg:expr),*]) => {{
        let Args { codes, scales, scale_codes, tables, block_shift, nested_shift, columns } = $coded;
        launch!($gpu, Decode, $name, $grid, ($threads, 1, 1), 0, [
            &codes, &scales, &scale_codes, &tables, &block_shift, &nested_shift, &columns, $($arg),*
        ]);
    }};
}

fn ggml_name(ggml_type: GgmlType) -> &'static str {
    match ggml_type {
        GgmlType::F32 => "f32",
        GgmlType::F16 => "f16",
        GgmlType::BF16 => "bf16",
        GgmlType::Q4_0 => "q4_0",
        GgmlType::Q4_1 => "q4_1",
        GgmlType::Q5_0 => "q5_0",
        GgmlType::Q5_1 => "q5_1",
        GgmlType::Q8_0 => "q8_0",
        GgmlType::Q2K => "q2_k",
        GgmlType::Q3K => "q3_k",
        GgmlType::Q4K => "q4_k",
        GgmlType::Q5K => "q5_k",
        GgmlType::Q6K => "q6_k",
        GgmlType::Iq4Nl => "iq4_nl",
        GgmlType::Iq4Xs => "iq4_xs",
    }
}

/// The tables of a device, with what nibbles stand for.
fn tables_of(code: &[f32; 16]) -> Vec<f32> {
    let mut tables = vec![0.0; 16 + 256 + 1];
    tables[..16].copy_from_slice(code);
    tables
}

/// Of a power of two, as block sizes are.
fn shift_of(block_size: usize) -> i32 {
    block_size.trailing_zeros() as i32
}

/// Rows `first_row..first_row + rows`, in the type of `out`: f32, or bf16 rounded to the nearest.
///
/// # Errors
/// What the driver says.
pub fn decode(
    gpu: &Gpu,
    matrix: &GpuQuantized,
    first_row: usize,
    rows: usize,
    out: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let inside = first_row.checked_add(rows).is_some_and(|end| end <= matrix.rows);
    assert!(inside, "{rows} rows from {first_row} on, of {}", matrix.rows);
    assert_eq!(out.len(), rows * matrix.columns, "an output of {rows} rows of {}", matrix.columns);
    assert_ne!(out.dtype(), FloatType::F16, "an output in f32 or bf16");
    if out.is_empty() {
        return Ok(());
    }
    let name = format!("decode_{}_{}", matrix.format, out.dtype().name());
    let (first, count, to) = ((first_row * matrix.columns) as i64, out.len() as i64, out.ptr());
    let args = matrix.args(gpu);
    // A thread has eight elements.
    let grid = blocks(out.len().div_ceil(8));
    launch_coded!(gpu, &name, grid, THREADS, args, [&first, &count, &to]);
    Ok(())
}

/// out `[n, columns]`, f32: rows `ids` of the matrix. A row that is not there is NaN.
///
/// # Errors
/// What the driver says.
pub fn gather_rows(
    gpu: &Gpu,
    matrix: &GpuQuantized,
    ids: &CudaSlice<u32>,
    out: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    gather(gpu, matrix.format, matrix.args(gpu), matrix.rows, ids, out)
}

/// out `[n, columns]`, f32: rows `ids` of a table of floats. A row that is not there is NaN.
///
/// # Errors
/// What the driver says.
pub fn gather_dense(
    gpu: &Gpu,
    table: Slice<'_>,
    columns: usize,
    ids: &CudaSlice<u32>,
    out: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let rows = table.len() / columns.max(1);
    assert_eq!(table.len(), rows * columns, "a table of rows of {columns}");
    let (scales, scale_codes, tables, block_shift, nested_shift) = (0, 0, 0, 0, 0);
    let (codes, columns) = (table.ptr(), columns as i64);
    let args = Args { codes, scales, scale_codes, tables, block_shift, nested_shift, columns };
    gather(gpu, table.dtype().name(), args, rows, ids, out)
}

fn gather(
    gpu: &Gpu,
    format: &str,
    args: Args,
    rows: usize,
    ids: &CudaSlice<u32>,
    out: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let (n, columns) = (ids.len(), args.columns as usize);
    assert_eq!(out.len(), n * columns, "an output of {n} rows of {columns}");
    assert_eq!(out.dtype(), FloatType::F32, "an output in f32");
    if out.is_empty() {
        return Ok(());
    }
    let name = format!("rows_{format}");
    let (ids, _guard) = ids.device_ptr(gpu.stream());
    let (rows, to) = (rows as i64, out.ptr());
    launch_coded!(gpu, &name, (n as u32, 1, 1), THREADS, args, [&ids, &rows, &to]);
    Ok(())
}

/// Whether [`thin`] has a kernel for the format. The others are decoded, and multiplied by cuBLAS.
pub fn has_thin(matrix: &GpuQuantized) -> bool {
    matches!(matrix.format, "four_bit" | "int8" | "q8_0" | "q4_0" | "q4_k" | "q5_k" | "q6_k")
}

/// y `[m, rows]` = x `[m, columns]` W^T + bias for at most [`THIN_ROWS`] rows; x and y in f32 or bf16, bias `[rows]` in f32.
/// The weights are read once, in their coded form. A row of x has the same result among others as by itself.
///
/// # Errors
/// What the driver says.
pub fn thin(
    gpu: &Gpu,
    x: Slice<'_>,
    matrix: &GpuQuantized,
    bias: Option<Slice<'_>>,
    y: &mut SliceMut<'_>,
    m: usize,
) -> Result<(), GpuError> {
    let (rows, columns) = matrix.dims();
    assert!(has_thin(matrix) && m <= THIN_ROWS, "{m} rows times {}", matrix.format);
    assert_eq!((x.len(), y.len()), (m * columns, m * rows), "x and y of {m} rows, W [{rows}, {columns}]");
    assert!(x.dtype() != FloatType::F16 && y.dtype() != FloatType::F16, "x and y in f32 or bf16");
    if let Some(bias) = bias {
        assert_eq!((bias.len(), bias.dtype()), (rows, FloatType::F32), "a bias of {rows} in f32");
    }
    if y.is_empty() {
        return Ok(());
    }
    let (template, split) = (m.next_power_of_two(), split_of(rows, columns));
    // Rows of W that a warp has, as in the kernel.
    let rows_a_warp = if template >= 4 { 2 } else { 1 };
    let grid = rows.div_ceil(THIN_WARPS / split * rows_a_warp) as u32;
    let name = format!("thin_{}_{}_{template}", matrix.format, x.dtype().name());
    let (from, bias, to) = (x.ptr(), bias.map_or(0, |bias| bias.ptr()), y.ptr());
    let is_bf16 = i32::from(y.dtype() == FloatType::BF16);
    let (m, rows, split, args) = (m as i64, rows as i64, split as i32, matrix.args(gpu));
    launch_coded!(
        gpu,
        &name,
        (grid, 1, 1),
        (THIN_WARPS * 32) as u32,
        args,
        [&from, &m, &bias, &to, &is_bf16, &rows, &split]
    );
    Ok(())
}

/// Warps that share a row of W: more when there are few rows, as long as each has enough to do. Of the shapes of W alone, so
/// that a result does not depend on how many rows x has.
fn split_of(rows: usize, columns: usize) -> usize {
    let mut split = 1;
    while split < THIN_WARPS && rows * split < ENOUGH_WARPS && columns >= 2 * split * COLUMNS_A_WARP {
        split *= 2;
    }
    split
}
