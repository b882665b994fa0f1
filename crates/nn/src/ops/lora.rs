//! A frozen linear layer with a low-rank delta, forward and backward in one op.

use super::linear::{check_width, forward_into};
use crate::storage::{Lent, f32_slice, filled, filled_like};
use crate::{FrozenWeight, Result};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use std::sync::OnceLock;
use taper_kernels::rng::CounterRng;
use taper_kernels::{dropout, gemm};

/// Input dropout of an adapter; the mask is made again in the backward from the same counters.
#[derive(Debug, Clone)]
pub struct LoraDropout {
    /// Probability of zeroing an element, in `[0, 1)`; the others are divided by `1 - p`.
    pub p: f32,
    /// The generator of this layer in this micro-batch.
    pub rng: CounterRng,
}

/// What scales and masks the low-rank product.
#[derive(Debug, Clone)]
pub struct LoraTerms {
    /// `lora_alpha / r`, or what replaces it.
    pub scale: f32,
    /// Input dropout; `None` outside training.
    pub dropout: Option<LoraDropout>,
}

impl LoraTerms {
    fn apply_dropout(&self, x: &[f32]) -> Option<Vec<f32>> {
        self.dropout.as_ref().map(|d| {
            let mut dropped = vec![0f32; x.len()];
            dropout::dropout(x, &mut dropped, d.p, &d.rng, 0);
            dropped
        })
    }
}

/// `y = x W^T + b + s (drop(x) A^T) B^T` (Hu et al. 2021, eq. 3): x `[T, in]`, A `[r, in]`, B `[out, r]` -> `[T, out]`.
///
/// Gradients: `dB = s g^T h`, `dA = s (g B)^T drop(x)`, `dx = g W + drop'(s (g B) A)`, with `h = drop(x) A^T` kept from the
/// forward (`[T, r]`).
///
/// # Errors
/// When the shapes do not fit.
pub fn lora_linear(
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    terms: LoraTerms,
) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims();
    check_width(x, n_in)?;
    check_factors(a, b, n_in, n_out)?;
    let op = LoraLinear { base: Some((weight.clone(), bias.cloned())), terms, hidden: OnceLock::new() };
    x.contiguous()?.apply_op3(a, b, op)
}

/// The delta alone: `s (drop(x) A^T) B^T`, over a base that is not a frozen weight.
///
/// # Errors
/// When the shapes do not fit.
pub fn lora_delta(x: &Tensor, a: &Tensor, b: &Tensor, terms: LoraTerms) -> Result<Tensor> {
    let (n_in, n_out) = (a.dims2()?.1, b.dims2()?.0);
    check_width(x, n_in)?;
    check_factors(a, b, n_in, n_out)?;
    x.contiguous()?.apply_op3(a, b, LoraLinear { base: None, terms, hidden: OnceLock::new() })
}

fn check_factors(a: &Tensor, b: &Tensor, n_in: usize, n_out: usize) -> Result<()> {
    let ((r, a_in), (b_out, b_r)) = (a.dims2()?, b.dims2()?);
    if r != b_r || a_in != n_in || b_out != n_out {
        bail!("adapter factors [{r}, {a_in}] and [{b_out}, {b_r}] do not fit a weight of [{n_out}, {n_in}]")
    }
    Ok(())
}

struct LoraLinear {
    base: Option<(FrozenWeight, Option<Tensor>)>,
    terms: LoraTerms,
    /// `drop(x) A^T`, `[T, r]`, of the forward.
    hidden: OnceLock<Vec<f32>>,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, x_layout)?;
        let (a, b) = (f32_slice(a, a_layout)?, f32_slice(b, b_layout)?);
        let ((r, n_in), (n_out, _)) = (a_layout.shape().dims2()?, b_layout.shape().dims2()?);
        let t = x.len() / n_in;
        let y = filled(t * n_out, |y| {
            if let Some((weight, bias)) = &self.base {
                forward_into(x, weight, bias.as_ref(), y)?;
            }
            let dropped = self.terms.apply_dropout(x);
            let mut h = vec![0f32; t * r];
            gemm::matmul(&mut h, dropped.as_deref().unwrap_or(x), a, t, n_in, r, false, true, 1.0, false);
            gemm::matmul(y, &h, b, t, r, n_out, false, true, self.terms.scale, true);
            self.hidden.get_or_init(|| h);
            Ok(())
        })?;
        Ok((y, Shape::from((t, n_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(hidden) = self.hidden.get() else { bail!("backward before forward") };
        let ((r, n_in), n_out) = (a.dims2()?, b.dims2()?.0);
        let t = x.elem_count() / n_in;
        let s = self.terms.scale;
        let g = g.contiguous()?;
        let (x_lent, a_lent, b_lent, g_lent) = (Lent::new(x), Lent::new(a), Lent::new(b), Lent::new(&g));
        let (x_s, a_s, b_s, g_s) = (x_lent.f32()?, a_lent.f32()?, b_lent.f32()?, g_lent.f32()?);

        let db = filled_like(b, |db| {
            gemm::matmul(db, g_s, hidden, n_out, t, r, true, false, s, false);
            Ok(())
        })?;
        let mut gb = vec![0f32; t * r];
        gemm::matmul(&mut gb, g_s, b_s, t, n_out, r, false, false, s, false);
        let dropped = self.terms.apply_dropout(x_s);
        let x_in = dropped.as_deref().unwrap_or(x_s);
        let da = filled_like(a, |da| {
            gemm::matmul(da, &gb, x_in, r, t, n_in, true, false, 1.0, false);
            Ok(())
        })?;
        drop(dropped);
        if !x.track_op() {
            return Ok((None, Some(da), Some(db)));
        }
        let dx = filled_like(x, |dx| {
            gemm::matmul(dx, &gb, a_s, t, r, n_in, false, false, 1.0, false);
            if let Some(masked) = self.terms.apply_dropout(dx) {
                dx.copy_from_slice(&masked);
            }
            if let Some((weight, _)) = &self.base {
                weight.with_view(|w| gemm::linear_backward_input(g_s, w, dx, t, n_in, n_out, true))?;
            }
            Ok(())
        })?;
        Ok((Some(dx), Some(da), Some(db)))
    }
}
