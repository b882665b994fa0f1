//! What the tests of the kernels share.

use crate::rng::{CounterRng, mix};

/// Uniform in [-1, 1).
pub(crate) fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![f32::NAN; n];
    CounterRng::new(42, stream).fill_uniform(0, -1.0, 1.0, &mut x);
    x
}

/// An output buffer that no kernel may read.
pub(crate) fn poisoned(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

/// Small numbers for random shapes.
pub(crate) struct Dice(CounterRng, u64);

impl Dice {
    pub(crate) fn new(stream: u64) -> Self {
        Self(CounterRng::new(mix(17, stream), stream), 0)
    }

    /// In `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        self.1 += 1;
        low + self.0.below(self.1, (high - low + 1) as u64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.between(0, items.len() - 1)]
    }
}

/// Within `tolerance * (1 + |want|)` everywhere.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(got) - want).abs();
        assert!(difference <= tolerance * (1.0 + want.abs()), "{what}: element {i} is {got} and not {want}");
    }
}

/// Runs `f` on pools of 1, 2 and 3 threads and checks that the bits are equal.
#[track_caller]
pub(crate) fn assert_same_for_any_threads(what: &str, f: impl Fn() -> Vec<f32> + Send + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| f().iter().map(|x| x.to_bits()).collect::<Vec<u32>>())
    };
    let one = run(1);
    assert!(!one.is_empty(), "{what}: nothing to compare");
    for threads in [2, 3] {
        assert!(run(threads) == one, "{what}: the bits change with {threads} threads");
    }
}
