//! Some columns of a matrix.

use crate::Result;
use crate::storage::{Lent, f32_slice, filled, filled_like};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, bail};
use std::ops::Range;

/// Columns `range` of x `[T, W]` -> `[T, n]`, for layers whose one product holds several parts (q, k and v; gate and up).
///
/// The backward puts the gradient in its columns of a zeroed `[T, W]`: one pass, where candle's own `narrow` concatenates three
/// tensors.
///
/// # Errors
/// When the range does not lie within W.
pub fn columns(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let width = x.dims2()?.1;
    if range.start >= range.end || range.end > width {
        bail!("columns {range:?} of rows of {width}")
    }
    x.contiguous()?.apply_op1(Columns { range })
}

struct Columns {
    range: Range<usize>,
}

impl CustomOp1 for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, (t, width)) = (f32_slice(x, layout)?, layout.shape().dims2()?);
        let n = self.range.len();
        let y = filled(t * n, |y| {
            for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(width)) {
                y.copy_from_slice(&x[self.range.clone()]);
            }
            Ok(())
        })?;
        Ok((y, Shape::from((t, n))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (width, n) = (x.dims2()?.1, self.range.len());
        let g = g.contiguous()?;
        let lent = Lent::new(&g);
        let g_s = lent.f32()?;
        let dx = filled_like(x, |dx| {
            for (dx, g) in dx.chunks_exact_mut(width).zip(g_s.chunks_exact(n)) {
                dx[self.range.clone()].copy_from_slice(g);
            }
            Ok(())
        })?;
        Ok(Some(dx))
    }
}
