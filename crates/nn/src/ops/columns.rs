//! Some columns of a matrix.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use std::ops::Range;
use taper_kernels::columns as kernel;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::elementwise as device;

/// Columns `range` of x `[T, W]` -> `[T, n]`, for layers whose one product holds several parts (q, k and v; gate and up).
///
/// The backward adds to its columns of the gradient of x.
///
/// # Errors
/// When the range does not lie within W.
pub fn columns(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let width = x.dims2()?.1;
    if range.start >= range.end || range.end > width {
        bail!("columns {range:?} of rows of {width}")
    }
    apply(Columns { range }, &[x])
}

struct Columns {
    range: Range<usize>,
}

impl Op for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (t, width) = inputs[0].dims2()?;
        let x = Lent::new(inputs[0]);
        let x = x.floats()?;
        filled(inputs[0].dtype(), (t, self.range.len()), |y| {
            kernel::columns(x, y, width, self.range.clone());
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let (t, width) = inputs[0].dims2()?;
        let x = GpuLent::new(place, inputs[0]);
        let x = x.slice()?;
        let fill =
            |y: &mut SliceMut<'_>| device::columns(place, x, y, width, self.range.clone()).map_err(failed);
        place.filled(inputs[0].dtype(), (t, self.range.len()), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let width = saved.shape(0).dims2()?.1;
        let g = GpuLent::new(place, g);
        let g = g.f32()?;
        to.add_on(place, 0, |dx, accumulate| {
            if !accumulate {
                device::fill_zeros(place, dx).map_err(failed)?;
            }
            device::add_columns(place, g, dx, width, self.range.clone()).map_err(failed)
        })?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let width = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(0, |dx, accumulate| {
            if !accumulate {
                dx.fill(0.0);
            }
            kernel::add_columns(g, dx, width, self.range.clone());
            Ok(())
        })
    }
}
