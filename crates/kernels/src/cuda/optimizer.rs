//! What an optimiser does on a device: [`crate::adamw`] over all tensors in one launch, and the norm of all gradients.

use super::{Gpu, GpuError, Slice, SliceMut, launch};
use crate::adamw::{AdamW, Constants};
use cudarc::driver::{CudaSlice, DevicePtr};

const THREADS: u32 = 256;
/// Elements that a block moves.
const CHUNK: usize = 4096;
/// Elements whose squares a block sums.
const SQUARES: usize = 16 * 1024;

/// Where tensors lie within flat buffers that hold them end to end, cut into the chunks that blocks work on.
#[derive(Debug)]
pub struct FlatTensors {
    offsets: Vec<usize>,
    lens: Vec<usize>,
    chunks: CudaSlice<u8>,
    chunk_count: usize,
    offsets_on_device: CudaSlice<i64>,
    len: usize,
}

impl FlatTensors {
    /// Elements that each tensor's start is a multiple of.
    pub const ALIGNMENT: usize = 64;

    /// Tensors of these lengths, in this order, each behind the last.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: &Gpu, lens: &[usize]) -> Result<Self, GpuError> {
        let (mut offsets, mut len, mut chunks, mut count) = (Vec::new(), 0usize, Vec::new(), 0);
        for (group, elements) in lens.iter().enumerate() {
            offsets.push(len);
            for first in (0..*elements).step_by(CHUNK) {
                let here = CHUNK.min(elements - first);
                chunks.extend_from_slice(&((len + first) as i64).to_le_bytes());
                chunks.extend_from_slice(&(here as i32).to_le_bytes());
                chunks.extend_from_slice(&(group as i32).to_le_bytes());
                count += 1;
            }
            len = (len + elements).next_multiple_of(Self::ALIGNMENT);
        }
        let starts: Vec<i64> = offsets.iter().map(|offset| *offset as i64).collect();
        Ok(Self {
            offsets,
            lens: lens.to_vec(),
            chunks: gpu.upload(&chunks)?,
            chunk_count: count,
            offsets_on_device: gpu.upload(&starts)?,
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
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
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
    let n = tensors.len();
    assert_eq!((grads.len(), first.len(), second.len()), (n, n, n), "gradients and moments");
    assert_eq!(
        (params.len(), settings.len()),
        (tensors.lens.len(), tensors.lens.len()),
        "parameters and settings"
    );
    assert!(
        params.iter().zip(&tensors.lens).all(|(param, len)| param.len() == *len),
        "lengths of parameters"
    );
    let Some(common) = settings.first() else { return Ok(()) };
    let common = Constants::new(common);
    let groups: Vec<f32> = settings
        .iter()
        .flat_map(|settings| {
            let constants = Constants::new(settings);
            [constants.keep, constants.step_size]
        })
        .collect();
    let (groups, pointers) =
        (gpu.upload(&groups)?, params.iter().map(|param| param.ptr()).collect::<Vec<u64>>());
    let pointers = gpu.upload(&pointers)?;
    let stream = gpu.stream();
    let at = (
        pointers.device_ptr(stream).0,
        tensors.chunks.device_ptr(stream).0,
        tensors.offsets_on_device.device_ptr(stream).0,
        groups.device_ptr(stream).0,
    );
    launch!(
        gpu,
        Optimizer,
        "adamw",
        (tensors.chunk_count as u32, 1, 1),
        (THREADS, 1, 1),
        0,
        [
            &at.0,
            &grads.ptr(),
            &first.ptr(),
            &second.ptr(),
            &at.1,
            &at.2,
            &at.3,
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
