//! The crate from outside: sets are prepared, checked, explained, and real files load or get their documented error.

mod explain;
mod fake;
mod prepare;
mod real;
mod text;
