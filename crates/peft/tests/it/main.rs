//! Adapters over real architectures, held to PEFT's own numbers and files.

mod golden;
mod invariants;
mod python;
mod real;
mod support;
