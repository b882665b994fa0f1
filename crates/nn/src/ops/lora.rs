//! A frozen linear layer with a low-rank delta, forward and backward in one op.

use super::dropout::LoraDropout;
use super::linear::{check_width, precision_of, with_bias};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{FrozenWeight, Result};
use candle_core::{DType, Tensor, bail};
use std::sync::OnceLock;
use taper_kernels::linear::{self as kernel, Base, Delta};
use taper_kernels::{dropout, floats};

/// What scales and masks the low-rank product.
#[derive(Debug, Clone)]
pub struct LoraTerms {
    /// `lora_alpha / r`, or what replaces it.
    pub scale: f32,
    /// Input dropout; `None` outside training.
    pub dropout: Option<LoraDropout>,
}

/// `y = x W^T + b + s (drop(x) A^T) B^T` (Hu et al. 2021, eq. 3): x `[T, in]`, A `[r, in]`, B `[out, r]` -> `[T, out]` in
/// `output`, f32 or the type of x.
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
    output: DType,
) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims();
    check_width(x, n_in)?;
    check_factors(a, b, n_in, n_out)?;
    let base = Some((weight.clone(), bias.cloned()));
    apply(LoraLinear { base, terms, output, hidden: OnceLock::new() }, &[x, a, b])
}

/// The delta alone: `s (drop(x) A^T) B^T`, over a base that is not a frozen weight.
///
/// # Errors
/// When the shapes do not fit.
pub fn lora_delta(x: &Tensor, a: &Tensor, b: &Tensor, terms: LoraTerms, output: DType) -> Result<Tensor> {
    let (n_in, n_out) = (a.dims2()?.1, b.dims2()?.0);
    check_width(x, n_in)?;
    check_factors(a, b, n_in, n_out)?;
    apply(LoraLinear { base: None, terms, output, hidden: OnceLock::new() }, &[x, a, b])
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
    output: DType,
    /// `drop(x) A^T`, `[T, r]`, of the forward.
    hidden: OnceLock<Vec<f32>>,
}

impl LoraTerms {
    /// x with some elements dropped, in its type, where there is dropout.
    fn dropped(&self, x: &Tensor) -> Result<Option<Tensor>> {
        self.dropout.as_ref().map(|dropout| dropout.applied(x)).transpose()
    }
}

impl Op for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, a, b] = inputs else { bail!("takes an input and two factors") };
        let ((t, n_in), (n_out, r)) = (x.dims2()?, b.dims2()?);
        let dropped = self.terms.dropped(x)?;
        let (x, dropped, a, b) = (Lent::new(x), dropped.as_ref().map(Lent::new), Lent::new(a), Lent::new(b));
        let (x, dropped) = (x.floats()?, dropped.as_ref().map(Lent::floats).transpose()?);
        let delta = Delta { a: a.f32()?, b: b.f32()?, rank: r, scale: self.terms.scale };
        let mut hidden = floats::buffer(t * r);
        let y = filled(self.output, (t, n_out), |y| {
            self.with_base(|base| {
                kernel::lora_forward(x, dropped, base, &delta, y, &mut hidden, t, n_in, n_out);
            })
        })?;
        self.hidden.get_or_init(|| hidden);
        Ok(y)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let Some(hidden) = self.hidden.get() else { bail!("backward before forward") };
        let (x, a, b) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let ((t, n_in), (n_out, r)) = (x.dims2()?, b.dims2()?);
        let precision = precision_of(x)?;
        let (a, b, g) = (Lent::new(a), Lent::new(b), Lent::new(g));
        let (scale, g) = (self.terms.scale, g.f32()?);
        let delta = Delta { a: a.f32()?, b: b.f32()?, rank: r, scale };
        to.add(2, |db, accumulate| {
            kernel::lora_backward_b(precision, g, hidden, db, t, n_out, r, scale, accumulate);
            Ok(())
        })?;
        let mut gh = floats::buffer(t * r);
        match (&self.terms.dropout, to.wants(0)) {
            (None, true) => to.add(0, |dx, accumulate| {
                self.with_base(|base| {
                    let w = base.map(|base| base.weight);
                    kernel::lora_backward_input(
                        precision, g, w, &delta, &mut gh, dx, t, n_in, n_out, accumulate,
                    );
                })
            })?,
            (_, false) => kernel::lora_backward_hidden(precision, g, &delta, &mut gh, t, n_out),
            (Some(dropout), true) => to.write(0, |dx| {
                let mut low = floats::buffer(dx.len());
                kernel::lora_backward_input(
                    precision, g, None, &delta, &mut gh, &mut low, t, n_in, n_out, false,
                );
                dropout::dropout(&low, &mut *dx, dropout.p, &dropout.rng, 0);
                self.with_base(|base| {
                    if let Some(base) = base {
                        kernel::backward_input(precision, g, base.weight, dx, t, n_in, n_out, true);
                    }
                })
            })?,
        }
        if !to.wants(1) {
            return Ok(());
        }
        let dropped = self.terms.dropped(x)?;
        let low_in = Lent::new(dropped.as_ref().unwrap_or(x));
        let low_in = low_in.floats()?;
        to.add(1, |da, accumulate| {
            kernel::lora_backward_a(&gh, low_in, da, t, n_in, r, accumulate);
            Ok(())
        })
    }
}

impl LoraLinear {
    fn with_base<R>(&self, body: impl FnOnce(Option<Base<'_>>) -> R) -> Result<R> {
        match &self.base {
            None => Ok(body(None)),
            Some((weight, bias)) => {
                with_bias(bias.as_ref(), |bias| weight.with_view(|weight| body(Some(Base { weight, bias }))))?
            }
        }
    }
}
