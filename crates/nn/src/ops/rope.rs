//! Rotary position embedding.

use crate::storage::{Lent, f32_slice, filled, filled_like};
use crate::{Result, RotaryTables};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, bail};

/// Rotate the first `rotary_dim` elements of every head (Su et al. 2021, in the half-split order of the Hub's files):
/// x `[T, heads * head_dim]`, tables `[T, rotary_dim / 2]`.
///
/// The backward is the rotation by the opposite angle.
///
/// # Errors
/// When the shapes do not fit.
pub fn rope(x: &Tensor, tables: &RotaryTables, head_dim: usize) -> Result<Tensor> {
    let ((t, width), (rows, half)) = (x.dims2()?, tables.cos.dims2()?);
    if width % head_dim != 0 || rows != t || 2 * half > head_dim {
        bail!("rotary tables of [{rows}, {half}] do not fit rows of {width} with heads of {head_dim}")
    }
    x.contiguous()?.apply_op1(Rope { tables: tables.clone(), head_dim })
}

struct Rope {
    tables: RotaryTables,
    head_dim: usize,
}

impl Rope {
    fn rotate(&self, x: &mut [f32], inverse: bool) -> Result<()> {
        let (t, half) = self.tables.cos.dims2()?;
        let (cos, sin) = (Lent::new(&self.tables.cos), Lent::new(&self.tables.sin));
        let heads = x.len() / t / self.head_dim;
        taper_kernels::rope::rope(x, cos.f32()?, sin.f32()?, t, heads, self.head_dim, 2 * half, inverse);
        Ok(())
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, layout)?;
        let y = filled(x.len(), |y| {
            y.copy_from_slice(x);
            self.rotate(y, false)
        })?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let lent = Lent::new(&g);
        let g_s = lent.f32()?;
        let dx = filled_like(x, |dx| {
            dx.copy_from_slice(g_s);
            self.rotate(dx, true)
        })?;
        Ok(Some(dx))
    }
}
