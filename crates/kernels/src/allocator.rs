//! How the program's allocator treats memory that is freed.

#![expect(unsafe_code, reason = "an option of the allocator is set through its C interface")]

/// `mi_option_purge_delay` of mimalloc 3 (its header mimalloc.h): milliseconds until freed pages go back to the system; -1 for never.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed pages for what is allocated next, where mimalloc is the allocator: a training step frees and takes the same buffers again and
/// again, and a page that went back to the system in between is cleared and mapped anew when it is touched. The peak of memory stays what it
/// was; what is free below it is not given to other programs. A setting of the environment (`MIMALLOC_PURGE_DELAY`) comes first.
///
/// To be called before anything large is allocated.
pub fn keep_freed_pages() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number; the function takes any value and is called before other threads start.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
}
