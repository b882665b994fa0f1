//! Some columns of a matrix.

use crate::Result;
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use std::ops::Range;
use taper_kernels::columns as kernel;

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
