//! Models against the numbers of the reference implementation, against each other's layouts, and against real checkpoints.

#[cfg(test)]
mod gguf;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod loading;
#[cfg(test)]
mod real;
#[cfg(test)]
mod support;
