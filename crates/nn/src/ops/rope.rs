//! Rotary position embedding.

#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{Result, RotaryTables};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Tensor, bail};
use taper_kernels::floats::{Floats, FloatsMut};

/// Rotate the first `rotary_dim` elements of every head (Su et al. 2021, in the half-split order of the Hub's files):
/// x `[T, heads * head_dim]`, tables `[T, rotary_dim / 2]`; the type of x stays.
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
    apply(Rope { tables: tables.clone(), head_dim }, &[x])
}

struct Rope {
    tables: RotaryTables,
    head_dim: usize,
}

impl Rope {
    fn rotate(&self, x: Floats<'_>, y: FloatsMut<'_>, inverse: bool) -> Result<()> {
        let (t, half) = self.tables.cos.dims2()?;
        let (cos, sin) = (Lent::new(&self.tables.cos), Lent::new(&self.tables.sin));
        let heads = x.len() / t.max(1) / self.head_dim;
        taper_kernels::rope::rope(x, y, cos.f32()?, sin.f32()?, t, heads, self.head_dim, 2 * half, inverse);
        Ok(())
    }
}

#[cfg(feature = "cuda")]
impl Rope {
    fn rotate_on(&self, place: &Place, x: &Tensor, dtype: DType, inverse: bool) -> Result<Tensor> {
        let (cos, sin) = (place.upload(&self.tables.cos)?, place.upload(&self.tables.sin)?);
        let (cos, sin) = (GpuLent::new(place, &cos), GpuLent::new(place, &sin));
        let (lent, tables) = (GpuLent::new(place, x), (cos.f32()?, sin.f32()?));
        let (values, sizes) = (lent.slice()?, (x.dims2()?.0, self.head_dim));
        place.filled(dtype, x.shape(), |y| {
            taper_kernels::cuda::rope::rope(place, values, y, tables, sizes, inverse).map_err(failed)
        })
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = Lent::new(inputs[0]);
        let x = x.floats()?;
        filled(inputs[0].dtype(), inputs[0].shape(), |y| self.rotate(x, y, false))
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        self.rotate_on(place, inputs[0], inputs[0].dtype(), false).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        _saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        if to.wants(0) {
            to.pass(0, &Gradient::new(self.rotate_on(place, g, DType::F32, true)?))?;
        }
        Ok(true)
    }

    fn backward(&self, _saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let g = Lent::new(g);
        let g = g.f32()?;
        to.write(0, |dx| self.rotate(Floats::F32(g), FloatsMut::F32(dx), true))
    }
}
