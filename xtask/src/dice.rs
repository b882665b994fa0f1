//! A sequence of draws from one counter-based stream, so that a generator can be read from top to bottom.
//!
//! Every document and every row has its own stream (seed, name, index): what row 7 says does not depend on how many
//! rows there are.

use taper_kernels::rng::{CounterRng, stream_of};

/// Draws in order from the stream of one thing.
pub(crate) struct Dice {
    rng: CounterRng,
    next: u64,
}

impl Dice {
    /// The dice of item `index` of the collection `name`.
    pub(crate) fn new(seed: u64, name: &str, index: u64) -> Self {
        Self { rng: CounterRng::new(seed, stream_of(&format!("{name}/{index}"))), next: 0 }
    }

    /// A whole number in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let drawn = self.rng.below(self.next, n as u64);
        self.next += 1;
        usize::try_from(drawn).unwrap_or(usize::MAX)
    }

    /// A whole number in `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of 100 draws.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the options.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, options: &[&'a T]) -> &'a T {
        options[self.below(options.len())]
    }

    /// One of the options, each as often as its weight says.
    pub(crate) fn weighted<T: Copy>(&mut self, options: &[(usize, T)]) -> T {
        let total = options.iter().map(|(weight, _)| weight).sum();
        let mut left = self.below(total);
        for &(weight, value) in options {
            if left < weight {
                return value;
            }
            left -= weight;
        }
        options[0].1
    }

    /// Put the items in random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
