//! `y = x W^T + b` over a frozen or a trained weight.

#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{FrozenWeight, Result, Weight};
use candle_core::{DType, Tensor, bail};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::{
    FloatType,
    linear::{self as device, Converted, GpuWeight, Sizes},
};
use taper_kernels::gemm::WeightView;
use taper_kernels::linear::{self as kernel, Precision};

/// x `[T, in]` by weight `[out, in]`, plus `bias` `[out]` (never differentiated) -> `[T, out]` in `output`, f32 or the type of x.
///
/// Over a frozen weight the backward computes the gradient of x alone and keeps nothing for it.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, output: DType) -> Result<Tensor> {
    check_width(x, weight.dims().1)?;
    let bias = bias.cloned();
    match weight {
        Weight::Frozen(weight) => {
            let precision = precision_of(x)?;
            apply(FrozenLinear { weight: weight.clone(), bias, output, precision }, &[x])
        }
        Weight::Trainable(var) => apply(TrainedLinear { bias, output }, &[x, var.as_tensor()]),
    }
}

/// x `[T, in]` by a weight `[out, in]` in f32 that is itself differentiated -> `[T, out]` in `output`, f32 or the type of x.
///
/// Gradients: `dx = g W`, `dW = g^T x`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear_over(x: &Tensor, weight: &Tensor, output: DType) -> Result<Tensor> {
    check_width(x, weight.dims2()?.1)?;
    apply(TrainedLinear { bias: None, output }, &[x, weight])
}

/// `Err` unless `x` is `[T, width]`.
pub(super) fn check_width(x: &Tensor, width: usize) -> Result<()> {
    match x.dims() {
        [_, w] if *w == width => Ok(()),
        dims => bail!("expected an input of [T, {width}], got {dims:?}"),
    }
}

pub(super) fn precision_of(x: &Tensor) -> Result<Precision> {
    Ok(if x.dtype() == DType::BF16 { Precision::BF16 } else { Precision::F32 })
}

/// Lend a bias, when there is one.
pub(super) fn with_bias<R>(bias: Option<&Tensor>, read: impl FnOnce(Option<&[f32]>) -> R) -> Result<R> {
    match bias {
        None => Ok(read(None)),
        Some(bias) => Ok(read(Some(Lent::new(bias).f32()?))),
    }
}

/// The type of a layer's products on a device.
#[cfg(feature = "cuda")]
pub(super) fn float_type(precision: Precision) -> FloatType {
    match precision {
        Precision::F32 => FloatType::F32,
        Precision::BF16 => FloatType::BF16,
    }
}

struct FrozenLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
    output: DType,
    precision: Precision,
}

impl Op for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (n_out, n_in) = self.weight.dims();
        let t = inputs[0].dims()[0];
        let x = Lent::new(inputs[0]);
        let x = x.floats()?;
        filled(self.output, (t, n_out), |y| {
            with_bias(self.bias.as_ref(), |bias| {
                self.weight.with_view(|w| kernel::forward(x, w, bias, y, t, n_in, n_out))
            })?
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let ((n_out, n_in), t) = (self.weight.dims(), inputs[0].dims()[0]);
        let bias = self.bias.as_ref().map(|bias| place.upload(bias)).transpose()?;
        let (x, bias) = (GpuLent::new(place, inputs[0]), bias.as_ref().map(|bias| GpuLent::new(place, bias)));
        let (x, bias) = (x.slice()?, bias.as_ref().map(GpuLent::f32).transpose()?);
        let sizes = Sizes { t, n_in, n_out };
        place
            .filled(self.output, (t, n_out), |y| {
                self.weight.with_gpu(place, |w| device::forward(place, x, w, bias, y, sizes).map_err(failed))
            })
            .map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let ((n_out, n_in), t) = (self.weight.dims(), saved.shape(0).dims()[0]);
        let (lent, sizes) = (GpuLent::new(place, g), Sizes { t, n_in, n_out });
        let g = Converted::new(place, lent.f32()?, float_type(self.precision)).map_err(failed)?;
        to.add_on(place, 0, |dx, accumulate| {
            self.weight.with_gpu(place, |w| {
                device::backward_input(place, g.slice(place), w, dx, sizes, accumulate).map_err(failed)
            })
        })?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let ((n_out, n_in), t) = (self.weight.dims(), saved.shape(0).dims()[0]);
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(0, |dx, accumulate| {
            self.weight.with_view(|w| {
                kernel::backward_input(self.precision, g, w, dx, t, n_in, n_out, accumulate);
            })
        })
    }
}

struct TrainedLinear {
    bias: Option<Tensor>,
    output: DType,
}

impl Op for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, w] = inputs else { bail!("takes an input and a weight") };
        let ((t, n_in), n_out) = (x.dims2()?, w.dims()[0]);
        let (x, w) = (Lent::new(x), Lent::new(w));
        let (x, w) = (x.floats()?, WeightView::F32(w.f32()?));
        filled(self.output, (t, n_out), |y| {
            with_bias(self.bias.as_ref(), |bias| kernel::forward(x, w, bias, y, t, n_in, n_out))
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [x, w] = inputs else { bail!("takes an input and a weight") };
        let ((t, n_in), n_out) = (x.dims2()?, w.dims()[0]);
        let bias = self.bias.as_ref().map(|bias| place.upload(bias)).transpose()?;
        let (x, w) = (GpuLent::new(place, x), GpuLent::new(place, w));
        let bias = bias.as_ref().map(|bias| GpuLent::new(place, bias));
        let (x, w, bias) =
            (x.slice()?, GpuWeight::Dense(w.f32()?), bias.as_ref().map(GpuLent::f32).transpose()?);
        let sizes = Sizes { t, n_in, n_out };
        let fill = |y: &mut SliceMut<'_>| device::forward(place, x, w, bias, y, sizes).map_err(failed);
        place.filled(self.output, (t, n_out), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let ((t, n_in), n_out) = (x.dims2()?, w.dims()[0]);
        let (x, w, lent) = (GpuLent::new(place, x), GpuLent::new(place, w), GpuLent::new(place, g));
        let (x, w, sizes) = (x.slice()?, GpuWeight::Dense(w.f32()?), Sizes { t, n_in, n_out });
        let g = Converted::new(place, lent.f32()?, x.dtype()).map_err(failed)?;
        let g = g.slice(place);
        to.add_on(place, 1, |dw, accumulate| {
            device::backward_weight(place, g, x, dw, sizes, accumulate).map_err(failed)
        })?;
        to.add_on(place, 0, |dx, accumulate| {
            device::backward_input(place, g, w, dx, sizes, accumulate).map_err(failed)
        })?;
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let ((t, n_in), n_out) = (x.dims2()?, w.dims()[0]);
        let (x, w, g) = (Lent::new(x), Lent::new(w), Lent::new(g));
        let (x, w, g) = (x.floats()?, w.f32()?, g.f32()?);
        let precision = Precision::of(x);
        to.add(1, |dw, accumulate| {
            kernel::backward_weight(precision, g, x, dw, t, n_in, n_out, accumulate);
            Ok(())
        })?;
        to.add(0, |dx, accumulate| {
            let w = WeightView::F32(w);
            kernel::backward_input(precision, g, w, dx, t, n_in, n_out, accumulate);
            Ok(())
        })
    }
}
