//! Training on the golden models: against PyTorch's numbers, and the invariants of DESIGN.md by their numbers.

mod golden;
mod passes;
mod runs;
mod self_test;
mod stops;
mod support;
