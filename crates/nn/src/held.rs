//! Holding still what a backward takes for constant.
//!
//! DoRA divides by norms that follow the parameters and are not differentiated. A finite difference moves the parameters, and so the norms; within
//! [`with_constants_held`] they stay as they were first computed, and the difference is that of the gradient.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static HELD: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `body`; constants of a backward that are computed in it are computed once.
pub fn with_constants_held<R>(body: impl FnOnce() -> R) -> R {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    struct Restore(Option<u64>);
    impl Drop for Restore {
        fn drop(&mut self) {
            HELD.set(self.0);
        }
    }
    let _restore = Restore(HELD.replace(Some(NEXT.fetch_add(1, Ordering::Relaxed))));
    body()
}

/// Which call of [`with_constants_held`] runs on this thread.
pub fn constants_held() -> Option<u64> {
    HELD.get()
}
