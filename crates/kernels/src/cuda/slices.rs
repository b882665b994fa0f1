//! Slices in a device's memory, typed at run time as the kernels' names are.

use super::GpuError;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, result};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// The type of activations and dense weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    BF16,
    /// 2 bytes; weights only.
    F16,
}

impl FloatType {
    /// As kernels are named.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }
}

/// Elements of a device's memory that nobody changes while this lives. The memory belongs to somebody who lives longer.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    ptr: u64,
    len: usize,
    dtype: FloatType,
    owner: PhantomData<&'a [u8]>,
}

/// The same for whoever writes them.
#[derive(Debug)]
pub struct SliceMut<'a> {
    ptr: u64,
    len: usize,
    dtype: FloatType,
    owner: PhantomData<&'a mut [u8]>,
}

/// A Rust type that is a [`FloatType`].
pub trait Float: DeviceRepr {
    /// Which.
    const TYPE: FloatType;
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;
}

impl Float for bf16 {
    const TYPE: FloatType = FloatType::BF16;
}

impl Float for half::f16 {
    const TYPE: FloatType = FloatType::F16;
}

impl<'a> Slice<'a> {
    /// Elements `range` of a buffer.
    pub fn of<T: Float>(buffer: &'a CudaSlice<T>, range: Range<usize>, stream: &Arc<CudaStream>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "{range:?} of {}", buffer.len());
        let (ptr, _guard) = buffer.device_ptr(stream);
        let ptr = ptr + (range.start * size_of::<T>()) as u64;
        Self { ptr, len: range.len(), dtype: T::TYPE, owner: PhantomData }
    }

    /// The address, as kernels take it.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Elements `range` of these.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self { ptr: self.ptr + (range.start * self.dtype.bytes()) as u64, len: range.len(), ..*self }
    }
}

impl<'a> SliceMut<'a> {
    /// Elements `range` of a buffer.
    pub fn of<T: Float>(buffer: &'a mut CudaSlice<T>, range: Range<usize>, stream: &Arc<CudaStream>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "{range:?} of {}", buffer.len());
        let (ptr, _guard) = buffer.device_ptr_mut(stream);
        let ptr = ptr + (range.start * size_of::<T>()) as u64;
        Self { ptr, len: range.len(), dtype: T::TYPE, owner: PhantomData }
    }

    /// The address, as kernels take it.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// The same elements, for as long as this is not used.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        SliceMut { ptr: self.ptr, len: self.len, dtype: self.dtype, owner: PhantomData }
    }

    /// Elements `range` of these.
    pub fn part(&mut self, range: Range<usize>) -> SliceMut<'_> {
        let part = self.as_slice().part(range);
        SliceMut { ptr: part.ptr, len: part.len, dtype: part.dtype, owner: PhantomData }
    }

    /// All bytes 0.
    pub(super) fn set_zero(&mut self, stream: &Arc<CudaStream>) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        // SAFETY: these are the bytes of a live buffer, as `of` and `part` have seen to.
        unsafe { result::memset_d8_async(self.ptr, 0, self.len * self.dtype.bytes(), stream.cu_stream()) }
    }

    /// To read them.
    pub fn as_slice(&self) -> Slice<'_> {
        Slice { ptr: self.ptr, len: self.len, dtype: self.dtype, owner: PhantomData }
    }
}

/// Memory of a device that is freed with this, in the order of the stream.
#[derive(Debug)]
pub struct Buffer<T>(pub CudaSlice<T>);

impl<T: Float> Buffer<T> {
    /// `len` elements of whatever the memory holds.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(stream: &Arc<CudaStream>, len: usize) -> Result<Self, GpuError> {
        // SAFETY: every bit pattern is an element, and kernels write outputs before anyone reads them.
        unsafe { stream.alloc(len.max(1)) }.map(Self).map_err(|e| GpuError::memory(len * size_of::<T>(), e))
    }

    /// All elements, but for those of rounding up.
    pub fn slice(&self, stream: &Arc<CudaStream>) -> Slice<'_> {
        Slice::of(&self.0, 0..self.0.len(), stream)
    }

    /// The same to write.
    pub fn slice_mut(&mut self, stream: &Arc<CudaStream>) -> SliceMut<'_> {
        let len = self.0.len();
        SliceMut::of(&mut self.0, 0..len, stream)
    }
}
