//! A frozen linear layer with a low-rank delta, forward and backward in one op.

use super::dropout::LoraDropout;
#[cfg(feature = "cuda")]
use super::linear::float_type;
use super::linear::{check_width, precision_of, with_bias};
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Kept, Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{FrozenWeight, Result};
use candle_core::{DType, Tensor, bail};
use std::sync::OnceLock;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::{
    Slice,
    linear::{self as device, Converted, GpuDelta, GpuWeight, Sizes},
};
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
    hidden: OnceLock<Kept>,
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
        self.hidden.get_or_init(|| Kept::Host(hidden));
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [x, a, b] = inputs else { bail!("takes an input and two factors") };
        let ((t, n_in), (n_out, r)) = (x.dims2()?, b.dims2()?);
        let dropped = self.terms.dropout.as_ref().map(|dropout| dropout.applied_on(place, x)).transpose()?;
        let (x, dropped) = (GpuLent::new(place, x), dropped.as_ref().map(|x| GpuLent::new(place, x)));
        let (a, b) = (GpuLent::new(place, a), GpuLent::new(place, b));
        let inputs = (x.slice()?, dropped.as_ref().map(GpuLent::slice).transpose()?);
        let delta = GpuDelta { a: a.f32()?, b: b.f32()?, rank: r, scale: self.terms.scale };
        let mut y = None;
        let hidden = place.filled(DType::F32, (t, r), |h| {
            let fill = |y: &mut SliceMut<'_>| {
                self.with_base_on(place, |base| {
                    let sizes = Sizes { t, n_in, n_out };
                    device::lora_forward(place, inputs, base, &delta, y, h, sizes).map_err(failed)
                })
            };
            y = Some(place.filled(self.output, (t, n_out), fill)?);
            Ok(())
        })?;
        self.hidden.get_or_init(|| Kept::Device(hidden));
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
        let Some(hidden) = self.hidden.get().and_then(Kept::device) else { return Ok(false) };
        let (x, a, b) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let ((t, n_in), (n_out, r)) = (x.dims2()?, b.dims2()?);
        let (a, b, lent) = (GpuLent::new(place, a), GpuLent::new(place, b), GpuLent::new(place, g));
        let (scale, sizes) = (self.terms.scale, Sizes { t, n_in, n_out });
        let delta = GpuDelta { a: a.f32()?, b: b.f32()?, rank: r, scale };
        let dtype = float_type(precision_of(x)?);
        // Rounded once for the four products that read it.
        let g = Converted::new(place, lent.f32()?, dtype).map_err(failed)?;
        let g = g.slice(place);
        let hidden = GpuLent::new(place, hidden);
        let hidden = Converted::new(place, hidden.f32()?, dtype).map_err(failed)?;
        to.add_on(place, 2, |db, accumulate| {
            let sizes = (t, n_out, r);
            device::factor_gradient(place, g, hidden.slice(place), db, sizes, (scale, accumulate))
                .map_err(failed)
        })?;
        let gh = place.filled(DType::F32, (t, r), |gh| {
            device::lora_backward_hidden(place, g, &delta, gh, sizes).map_err(failed)
        })?;
        let gh = GpuLent::new(place, &gh);
        let gh = Converted::new(place, gh.f32()?, dtype).map_err(failed)?;
        let gh = gh.slice(place);
        self.input_gradient_on(place, (g, gh), &delta, sizes, to)?;
        if !to.wants(1) {
            return Ok(true);
        }
        let dropped = self.terms.dropout.as_ref().map(|dropout| dropout.applied_on(place, x)).transpose()?;
        let low_in = GpuLent::new(place, dropped.as_ref().unwrap_or(x));
        let low_in = low_in.slice()?;
        to.add_on(place, 1, |da, accumulate| {
            device::factor_gradient(place, gh, low_in, da, (t, r, n_in), (1.0, accumulate)).map_err(failed)
        })?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let Some(hidden) = self.hidden.get() else { bail!("backward before forward") };
        let (x, a, b) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let ((t, n_in), (n_out, r)) = (x.dims2()?, b.dims2()?);
        let precision = precision_of(x)?;
        let (a, b, g) = (Lent::new(a), Lent::new(b), Lent::new(g));
        let (scale, g, hidden) = (self.terms.scale, g.f32()?, hidden.host()?);
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

#[cfg(feature = "cuda")]
impl LoraLinear {
    fn with_base_on<R>(
        &self,
        place: &Place,
        body: impl FnOnce(Option<(GpuWeight<'_>, Option<Slice<'_>>)>) -> Result<R>,
    ) -> Result<R> {
        let Some((weight, bias)) = &self.base else { return body(None) };
        let bias = bias.as_ref().map(|bias| place.upload(bias)).transpose()?;
        let bias = bias.as_ref().map(|bias| GpuLent::new(place, bias));
        let bias = bias.as_ref().map(GpuLent::f32).transpose()?;
        weight.with_gpu(place, |weight| body(Some((weight, bias))))
    }

    /// `dx = g W + drop'(gh A)`.
    fn input_gradient_on(
        &self,
        place: &Place,
        (g, gh): (Slice<'_>, Slice<'_>),
        delta: &GpuDelta<'_>,
        sizes: Sizes,
        to: &mut Receiver<'_>,
    ) -> Result<()> {
        if let (Some(dropout), true) = (&self.terms.dropout, to.wants(0)) {
            let low = place.filled(DType::F32, (sizes.t, sizes.n_in), |low| {
                device::lora_backward_low(place, gh, delta, low, sizes, false).map_err(failed)
            })?;
            to.pass(0, &Gradient::new(dropout.applied_on(place, &low)?))?;
        } else {
            to.add_on(place, 0, |dx, accumulate| {
                device::lora_backward_low(place, gh, delta, dx, sizes, accumulate).map_err(failed)
            })?;
        }
        if self.base.is_none() || !to.wants(0) {
            return Ok(());
        }
        to.add_on(place, 0, |dx, accumulate| {
            self.with_base_on(place, |base| match base {
                Some((weight, _)) => {
                    device::backward_input(place, g, weight, dx, sizes, accumulate).map_err(failed)
                }
                None => Ok(()),
            })
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
