//! What an optimiser does on a device: [`crate::adamw`] and [`crate::adamw8bit`] over all tensors in one launch, and the norm of all gradients.

use super::state::{StateMemory, fetch_pages};
use super::{Gpu, GpuError, Slice, SliceMut, launch};
use crate::adamw::{AdamW, Constants};
use crate::adamw8bit::{BLOCK_SIZE, Coded, Moment, StateFormat, code_maps};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::ops::Range;

const THREADS: u32 = 256;
/// Elements that a block moves.
const CHUNK: usize = 4096;
/// Elements whose squares a block sums.
const SQUARES: usize = 16 * 1024;
/// Chunks of one launch where the moments are paged: 16 million elements, whose pages are fetched before it. What is needed at a time then has
/// room on the device, however many moments there are.
const PAGED_CHUNKS: usize = 4096;

/// Where tensors lie within flat buffers that hold them end to end.
#[derive(Debug)]
pub struct FlatTensors {
    offsets: Vec<usize>,
    lens: Vec<usize>,
    chunks: Chunks,
    offsets_on_device: CudaSlice<i64>,
    len: usize,
}

/// Runs of tensors that blocks work on, as the kernels read them.
#[derive(Debug)]
struct Chunks {
    on_device: CudaSlice<u8>,
    /// Where the moments of each start.
    states: Vec<usize>,
}

/// Bytes of a chunk: where its gradients and its moments start, its length and its tensor.
const CHUNK_BYTES: usize = 24;

impl Chunks {
    /// Of tensors that start at `starts` of the gradients and whose moments start at `states`; those without are left out.
    fn new(gpu: &Gpu, starts: &[usize], lens: &[usize], states: &[Option<usize>]) -> Result<Self, GpuError> {
        let (mut bytes, mut firsts) = (Vec::new(), Vec::new());
        for (tensor, state) in states.iter().enumerate() {
            let Some(state) = state else { continue };
            for first in (0..lens[tensor]).step_by(CHUNK) {
                bytes.extend_from_slice(&((starts[tensor] + first) as i64).to_le_bytes());
                bytes.extend_from_slice(&((state + first) as i64).to_le_bytes());
                bytes.extend_from_slice(&(CHUNK.min(lens[tensor] - first) as i32).to_le_bytes());
                bytes.extend_from_slice(&(tensor as i32).to_le_bytes());
                firsts.push(state + first);
            }
        }
        debug_assert_eq!(bytes.len(), CHUNK_BYTES * firsts.len());
        Ok(Self { on_device: gpu.upload(&bytes)?, states: firsts })
    }

    fn count(&self) -> usize {
        self.states.len()
    }
}

impl FlatTensors {
    /// Elements that each tensor's start is a multiple of.
    pub const ALIGNMENT: usize = 64;

    /// Tensors of these lengths, in this order, each behind the last.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: &Gpu, lens: &[usize]) -> Result<Self, GpuError> {
        let (mut offsets, mut len) = (Vec::new(), 0usize);
        for elements in lens {
            offsets.push(len);
            len = (len + elements).next_multiple_of(Self::ALIGNMENT);
        }
        let starts: Vec<i64> = offsets.iter().map(|offset| *offset as i64).collect();
        let states: Vec<_> = offsets.iter().map(|offset| Some(*offset)).collect();
        Ok(Self {
            lens: lens.to_vec(),
            chunks: Chunks::new(gpu, &offsets, lens, &states)?,
            offsets_on_device: gpu.upload(&starts)?,
            offsets,
            len,
        })
    }

    /// Elements of a flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tensors there are.
    pub fn count(&self) -> usize {
        self.lens.len()
    }

    /// Where tensor `index` lies.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index] + self.lens[index]
    }
}

/// [`crate::adamw::adamw_step`] over all tensors: gradients and moments in flat buffers, and `params` each where it lies: they are written,
/// and whoever calls this is the only one who holds them. The settings differ between
/// tensors in their learning rate and weight decay alone.
///
/// # Errors
/// What the driver says.
pub fn adamw_step(
    gpu: &Gpu,
    tensors: &FlatTensors,
    params: &[Slice<'_>],
    grads: Slice<'_>,
    (first, second): (&mut SliceMut<'_>, &mut SliceMut<'_>),
    settings: &[AdamW],
) -> Result<(), GpuError> {
    assert_eq!((first.len(), second.len()), (tensors.len(), tensors.len()), "moments");
    let Some(step) = Step::new(gpu, tensors, params, grads, settings)? else { return Ok(()) };
    step.plain(gpu, &tensors.chunks, 0..tensors.chunks.count(), (first.ptr(), second.ptr()))
}

/// What a step reads beside the moments, on the device.
struct Step<'a> {
    tensors: &'a FlatTensors,
    grads: u64,
    pointers: CudaSlice<u64>,
    groups: CudaSlice<f32>,
    common: Constants,
}

impl<'a> Step<'a> {
    /// `None` where there is no tensor.
    fn new(
        gpu: &Gpu,
        tensors: &'a FlatTensors,
        params: &[Slice<'_>],
        grads: Slice<'_>,
        settings: &[AdamW],
    ) -> Result<Option<Self>, GpuError> {
        let count = tensors.lens.len();
        assert_eq!(grads.len(), tensors.len(), "gradients");
        assert_eq!((params.len(), settings.len()), (count, count), "parameters and settings");
        assert!(
            params.iter().zip(&tensors.lens).all(|(param, len)| param.len() == *len),
            "lengths of parameters"
        );
        let Some(common) = settings.first() else { return Ok(None) };
        let of_group = |settings: &AdamW| {
            let constants = Constants::new(settings);
            [constants.keep, constants.step_size]
        };
        let groups: Vec<f32> = settings.iter().flat_map(of_group).collect();
        let pointers: Vec<u64> = params.iter().map(|param| param.ptr()).collect();
        Ok(Some(Self {
            tensors,
            grads: grads.ptr(),
            pointers: gpu.upload(&pointers)?,
            groups: gpu.upload(&groups)?,
            common: Constants::new(common),
        }))
    }

    /// Over the chunks `range`, whose moments are f32 at these addresses.
    fn plain(
        &self,
        gpu: &Gpu,
        chunks: &Chunks,
        range: Range<usize>,
        moments: (u64, u64),
    ) -> Result<(), GpuError> {
        if range.is_empty() {
            return Ok(());
        }
        let (common, [pointers, offsets, groups, chunks]) = (&self.common, self.at(gpu, chunks, &range));
        launch!(
            gpu,
            Optimizer,
            "adamw",
            (range.len() as u32, 1, 1),
            (THREADS, 1, 1),
            0,
            [
                &pointers,
                &self.grads,
                &moments.0,
                &moments.1,
                &chunks,
                &offsets,
                &groups,
                &common.grad_scale,
                &common.one_less_beta1,
                &common.beta2,
                &common.one_less_beta2,
                &common.root_correction2,
                &common.eps
            ]
        );
        Ok(())
    }

    /// Over the chunks `range`, whose moments are codes and absolute maxima at these addresses.
    fn coded(&self, gpu: &Gpu, chunks: &Chunks, range: Range<usize>, at: &CodedAt) -> Result<(), GpuError> {
        if range.is_empty() {
            return Ok(());
        }
        let (common, [pointers, offsets, groups, chunks]) = (&self.common, self.at(gpu, chunks, &range));
        launch!(
            gpu,
            Optimizer,
            "adamw_8bit",
            (range.len() as u32, 1, 1),
            (THREADS, 1, 1),
            0,
            [
                &pointers,
                &self.grads,
                &at.codes[0],
                &at.codes[1],
                &at.absmax[0],
                &at.absmax[1],
                &at.maps,
                &chunks,
                &offsets,
                &groups,
                &common.grad_scale,
                &common.one_less_beta1,
                &common.beta2,
                &common.one_less_beta2,
                &common.root_correction2,
                &common.eps
            ]
        );
        Ok(())
    }

    /// Addresses: of the parameters' addresses, where tensors start, how they learn, and of the first chunk of a range.
    fn at(&self, gpu: &Gpu, chunks: &Chunks, range: &Range<usize>) -> [u64; 4] {
        assert!(range.end <= chunks.count(), "{range:?} of {} chunks", chunks.count());
        let stream = gpu.stream();
        [
            self.pointers.device_ptr(stream).0,
            self.tensors.offsets_on_device.device_ptr(stream).0,
            self.groups.device_ptr(stream).0,
            chunks.on_device.device_ptr(stream).0 + (CHUNK_BYTES * range.start) as u64,
        ]
    }
}

/// Addresses of coded moments.
struct CodedAt {
    codes: [u64; 2],
    absmax: [u64; 2],
    maps: u64,
}

/// Both moments of all tensors on a device: in f32, or in 8 bits where a tensor is large enough for that.
#[derive(Debug)]
pub struct DeviceMoments {
    gpu: Gpu,
    tensors: FlatTensors,
    format: StateFormat,
    /// Where each tensor's moments lie, in f32 or in codes.
    places: Vec<Range<usize>>,
    plain: Plain,
    coded: Option<CodedMoments>,
}

#[derive(Debug)]
struct Plain {
    chunks: Chunks,
    moments: [StateMemory; 2],
}

#[derive(Debug)]
struct CodedMoments {
    chunks: Chunks,
    codes: [StateMemory; 2],
    absmax: [StateMemory; 2],
    maps: CudaSlice<f32>,
}

impl DeviceMoments {
    /// Zeros, for tensors of these lengths.
    ///
    /// # Errors
    /// When there is no memory, or the device has none that is paged.
    pub fn new(gpu: &Gpu, lens: &[usize], format: StateFormat) -> Result<Self, GpuError> {
        let (mut plain, mut coded, mut places) = (0usize, 0usize, Vec::new());
        for len in lens {
            let (end, alignment) = match format.is_coded(*len) {
                true => (&mut coded, BLOCK_SIZE),
                false => (&mut plain, FlatTensors::ALIGNMENT),
            };
            places.push(*end..*end + len);
            *end = (*end + len).next_multiple_of(alignment);
        }
        let tensors = FlatTensors::new(gpu, lens)?;
        let chunks = |coded: bool| {
            let of = |(place, len): (&Range<usize>, &usize)| {
                (format.is_coded(*len) == coded).then_some(place.start)
            };
            let states: Vec<_> = places.iter().zip(lens).map(of).collect();
            Chunks::new(gpu, &tensors.offsets, lens, &states)
        };
        let two = |bytes: usize| -> Result<[StateMemory; 2], GpuError> {
            Ok([StateMemory::zeros(gpu, bytes, format.paged)?, StateMemory::zeros(gpu, bytes, format.paged)?])
        };
        let maps: Vec<f32> =
            code_maps().iter().flat_map(|map| map.values.into_iter().chain(map.bounds)).collect();
        Ok(Self {
            gpu: gpu.clone(),
            format,
            plain: Plain { chunks: chunks(false)?, moments: two(4 * plain)? },
            coded: match coded {
                0 => None,
                _ => Some(CodedMoments {
                    chunks: chunks(true)?,
                    codes: two(coded)?,
                    absmax: two(4 * (coded / BLOCK_SIZE))?,
                    maps: gpu.upload(&maps)?,
                }),
            },
            places,
            tensors,
        })
    }

    /// Lengths of the tensors.
    pub fn lens(&self) -> &[usize] {
        &self.tensors.lens
    }

    /// A step of every tensor, as [`adamw_step`] makes it: one launch over those in f32, one over those in 8 bits.
    ///
    /// # Errors
    /// What the driver says.
    pub fn step(
        &mut self,
        params: &[Slice<'_>],
        grads: Slice<'_>,
        settings: &[AdamW],
    ) -> Result<(), GpuError> {
        let gpu = &self.gpu;
        let Some(step) = Step::new(gpu, &self.tensors, params, grads, settings)? else { return Ok(()) };
        let Plain { chunks, moments: [first, second] } = &self.plain;
        for range in launches(chunks, self.format) {
            let bytes = self.bytes_of(chunks, &range, 4, first);
            fetch_pages(gpu, &[(first, &bytes), (second, &bytes)])?;
            step.plain(gpu, chunks, range, (first.ptr(), second.ptr()))?;
        }
        let Some(CodedMoments { chunks, codes, absmax, maps }) = &self.coded else { return Ok(()) };
        let at = CodedAt {
            codes: codes.each_ref().map(StateMemory::ptr),
            absmax: absmax.each_ref().map(StateMemory::ptr),
            maps: maps.device_ptr(gpu.stream()).0,
        };
        for range in launches(chunks, self.format) {
            let bytes = self.bytes_of(chunks, &range, 1, &codes[0]);
            let maxima = 4 * (bytes.start / BLOCK_SIZE)..4 * bytes.end.div_ceil(BLOCK_SIZE);
            let [c, a] = [codes.each_ref(), absmax.each_ref()];
            fetch_pages(gpu, &[(c[0], &bytes), (c[1], &bytes), (a[0], &maxima), (a[1], &maxima)])?;
            step.coded(gpu, chunks, range, &at)?;
        }
        Ok(())
    }

    /// The bytes of a moment that the chunks `range` use, each element of `width`.
    fn bytes_of(
        &self,
        chunks: &Chunks,
        range: &Range<usize>,
        width: usize,
        memory: &StateMemory,
    ) -> Range<usize> {
        let start = chunks.states.get(range.start).map_or(0, |state| state * width);
        start..chunks.states.get(range.end).map_or(memory.len(), |state| state * width)
    }

    /// A copy of both moments of each tensor on the host. Waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn download(&self) -> Result<Vec<[Moment; 2]>, GpuError> {
        let both = |(index, place): (usize, &Range<usize>)| -> Result<[Moment; 2], GpuError> {
            Ok([self.moment(index, place, 0)?, self.moment(index, place, 1)?])
        };
        self.places.iter().enumerate().map(both).collect()
    }

    fn moment(&self, index: usize, place: &Range<usize>, which: usize) -> Result<Moment, GpuError> {
        match (&self.coded, self.format.is_coded(self.tensors.lens[index])) {
            (Some(coded), true) => Ok(Moment::Coded(Coded {
                codes: coded.codes[which].read(&self.gpu, place.clone())?,
                absmax: coded.absmax[which].read(&self.gpu, blocks(place))?,
            })),
            _ => Ok(Moment::Plain(self.plain.moments[which].read(&self.gpu, place.clone())?)),
        }
    }

    /// Go on from moments that [`Self::download`] gave.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When they are not those of these tensors: see [`Moment::fits`].
    pub fn upload(&mut self, moments: &[[Moment; 2]]) -> Result<(), GpuError> {
        assert_eq!(moments.len(), self.places.len(), "moments of other tensors");
        for ((place, len), both) in self.places.iter().zip(&self.tensors.lens).zip(moments) {
            for (which, moment) in both.iter().enumerate() {
                assert!(moment.fits(*len, self.format), "moments of another tensor or format");
                match (moment, &mut self.coded) {
                    (Moment::Plain(values), _) => {
                        self.plain.moments[which].write(&self.gpu, place.start, values)?;
                    }
                    (Moment::Coded(from), Some(coded)) => {
                        coded.codes[which].write(&self.gpu, place.start, &from.codes)?;
                        coded.absmax[which].write(&self.gpu, blocks(place).start, &from.absmax)?;
                    }
                    (Moment::Coded(_), None) => {}
                }
            }
        }
        Ok(())
    }
}

/// The blocks of codes at `place`, which starts with a whole one.
fn blocks(place: &Range<usize>) -> Range<usize> {
    place.start / BLOCK_SIZE..place.end.div_ceil(BLOCK_SIZE)
}

/// Chunks of one launch each.
fn launches(chunks: &Chunks, format: StateFormat) -> impl Iterator<Item = Range<usize>> + use<> {
    let (count, most) = (chunks.count(), if format.paged { PAGED_CHUNKS } else { usize::MAX });
    (0..count).step_by(most).map(move |first| first..first.saturating_add(most).min(count))
}

/// The sum of the squares, in f64: blocks of a fixed size, then their sums in order. Waits for the device.
///
/// # Errors
/// What the driver says.
pub fn sum_of_squares(gpu: &Gpu, x: Slice<'_>) -> Result<f64, GpuError> {
    if x.is_empty() {
        return Ok(0.0);
    }
    let blocks = x.len().div_ceil(SQUARES);
    // SAFETY: the kernel writes each of them before they are read.
    let partial: CudaSlice<f64> =
        unsafe { gpu.stream().alloc(blocks) }.map_err(|e| GpuError::memory(8 * blocks, e))?;
    let at = partial.device_ptr(gpu.stream()).0;
    launch!(
        gpu,
        Optimizer,
        "sum_of_squares",
        (blocks as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [&x.ptr(), &at, &(x.len() as i64), &(SQUARES as i64)]
    );
    Ok(gpu.download(&partial)?.iter().sum())
}
