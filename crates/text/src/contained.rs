//! Calls into libraries over foreign files and templates: a panic there is an error here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `call` gives, or `Err` with the words of its panic.
///
/// The libraries index and unwrap on what a file should have said. Nothing that was half changed by such a call is used
/// again: a tokenizer that fails to load is dropped, and encoding, decoding and rendering change nothing but caches.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| format!("it panicked: {}", words(panic.as_ref())))
}

/// Bytes of the stack of [`contained_deep`]. They are address space until they are touched.
const DEEP_STACK: usize = 512 << 20;

/// [`contained`] on a stack of its own, for what recurses as deep as a hostile text makes it: an overflow of the stack is
/// no panic, it ends the process.
///
/// 512 MiB are 500 bytes for each byte of the longest template, and for each step that a rendering may take 128.
pub(crate) fn contained_deep<T: Send>(call: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(DEEP_STACK);
        let thread = builder
            .spawn_scoped(scope, call)
            .map_err(|error| format!("there is no thread for it: {error}"))?;
        thread.join().map_err(|panic| format!("it panicked: {}", words(panic.as_ref())))
    })
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::{contained, contained_deep};

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let nothing: Vec<u8> = Vec::new();
        assert_eq!(contained(|| 3), Ok(3));
        assert!(contained(|| nothing[1]).unwrap_err().contains("index out of bounds"));
        assert_eq!(contained(|| panic!("no")).map(|()| 0), Err("it panicked: no".into()));
        assert_eq!(contained_deep(|| panic!("no")).map(|()| 0), Err("it panicked: no".into()));
    }

    #[test]
    fn a_deep_call_has_room() {
        fn down(left: u32) -> u32 {
            let room = std::hint::black_box([left; 64]);
            if left == 0 { 0 } else { 1 + down(left - 1) + room[63] - left }
        }
        assert_eq!(contained_deep(|| down(100_000)), Ok(100_000));
    }
}
