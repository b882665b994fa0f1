//! Some rows of a matrix, outside any recording: what the loss is computed on, and the way back of its gradient.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::storage::{Lent, filled_f32, update, with_f32};
use candle_core::{DType, Tensor, bail};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::elementwise as device;

/// Rows `rows` of x `[T, H]`, f32 or bf16 -> `[n, H]` f32, where x lies.
///
/// # Errors
/// When a row is not below T.
pub fn take_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let h = check(x, rows)?;
    let x = &super::cast(x, DType::F32)?;
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::on(x.device()) {
        let (lent, ids) = (GpuLent::new(&place, x), place.upload_ids(rows)?);
        let values = lent.f32()?;
        return place.filled(DType::F32, (rows.len(), h), |y| {
            device::take_rows(&place, values, &ids, y, h).map_err(failed)
        });
    }
    let lent = Lent::new(x);
    let values = lent.f32()?;
    filled_f32((rows.len(), h), |y| {
        for (y, row) in y.chunks_exact_mut(h.max(1)).zip(rows) {
            y.copy_from_slice(&values[*row as usize * h..][..h]);
        }
        Ok(())
    })
}

/// Writes x `[n, H]` to rows `rows`, no two of them one, of y `[T, H]`, f32, which nobody else reads.
///
/// # Errors
/// When a row is not below T, or the shapes do not fit.
pub fn put_rows(x: &Tensor, rows: &[u32], y: &mut Tensor) -> Result<()> {
    let h = check(y, rows)?;
    if x.dims() != [rows.len(), h] {
        bail!("{:?} for {} rows of {h}", x.dims(), rows.len())
    }
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::on(y.device()) {
        let (lent, ids) = (GpuLent::new(&place, x), place.upload_ids(rows)?);
        let values = lent.f32()?;
        return crate::cuda::update(&place, y, |y| {
            device::put_rows(&place, values, &ids, y, h).map_err(failed)
        });
    }
    with_f32(x, |x| {
        update(y, |y| {
            for (x, row) in x.chunks_exact(h.max(1)).zip(rows) {
                y[*row as usize * h..][..h].copy_from_slice(x);
            }
        })
    })?
}

/// Zeros in f32 of the shape of x, where it lies.
///
/// # Errors
/// When there is no memory.
pub fn zeros_like(x: &Tensor) -> Result<Tensor> {
    crate::storage::zeros(x.shape(), x.device())
}

fn check(x: &Tensor, rows: &[u32]) -> Result<usize> {
    let (t, h) = x.dims2()?;
    match rows.iter().find(|row| **row as usize >= t) {
        Some(row) => bail!("row {row} of {t}"),
        None => Ok(h),
    }
}
