//! Few rows or many: by which arithmetic a product goes.
//!
//! A product of few rows reads the weights once and sums along them; one of many packs both sides. The two round differently. By default the
//! number of rows decides; whoever needs a row to give the same bits whatever rows are computed beside it says which of them it is.

use crate::gemm::FEW_ROWS;
use std::cell::Cell;

thread_local! {
    static ALWAYS_MANY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every product that it calls on this thread going by the arithmetic of many rows, however few there are.
pub fn as_many<R>(body: impl FnOnce() -> R) -> R {
    with(true, body)
}

/// Runs `body` with the number of rows deciding again.
pub fn by_number<R>(body: impl FnOnce() -> R) -> R {
    with(false, body)
}

fn with<R>(always_many: bool, body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALWAYS_MANY.set(self.0);
        }
    }
    let _restore = Restore(ALWAYS_MANY.replace(always_many));
    body()
}

/// Whether `t` rows go by the arithmetic of few. Asked where a kernel is entered, on the caller's thread.
pub(crate) fn are_few(t: usize) -> bool {
    t <= FEW_ROWS && !ALWAYS_MANY.get()
}

/// Whether all go by the arithmetic of many.
pub(crate) fn are_always_many() -> bool {
    ALWAYS_MANY.get()
}
