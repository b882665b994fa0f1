//! Products of matrices through cuBLAS: row-major, f32 sums, `beta` for what is added to.

use super::{FloatType, Gpu, GpuError, Slice, SliceMut};
use cudarc::cublas::{result, sys};

/// A matrix that lies in rows of `stride` elements, or its transpose.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// From the first element on.
    pub values: Slice<'a>,
    /// Elements from a row to the next.
    pub stride: usize,
    /// Whether the transpose of what lies there is meant.
    pub transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` that lie close.
    pub fn rows(values: Slice<'a>, width: usize) -> Self {
        Self { values, stride: width, transposed: false }
    }

    /// The transpose of rows of `width` that lie close.
    pub fn transpose_of(values: Slice<'a>, width: usize) -> Self {
        Self { values, stride: width, transposed: true }
    }

    fn check(&self, rows: usize, columns: usize) {
        let (rows, columns) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let needed = if rows == 0 { 0 } else { (rows - 1) * self.stride + columns };
        assert!(
            self.stride >= columns && self.values.len() >= needed,
            "{} elements in rows of {} for [{rows}, {columns}]",
            self.values.len(),
            self.stride
        );
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.transposed {
            sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            sys::cublasOperation_t::CUBLAS_OP_N
        }
    }
}

/// Where a product goes: rows of `stride` elements, and whether it is added to what is there.
#[derive(Debug)]
pub struct Target<'a> {
    /// From the first element on.
    pub values: SliceMut<'a>,
    /// Elements from a row to the next.
    pub stride: usize,
    /// Add.
    pub accumulate: bool,
}

/// c `[m, n]` = alpha a b, or `c += alpha a b`: a `[m, k]` and b `[k, n]` of one type; c f32, or bf16 where they are.
///
/// # Errors
/// What cuBLAS says.
pub fn matmul(
    gpu: &Gpu,
    c: &mut Target<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    (m, n, k): (usize, usize, usize),
    alpha: f32,
) -> Result<(), GpuError> {
    a.check(m, k);
    b.check(k, n);
    assert!(m == 0 || c.stride >= n && c.values.len() >= (m - 1) * c.stride + n, "a result of [{m}, {n}]");
    assert_eq!(a.values.dtype(), b.values.dtype(), "types of both sides");
    if m == 0 || n == 0 {
        return Ok(());
    }
    let beta: f32 = if c.accumulate { 1.0 } else { 0.0 };
    let int = |size: usize| i32::try_from(size).map_err(|_| too_large(size));
    let types = (data_type(b.values.dtype()), data_type(a.values.dtype()), data_type(c.values.dtype()));
    // cuBLAS's matrices are column-major: it sees the transposes, and c^T = b^T a^T.
    // SAFETY: the operands were compared with the sizes above, and lie in memory that is alive until the stream has passed.
    let done = unsafe {
        result::gemm_ex(
            *gpu.blas().handle(),
            b.operation(),
            a.operation(),
            int(n)?,
            int(m)?,
            int(k)?,
            (&raw const alpha).cast(),
            b.values.ptr() as *const _,
            types.0,
            int(b.stride)?,
            a.values.ptr() as *const _,
            types.1,
            int(a.stride)?,
            (&raw const beta).cast(),
            c.values.ptr() as *mut _,
            types.2,
            int(c.stride)?,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    done.map_err(|e| GpuError::Failed {
        what: format!("product of [{m}, {k}] and [{k}, {n}]"),
        message: format!("{e:?}"),
    })
}

fn too_large(size: usize) -> GpuError {
    GpuError::Failed {
        what: "product".into(),
        message: format!("a side of {size} elements, more than 2^31 - 1"),
    }
}

fn data_type(dtype: FloatType) -> sys::cudaDataType {
    match dtype {
        FloatType::F32 => sys::cudaDataType::CUDA_R_32F,
        FloatType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        FloatType::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}
