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

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::contained;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let nothing: Vec<u8> = Vec::new();
        assert_eq!(contained(|| 3), Ok(3));
        assert!(contained(|| nothing[1]).unwrap_err().contains("index out of bounds"));
        assert_eq!(contained(|| panic!("no")).map(|()| 0), Err("it panicked: no".into()));
    }
}
