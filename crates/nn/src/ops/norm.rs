//! RMSNorm with an analytic backward.

use crate::Result;
use crate::storage::{Lent, f32_slice, filled, filled_like};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, Var, bail};
use std::sync::OnceLock;
use taper_kernels::norm;

/// `y = x / sqrt(mean(x^2) + eps) * (offset + w)` over the last H of each row; x `[T, n H]`, w `[H]` frozen.
///
/// # Errors
/// When the width of x is no multiple of H.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, offset: f32) -> Result<Tensor> {
    let x = checked(x, weight)?;
    x.apply_op1(FrozenGain { weight: weight.clone(), stats: Stats::new(eps, offset) })
}

/// [`rms_norm`] with a trained gain.
///
/// # Errors
/// When the width of x is no multiple of H.
pub fn rms_norm_trainable(x: &Tensor, weight: &Var, eps: f64, offset: f32) -> Result<Tensor> {
    let x = checked(x, weight.as_tensor())?;
    x.apply_op2(weight.as_tensor(), TrainedGain { stats: Stats::new(eps, offset) })
}

fn checked(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (h, width) = (weight.dims1()?, x.dims2()?.1);
    if h == 0 || width % h != 0 {
        bail!("a norm of width {h} cannot take rows of {width}")
    }
    x.contiguous()
}

/// Constants of the norm, and `1 / sqrt(mean(x^2) + eps)` of each row from the forward.
struct Stats {
    eps: f32,
    offset: f32,
    inv_rms: OnceLock<Vec<f32>>,
}

impl Stats {
    fn new(eps: f64, offset: f32) -> Self {
        Self { eps: eps as f32, offset, inv_rms: OnceLock::new() }
    }

    fn forward(&self, x: &[f32], w: &[f32]) -> Result<CpuStorage> {
        let rows = x.len() / w.len();
        let mut inv_rms = vec![0f32; rows];
        let y = filled(x.len(), |y| {
            norm::rms_norm_forward(x, w, self.offset, self.eps, y, rows, w.len(), &mut inv_rms);
            Ok(())
        })?;
        self.inv_rms.get_or_init(|| inv_rms);
        Ok(y)
    }

    fn backward(&self, g: &Tensor, x: &Tensor, w: &Tensor, dw: Option<&mut [f32]>) -> Result<Tensor> {
        let Some(inv_rms) = self.inv_rms.get() else { bail!("backward before forward") };
        let g = g.contiguous()?;
        let (g_lent, x_lent, w_lent) = (Lent::new(&g), Lent::new(x), Lent::new(w));
        let (g_s, x_s, w_s) = (g_lent.f32()?, x_lent.f32()?, w_lent.f32()?);
        filled_like(x, |dx| {
            norm::rms_norm_backward(g_s, x_s, w_s, self.offset, inv_rms, dx, dw, inv_rms.len(), w_s.len());
            Ok(())
        })
    }
}

struct FrozenGain {
    weight: Tensor,
    stats: Stats,
}

impl CustomOp1 for FrozenGain {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let w = Lent::new(&self.weight);
        let y = self.stats.forward(f32_slice(x, layout)?, w.f32()?)?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.stats.backward(g, x, &self.weight, None).map(Some)
    }
}

struct TrainedGain {
    stats: Stats,
}

impl CustomOp2 for TrainedGain {
    fn name(&self) -> &'static str {
        "rms-norm-trained"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.stats.forward(f32_slice(x, x_layout)?, f32_slice(w, w_layout)?)?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dw = vec![0f32; w.elem_count()];
        let dx = self.stats.backward(g, x, w, Some(&mut dw))?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}
