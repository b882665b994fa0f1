//! Adapters over real architectures, held to PEFT's own numbers and files.

// `cfg(test)` holds for the whole binary; saying it lets clippy allow `unwrap` in helpers as it does in tests.
#[cfg(test)]
mod combine;
mod golden;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod python;
#[cfg(test)]
mod quantised;
#[cfg(test)]
mod real;
#[cfg(test)]
mod support;
