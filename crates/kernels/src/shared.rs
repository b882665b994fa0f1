//! A mutable slice that several tasks write at once, each its own part: row-major matrices cut by columns cannot be split by
//! `split_at_mut`.

#![expect(unsafe_code, reason = "hands out parts of one slice to several threads")]

use core::marker::PhantomData;

/// A slice borrowed mutably as a whole, whose parts are handed out by promise rather than by the borrow checker.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from a unique borrow that lives for 'a; all access goes through unsafe functions whose callers promise that
// parts in use at the same time do not overlap, so sending or sharing the handle moves at most a `T` between threads.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Takes the slice for as long as tasks write to it.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// The part `[at, at + len)`; bounds are checked.
    ///
    /// # Safety
    /// No other part that overlaps this one may be in use while the result lives.
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The address of element `at`, of which `span` elements may be touched; bounds are checked.
    pub(crate) fn address(&self, at: usize, span: usize) -> *mut T {
        assert!(at <= self.len && span <= self.len - at, "span {at}+{span} of {}", self.len);
        self.start.wrapping_add(at)
    }
}
