//! What a step holds for every parameter beside its values: the sum of its gradients, and AdamW's moments,
//! where the parameters lie.
//!
//! On the CPU these are a buffer for each parameter. On a device they are parts of one, so that a norm and a step are one launch each.

use crate::storage::{to_vec_f32, update, with_f32, zeros};
use crate::{Parameter, Result};
use candle_core::{Device, Tensor, bail};
use taper_kernels::adamw::{AdamW, adamw_step};
use taper_kernels::adamw8bit::{Moment, StateFormat, adamw_8bit_step};
use taper_kernels::reduce;

#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::optimizer::{self as device, DeviceMoments, FlatTensors};

/// Sums of gradients, f32, one for each of some parameters, in their order.
#[derive(Debug)]
pub struct GradientSums {
    tensors: Vec<Tensor>,
    #[cfg(feature = "cuda")]
    flat: Option<Flat>,
}

/// Buffers that hold all tensors end to end, and where each lies.
#[cfg(feature = "cuda")]
#[derive(Debug)]
struct Flat {
    place: Place,
    values: Tensor,
}

/// The device of all parameters.
fn device_of(parameters: &[Parameter]) -> Result<Device> {
    let Some(first) = parameters.first() else { return Ok(Device::Cpu) };
    match parameters.iter().find(|p| !p.var.device().same_device(first.var.device())) {
        Some(other) => bail!("`{}` and `{}` lie on different devices", first.name, other.name),
        None => Ok(first.var.device().clone()),
    }
}

impl GradientSums {
    /// Zeros, 4 bytes an element.
    ///
    /// # Errors
    /// When there is no memory, or the parameters lie on different devices.
    pub fn new(parameters: &[Parameter]) -> Result<Self> {
        let device = device_of(parameters)?;
        #[cfg(feature = "cuda")]
        if let Some(place) = Place::on(&device) {
            return Self::on_device(parameters, place);
        }
        let zeros = |p: &Parameter| zeros(p.var.shape(), &device);
        Ok(Self {
            tensors: parameters.iter().map(zeros).collect::<Result<_>>()?,
            #[cfg(feature = "cuda")]
            flat: None,
        })
    }

    #[cfg(feature = "cuda")]
    fn on_device(parameters: &[Parameter], place: Place) -> Result<Self> {
        let layout = layout_of(parameters, &place)?;
        let values = place.zeros(layout.len())?;
        let part = |(i, p): (usize, &Parameter)| {
            let range = layout.range(i);
            values.narrow(0, range.start, range.len())?.reshape(p.var.shape())
        };
        let tensors = parameters.iter().enumerate().map(part).collect::<Result<_>>()?;
        Ok(Self { tensors, flat: Some(Flat { place, values }) })
    }

    /// The sum of parameter `index`, which a backward adds to where it lies.
    pub fn tensor(&self, index: usize) -> &Tensor {
        &self.tensors[index]
    }

    /// A copy of all sums on the host.
    ///
    /// # Errors
    /// What the device says.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        self.tensors.iter().map(to_vec_f32).collect()
    }

    /// Back to zero.
    ///
    /// # Errors
    /// What the device says.
    pub fn clear(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(Flat { place, values }) = &self.flat {
            let zero = |values: &mut SliceMut<'_>| {
                taper_kernels::cuda::elementwise::fill_zeros(place, values).map_err(failed)
            };
            return crate::cuda::update(place, values, zero);
        }
        self.tensors.iter().try_for_each(|sum| update(sum, |sum| sum.fill(0.0)))
    }

    /// The sum of the squares of all elements, in f64, in the order of the parameters. Waits for the device.
    ///
    /// # Errors
    /// What the device says.
    pub fn sum_of_squares(&self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if let Some(Flat { place, values }) = &self.flat {
            return device::sum_of_squares(place, GpuLent::new(place, values).f32()?).map_err(failed);
        }
        self.tensors.iter().map(|sum| with_f32(sum, reduce::sum_of_squares)).sum()
    }
}

#[cfg(feature = "cuda")]
fn layout_of(parameters: &[Parameter], place: &Place) -> Result<FlatTensors> {
    let lens: Vec<usize> = parameters.iter().map(|p| p.var.elem_count()).collect();
    FlatTensors::new(place, &lens).map_err(failed)
}

/// The first and second moments of AdamW of some parameters.
#[derive(Debug)]
pub struct Moments {
    format: StateFormat,
    lens: Vec<usize>,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Host(Vec<[Moment; 2]>),
    #[cfg(feature = "cuda")]
    Device(Place, Box<DeviceMoments>),
}

impl Moments {
    /// Zeros: [`StateFormat::bytes`] of each parameter.
    ///
    /// # Errors
    /// When there is no memory, or the parameters lie on different devices.
    pub fn new(parameters: &[Parameter], format: StateFormat) -> Result<Self> {
        let device = device_of(parameters)?;
        let lens: Vec<usize> = parameters.iter().map(|p| p.var.elem_count()).collect();
        #[cfg(feature = "cuda")]
        if let Some(place) = Place::on(&device) {
            let moments = DeviceMoments::new(&place, &lens, format).map_err(failed)?;
            return Ok(Self { format, lens, held: Held::Device(place, Box::new(moments)) });
        }
        let _ = device;
        let held = lens.iter().map(|len| [Moment::zeros(*len, format), Moment::zeros(*len, format)]);
        Ok(Self { format, held: Held::Host(held.collect()), lens })
    }

    /// Move each parameter by its sum, with its settings; of these the learning rate and the weight decay alone may differ.
    ///
    /// # Errors
    /// When a parameter is no plain f32 buffer, and what the device says.
    pub fn step(&mut self, parameters: &[Parameter], sums: &GradientSums, settings: &[AdamW]) -> Result<()> {
        match &mut self.held {
            Held::Host(moments) => {
                let each = parameters.iter().zip(&sums.tensors).zip(moments).zip(settings);
                for (((p, sum), moments), settings) in each {
                    let mut result = Ok(());
                    update(p.var.as_tensor(), |values| {
                        result = with_f32(sum, |sum| step_of(values, sum, moments, settings));
                    })
                    .and(result)
                    .map_err(|e| e.context(format!("update `{}`", p.name)))?;
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Held::Device(place, moments) => {
                let Some(flat) = &sums.flat else { bail!("gradients on the CPU of parameters on a device") };
                let lents: Vec<_> =
                    parameters.iter().map(|p| GpuLent::new(place, p.var.as_tensor())).collect();
                let params = lents.iter().map(GpuLent::f32).collect::<Result<Vec<_>>>()?;
                let sums = GpuLent::new(place, &flat.values);
                moments.step(&params, sums.f32()?, settings).map_err(failed)
            }
        }
    }

    /// A copy of both moments of each parameter on the host.
    ///
    /// # Errors
    /// What the device says.
    pub fn to_host(&self) -> Result<Vec<[Moment; 2]>> {
        match &self.held {
            Held::Host(moments) => Ok(moments.clone()),
            #[cfg(feature = "cuda")]
            Held::Device(_, moments) => moments.download().map_err(failed),
        }
    }

    /// Go on from moments that [`Self::to_host`] gave.
    ///
    /// # Errors
    /// When they are not those of as many elements in the same format, and what the device says.
    pub fn set(&mut self, moments: Vec<[Moment; 2]>) -> Result<()> {
        let fits = |(both, len): (&[Moment; 2], &usize)| both.iter().all(|m| m.fits(*len, self.format));
        if moments.len() != self.lens.len() || !moments.iter().zip(&self.lens).all(fits) {
            bail!("moments of other parameters")
        }
        match &mut self.held {
            Held::Host(held) => *held = moments,
            #[cfg(feature = "cuda")]
            Held::Device(_, held) => held.upload(&moments).map_err(failed)?,
        }
        Ok(())
    }
}

fn step_of(values: &mut [f32], sum: &[f32], moments: &mut [Moment; 2], settings: &AdamW) {
    match moments {
        [Moment::Plain(first), Moment::Plain(second)] => adamw_step(values, sum, first, second, settings),
        [Moment::Coded(first), Moment::Coded(second)] => {
            adamw_8bit_step(values, sum, first, second, settings);
        }
        _ => unreachable!("both moments of a parameter have one format"),
    }
}
