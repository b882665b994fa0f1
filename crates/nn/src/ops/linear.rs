//! `y = x W^T + b` over a frozen or a trained weight.

use crate::storage::{Lent, f32_slice, filled, filled_like, with_f32};
use crate::{FrozenWeight, Result, Weight};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};
use taper_kernels::gemm::{self, WeightView};

/// x `[T, in]` by weight `[out, in]`, plus `bias` `[out]` (never differentiated) -> `[T, out]`.
///
/// Over a frozen weight the backward computes the gradient of x alone and keeps nothing for it: candle's own product would
/// also make the weight's gradient, three times the weight in memory.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check_width(x, weight.dims().1)?;
    let x = x.contiguous()?;
    match weight {
        Weight::Frozen(weight) => x.apply_op1(FrozenLinear { weight: weight.clone(), bias: bias.cloned() }),
        Weight::Trainable(var) => x.apply_op2(var.as_tensor(), TrainedLinear { bias: bias.cloned() }),
    }
}

/// `Err` unless `x` is `[T, width]`.
pub(super) fn check_width(x: &Tensor, width: usize) -> Result<()> {
    match x.dims() {
        [_, w] if *w == width => Ok(()),
        dims => bail!("expected an input of [T, {width}], got {dims:?}"),
    }
}

/// The product with an optional bias, on slices.
pub(super) fn forward_into(
    x: &[f32],
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    y: &mut [f32],
) -> Result<()> {
    let (n_out, n_in) = weight.dims();
    let t = x.len() / n_in;
    match bias {
        None => weight.with_view(|w| gemm::linear_forward(x, w, None, y, t, n_in, n_out)),
        Some(bias) => {
            with_f32(bias, |b| weight.with_view(|w| gemm::linear_forward(x, w, Some(b), y, t, n_in, n_out)))?
        }
    }
}

struct FrozenLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, layout)?;
        let (n_out, n_in) = self.weight.dims();
        let t = x.len() / n_in;
        let y = filled(t * n_out, |y| forward_into(x, &self.weight, self.bias.as_ref(), y))?;
        Ok((y, Shape::from((t, n_out))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (n_out, n_in) = self.weight.dims();
        let t = x.elem_count() / n_in;
        let g = g.contiguous()?;
        let g_lent = Lent::new(&g);
        let g_s = g_lent.f32()?;
        let dx = filled_like(x, |dx| {
            self.weight.with_view(|w| gemm::linear_backward_input(g_s, w, dx, t, n_in, n_out, false))
        })?;
        Ok(Some(dx))
    }
}

struct TrainedLinear {
    bias: Option<Tensor>,
}

impl CustomOp2 for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32_slice(x, x_layout)?, f32_slice(w, w_layout)?);
        let (n_out, n_in) = w_layout.shape().dims2()?;
        let t = x.len() / n_in;
        let bias = self.bias.as_ref().map(crate::to_vec_f32).transpose()?;
        let y = filled(t * n_out, |y| {
            gemm::linear_forward(x, WeightView::F32(w), bias.as_deref(), y, t, n_in, n_out);
            Ok(())
        })?;
        Ok((y, Shape::from((t, n_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n_out, n_in) = w.dims2()?;
        let t = x.elem_count() / n_in;
        let g = g.contiguous()?;
        let (x_lent, w_lent, g_lent) = (Lent::new(x), Lent::new(w), Lent::new(&g));
        let (x_s, w_s, g_s) = (x_lent.f32()?, w_lent.f32()?, g_lent.f32()?);
        let dw = filled_like(w, |dw| {
            gemm::linear_backward_weight(g_s, x_s, dw, t, n_in, n_out, false);
            Ok(())
        })?;
        if !x.track_op() {
            return Ok((None, Some(dw)));
        }
        let dx = filled_like(x, |dx| {
            gemm::linear_backward_input(g_s, WeightView::F32(w_s), dx, t, n_in, n_out, false);
            Ok(())
        })?;
        Ok((Some(dx), Some(dw)))
    }
}
