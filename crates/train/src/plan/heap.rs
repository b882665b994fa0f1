//! What is alive, by cause, and the most that ever was.

use std::fmt;

/// Why bytes are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Frozen weights of the base.
    Weights,
    /// Trained parameters, f32.
    Parameters,
    /// Their gradients, summed over a step.
    Gradients,
    /// Both moments of the optimiser.
    Optimizer,
    /// What the blocks keep for the backward.
    Activations,
    /// Gradients of activations, and what operations need for a moment.
    Temporaries,
    /// Logits, and their gradients.
    Logits,
    /// Keys and values of the sequences that are being written.
    Cache,
    /// Copies of parameters: the self-test's, a checkpoint's.
    Copies,
    /// The weight that is being read: pages of its file, and its values while they are quantised.
    Reading,
    /// The program, the tokenizer and the examples, scratch of the threads, what the allocator holds beyond what is asked of it.
    Overhead,
}

impl Cause {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 11] = [
        Self::Weights,
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations,
        Self::Temporaries,
        Self::Logits,
        Self::Cache,
        Self::Copies,
        Self::Reading,
        Self::Overhead,
    ];

    /// The name in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Parameters => "parameters",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Activations => "activations",
            Self::Temporaries => "temporaries",
            Self::Logits => "logits",
            Self::Cache => "cache",
            Self::Copies => "copies",
            Self::Reading => "reading",
            Self::Overhead => "overhead",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes([u64; Cause::ALL.len()]);

impl Bytes {
    /// Bytes of one cause.
    pub fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn add(&mut self, cause: Cause, bytes: u64) {
        self.0[cause as usize] += bytes;
    }

    pub(super) fn with(mut self, cause: Cause, bytes: u64) -> Self {
        self.add(cause, bytes);
        self
    }
}

/// A heap that only counts.
#[derive(Debug, Default)]
pub(super) struct Heap {
    live: Bytes,
    peak: Bytes,
}

impl Heap {
    /// A heap on which `live` lies already.
    pub(super) fn holding(live: Bytes) -> Self {
        Self { live, peak: live }
    }

    pub(super) fn alloc(&mut self, cause: Cause, bytes: u64) {
        self.live.add(cause, bytes);
        if self.live.total() > self.peak.total() {
            self.peak = self.live;
        }
    }

    pub(super) fn free(&mut self, cause: Cause, bytes: u64) {
        debug_assert!(self.live.of(cause) >= bytes, "freed {bytes} bytes of {cause} that were not held");
        self.live.0[cause as usize] -= bytes;
    }

    /// Bytes that are held for a moment.
    pub(super) fn pass_by(&mut self, cause: Cause, bytes: u64) {
        self.alloc(cause, bytes);
        self.free(cause, bytes);
    }

    /// What was alive when the most was.
    pub(super) fn peak(&self) -> Bytes {
        self.peak
    }
}
