//! Sums and multiples, and changes between f32 and bf16.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{DType, Tensor, bail};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::elementwise as device;
use taper_kernels::elementwise as kernel;

/// `x + y` of one shape; f32 where either is.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("{:?} and {:?} differ in shape", x.dims(), y.dims())
    }
    apply(Add, &[x, y])
}

struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, y] = inputs else { bail!("takes two inputs") };
        let dtype = if x.dtype() == DType::BF16 { y.dtype() } else { DType::F32 };
        let (x_lent, y_lent) = (Lent::new(x), Lent::new(y));
        let (x_s, y_s) = (x_lent.floats()?, y_lent.floats()?);
        filled(dtype, x.shape(), |out| {
            kernel::add(x_s, y_s, out);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [x, y] = inputs else { bail!("takes two inputs") };
        let dtype = if x.dtype() == DType::BF16 { y.dtype() } else { DType::F32 };
        let (x_lent, y) = (GpuLent::new(place, x), GpuLent::new(place, y));
        let (x_s, y) = (x_lent.slice()?, y.slice()?);
        place.filled(dtype, x.shape(), |out| device::add(place, x_s, y, out).map_err(failed)).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        _place: &Place,
        _saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        to.pass(0, g)?;
        to.pass(1, g)?;
        Ok(true)
    }

    fn backward(&self, _saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        to.pass(0, g)?;
        to.pass(1, g)
    }
}

/// `factor x`, in the type of x.
///
/// # Errors
/// What candle says.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    apply(Scale { factor: factor as f32, dtype: x.dtype() }, &[x])
}

/// x in f32 or bf16.
///
/// # Errors
/// What candle says.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { apply(Scale { factor: 1.0, dtype }, &[x]) }
}

struct Scale {
    factor: f32,
    dtype: DType,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = Lent::new(inputs[0]);
        let x = x.floats()?;
        filled(self.dtype, inputs[0].shape(), |out| {
            kernel::scale(x, self.factor, out);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let x = GpuLent::new(place, inputs[0]);
        let x = x.slice()?;
        let fill = |out: &mut SliceMut<'_>| device::scale(place, x, self.factor, out).map_err(failed);
        place.filled(self.dtype, inputs[0].shape(), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        _saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        if self.factor == 1.0 {
            to.pass(0, g)?;
            return Ok(true);
        }
        let g = GpuLent::new(place, g);
        let g = g.f32()?;
        to.write_on(place, 0, |dx| device::scale(place, g, self.factor, dx).map_err(failed))?;
        Ok(true)
    }

    fn backward(&self, _saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        if self.factor == 1.0 {
            return to.pass(0, g);
        }
        let g = Lent::new(g);
        let g = g.f32()?;
        to.write(0, |dx| {
            kernel::scale(g, self.factor, dx);
            Ok(())
        })
    }
}

/// x `[T, n]` plus `bias` `[n]` f32, in the type of x.
///
/// # Errors
/// When the widths differ.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.dims2()?.1 != bias.dims1()? {
        bail!("a bias of {:?} for rows of {:?}", bias.dims(), x.dims())
    }
    apply(AddBias, &[x, bias])
}

struct AddBias;

impl Op for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, bias] = inputs else { bail!("takes an input and a bias") };
        let (x_lent, bias) = (Lent::new(x), Lent::new(bias));
        let (x_s, bias) = (x_lent.floats()?, bias.f32()?);
        filled(x.dtype(), x.shape(), |out| {
            kernel::add_bias(x_s, bias, out);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let [x, bias] = inputs else { bail!("takes an input and a bias") };
        let (x_lent, bias) = (GpuLent::new(place, x), GpuLent::new(place, bias));
        let (x_s, bias) = (x_lent.slice()?, bias.f32()?);
        let fill = |out: &mut SliceMut<'_>| device::add_bias(place, x_s, bias, out).map_err(failed);
        place.filled(x.dtype(), x.shape(), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        _saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let lent = GpuLent::new(place, g);
        let g_s = lent.f32()?;
        to.add_on(place, 1, |dbias, accumulate| {
            device::sum_rows(place, g_s, dbias, accumulate).map_err(failed)
        })?;
        to.pass(0, g)?;
        Ok(true)
    }

    fn backward(&self, _saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let lent = Lent::new(g);
        let g_s = lent.f32()?;
        to.add(1, |dbias, accumulate| {
            if !accumulate {
                dbias.fill(0.0);
            }
            kernel::add_rows(g_s, dbias);
            Ok(())
        })?;
        to.pass(0, g)
    }
}
