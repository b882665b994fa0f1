//! Activations as they lie: `f32`, or rounded to `bf16`. Kernels compute in `f32` a few thousand elements at a time, so narrow inputs are
//! widened and results rounded within the nearest cache.

#![expect(
    unsafe_code,
    reason = "hands out parts of one slice to several threads, and memory that is about to be written"
)]

use crate::product::bf16_bits;
use crate::shared::SharedMut;
use core::cell::RefCell;
use half::bf16;

/// Elements that are computed at a time where something is narrow.
pub(crate) const CHUNK: usize = 2048;

/// Numbers to read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Their upper halves.
    BF16(&'a [bf16]),
}

/// Numbers to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// Rounded to the nearest bf16, ties to even.
    BF16(&'a mut [bf16]),
}

impl<'a> Floats<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::BF16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn part(self, range: core::ops::Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::BF16(x) => Self::BF16(&x[range]),
        }
    }

    /// Elements `at..at + len` in `f32`: where they lie, or widened into `scratch`.
    pub(crate) fn read<'s>(&self, at: usize, len: usize, scratch: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Self::F32(x) => &x[at..at + len],
            Self::BF16(x) => {
                widen(&x[at..at + len], &mut scratch[..len]);
                &scratch[..len]
            }
        }
    }

    /// The same elements as weights.
    pub(crate) fn view(self) -> crate::gemm::WeightView<'a> {
        match self {
            Self::F32(x) => crate::gemm::WeightView::F32(x),
            Self::BF16(x) => crate::gemm::WeightView::BF16(x),
        }
    }
}

impl FloatsMut<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::BF16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Floats<'a> {
    fn from(x: &'a [f32]) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a Vec<f32>> for Floats<'a> {
    fn from(x: &'a Vec<f32>) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a [bf16]> for Floats<'a> {
    fn from(x: &'a [bf16]) -> Self {
        Self::BF16(x)
    }
}

impl<'a> From<&'a mut [f32]> for FloatsMut<'a> {
    fn from(x: &'a mut [f32]) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a mut Vec<f32>> for FloatsMut<'a> {
    fn from(x: &'a mut Vec<f32>) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a mut [bf16]> for FloatsMut<'a> {
    fn from(x: &'a mut [bf16]) -> Self {
        Self::BF16(x)
    }
}

/// Numbers that several tasks write at once, each its own part.
#[derive(Clone, Copy)]
pub(crate) enum SharedFloats<'a> {
    F32(SharedMut<'a, f32>),
    BF16(SharedMut<'a, bf16>),
}

impl<'a> SharedFloats<'a> {
    pub(crate) fn new(out: FloatsMut<'a>) -> Self {
        match out {
            FloatsMut::F32(out) => Self::F32(SharedMut::new(out)),
            FloatsMut::BF16(out) => Self::BF16(SharedMut::new(out)),
        }
    }

    /// Lets `fill` write elements `at..at + len`: where they lie, or in `scratch`, from which they are rounded.
    ///
    /// # Safety
    /// No other part that overlaps this one may be in use meanwhile.
    pub(crate) unsafe fn write<R>(
        &self,
        at: usize,
        len: usize,
        scratch: &mut [f32],
        fill: impl FnOnce(&mut [f32]) -> R,
    ) -> R {
        match self {
            // SAFETY: by the caller's promise.
            Self::F32(out) => fill(unsafe { out.part(at, len) }),
            Self::BF16(out) => {
                let result = fill(&mut scratch[..len]);
                // SAFETY: as above.
                round(&scratch[..len], unsafe { out.part(at, len) });
                result
            }
        }
    }
}

thread_local! {
    /// Buffers that nobody uses just now.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `N` buffers of `len` elements with anything in them.
pub(crate) fn with_scratch<const N: usize, R>(len: usize, body: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let mut buffers: [Vec<f32>; N] =
        core::array::from_fn(|_| SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default());
    let result = body(buffers.each_mut().map(|buffer| crate::gemm::grown(buffer, len)));
    SCRATCH.with_borrow_mut(|free| free.extend(buffers));
    result
}

/// A buffer of `len` elements for a kernel to write: no time is spent on zeros that nobody reads. Debug builds fill it with NaN, which every
/// kernel must overwrite.
pub fn buffer<T: Scalar>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    if cfg!(debug_assertions) {
        values.resize(len, T::NAN);
    } else {
        // SAFETY: the capacity is there; every bit pattern is a valid float; the kernels of this crate write what they are given before anyone
        // reads it (their tests give them NaN).
        unsafe {
            values.set_len(len);
        }
    }
    values
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// `f32` or `bf16`: floats without padding or invalid bit patterns.
pub trait Scalar: Copy + sealed::Sealed {
    /// Not a number.
    const NAN: Self;
}

impl Scalar for f32 {
    const NAN: Self = Self::NAN;
}

impl Scalar for bf16 {
    const NAN: Self = Self::NAN;
}

multiversion! {
    /// Rounds to the nearest bf16, ties to even.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn round(x: &[f32], out: &mut [bf16]) {
        assert_eq!(x.len(), out.len(), "lengths");
        for (out, x) in out.iter_mut().zip(x) {
            *out = bf16::from_bits(bf16_bits(*x));
        }
    }
}

multiversion! {
    /// Widens to `f32`. Exact, quieting no NaN.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn widen(x: &[bf16], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "lengths");
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}
