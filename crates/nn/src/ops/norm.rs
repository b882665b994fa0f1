//! RMSNorm with an analytic backward.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Kept, Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{DType, Tensor, Var, bail};
use std::sync::OnceLock;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::norm as device;
use taper_kernels::{floats, norm};

/// `y = x / sqrt(mean(x^2) + eps) * (offset + w)` over the last H of each row; x `[T, n H]`, w `[H]` frozen; y in `output`, f32 or bf16.
///
/// # Errors
/// When the width of x is no multiple of H.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, offset: f32, output: DType) -> Result<Tensor> {
    // Detached from a variable that it may be of: frozen is frozen.
    normed(x, &weight.detach(), eps, offset, output)
}

/// [`rms_norm`] with a trained gain.
///
/// # Errors
/// When the width of x is no multiple of H.
pub fn rms_norm_trainable(x: &Tensor, weight: &Var, eps: f64, offset: f32, output: DType) -> Result<Tensor> {
    normed(x, weight.as_tensor(), eps, offset, output)
}

fn normed(x: &Tensor, weight: &Tensor, eps: f64, offset: f32, output: DType) -> Result<Tensor> {
    let (h, width) = (weight.dims1()?, x.dims2()?.1);
    if h == 0 || width % h != 0 {
        bail!("a norm of width {h} cannot take rows of {width}")
    }
    apply(Norm { eps: eps as f32, offset, output, inv_rms: OnceLock::new() }, &[x, weight])
}

struct Norm {
    eps: f32,
    offset: f32,
    output: DType,
    /// `1 / sqrt(mean(x^2) + eps)` of each row, from the forward.
    inv_rms: OnceLock<Kept>,
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, w] = inputs else { bail!("takes an input and a gain") };
        let (h, rows) = (w.dims1()?, x.elem_count() / w.elem_count());
        let (x_lent, w) = (Lent::new(x), Lent::new(w));
        let (x_s, w) = (x_lent.floats()?, w.f32()?);
        let mut inv_rms = floats::buffer(rows);
        let y = filled(self.output, x.shape(), |y| {
            norm::rms_norm_forward(x_s, w, self.offset, self.eps, y, rows, h, &mut inv_rms);
            Ok(())
        })?;
        self.inv_rms.get_or_init(|| Kept::Host(inv_rms));
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [x, w] = inputs else { bail!("takes an input and a gain") };
        let rows = x.elem_count() / w.elem_count();
        let (x_lent, w) = (GpuLent::new(place, x), GpuLent::new(place, w));
        let (x_s, w, terms) = (x_lent.slice()?, w.f32()?, (self.offset, self.eps));
        let mut y = None;
        let inv_rms = place.filled(DType::F32, rows, |inv_rms| {
            let fill = |y: &mut SliceMut<'_>| {
                device::rms_norm_forward(place, x_s, w, terms, y, inv_rms).map_err(failed)
            };
            y = Some(place.filled(self.output, x.shape(), fill)?);
            Ok(())
        })?;
        self.inv_rms.get_or_init(|| Kept::Device(inv_rms));
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let Some(inv_rms) = self.inv_rms.get().and_then(Kept::device) else {
            return Ok(false);
        };
        let (x, w) = (GpuLent::new(place, saved.input(0)?), GpuLent::new(place, saved.input(1)?));
        let (g, inv_rms) = (GpuLent::new(place, g), GpuLent::new(place, inv_rms));
        let (x, w, g, inv_rms) = (x.slice()?, w.f32()?, g.f32()?, inv_rms.f32()?);
        to.add_on(place, 1, |dw, accumulate| {
            device::rms_norm_backward_weight(place, g, x, inv_rms, dw, accumulate).map_err(failed)
        })?;
        to.add_on(place, 0, |dx, accumulate| {
            device::rms_norm_backward(place, g, (x, w, self.offset), inv_rms, dx, accumulate).map_err(failed)
        })?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let Some(inv_rms) = self.inv_rms.get() else { bail!("backward before forward") };
        let (x, w, g) = (Lent::new(saved.input(0)?), Lent::new(saved.input(1)?), Lent::new(g));
        let (x, w, g, inv_rms) = (x.floats()?, w.f32()?, g.f32()?, inv_rms.host()?);
        let (rows, h) = (inv_rms.len(), w.len());
        to.write(1, |dw| {
            norm::rms_norm_backward_weight(g, x, inv_rms, dw, rows, h);
            Ok(())
        })?;
        to.add(0, |dx, accumulate| {
            norm::rms_norm_backward(g, x, w, self.offset, inv_rms, dx, accumulate, rows, h);
            Ok(())
        })
    }
}
