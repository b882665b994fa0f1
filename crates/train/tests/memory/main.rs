//! What a run holds in memory against its plan. A binary of its own: its heap counts, and nothing else may run beside the count.

#[cfg(test)]
mod passes;
