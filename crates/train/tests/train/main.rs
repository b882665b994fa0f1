//! Training on the golden models: against PyTorch's numbers, and the invariants of DESIGN.md by their numbers.

#[cfg(test)]
mod golden;
#[cfg(test)]
mod passes;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod self_test;
#[cfg(test)]
mod stops;
#[cfg(test)]
mod support;
#[cfg(test)]
mod validator;
