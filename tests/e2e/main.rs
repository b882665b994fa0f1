//! The built binary, driven as a user drives it: one module a journey.
//!
//! Every journey works in a folder of its own with a tiny base (two layers, random weights), a few dozen examples and the binary; the
//! network is out of reach. Whatever happens, no run may show the trace of a panic: [`desk::Desk::taper`] looks for it each time.

mod chat;
mod check;
mod desk;
mod eval;
mod explain;
mod export;
mod finetune;
mod generate;
mod help;
mod hostile_data;
mod offline;
mod real_base;
mod recipe_errors;
mod recipe_verbs;
mod repeat;
mod resume;
