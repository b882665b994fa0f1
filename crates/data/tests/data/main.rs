//! The crate from outside: sets are prepared, checked, explained, and real files load or get their documented error.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise, in its helpers too")]
#![expect(clippy::print_stderr, reason = "a test that skips says so")]

mod cache;
mod explain;
mod fake;
mod prepare;
mod real;
mod text;
