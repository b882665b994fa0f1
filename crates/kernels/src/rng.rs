//! Random numbers by position: Philox4x32-10, a block cipher run over a counter.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Four 32-bit words come from a 64-bit
//! key (the seed) and a 128-bit counter (the position in the low half, the stream in the high half). There is no state, so a mask can be
//! made again in the backward pass, any part can be made first, and a resumed run needs nothing but its step number.
//!
//! `u32_at`, `uniform_at` and the fills of uniforms share the words of block `i / 4`; `uniform_f64_at` and `below` those of `i / 2`;
//! `normal_at` uses block `i` whole. Numbers of different kinds from one stream are therefore dependent: use a stream for each purpose.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
/// Blocks made together by the fills.
const BLOCKS: usize = 16;

/// A random-access stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRng {
    seed: u64,
    stream: u64,
}

impl CounterRng {
    /// The stream numbered `stream` under `seed`. Different pairs give independent numbers; see [`stream_of`] and [`mix`].
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The seed and the stream, for whoever makes the same words elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(&self) -> (u64, u64) {
        (self.seed, self.stream)
    }

    /// The four words of block `counter`.
    pub fn block(&self, counter: u64) -> [u32; 4] {
        let [c0, c1] = halves(counter);
        let [c2, c3] = halves(self.stream);
        philox([[c0], [c1], [c2], [c3]], halves(self.seed)).map(|[word]| word)
    }

    /// Word `i` of the stream.
    pub fn u32_at(&self, i: u64) -> u32 {
        self.block(i / 4)[(i % 4) as usize]
    }

    /// Pair of words `i` of the stream.
    pub fn u64_at(&self, i: u64) -> u64 {
        let block = self.block(i / 2);
        let at = 2 * (i % 2) as usize;
        u64::from(block[at]) | u64::from(block[at + 1]) << 32
    }

    /// Uniform in [0, 1): a multiple of 2^-24.
    pub fn uniform_at(&self, i: u64) -> f32 {
        unit(self.u32_at(i))
    }

    /// Uniform in [0, 1): a multiple of 2^-53.
    pub fn uniform_f64_at(&self, i: u64) -> f64 {
        unit_f64(self.u64_at(i))
    }

    /// Standard normal by Box and Muller, computed in `f64`: sqrt(-2 ln u) cos(2 pi v), u in (0, 1], v in [0, 1).
    pub fn normal_at(&self, i: u64) -> f32 {
        let [a, b, c, d] = self.block(i);
        let u = 1.0 - unit_f64(u64::from(a) | u64::from(b) << 32);
        let v = unit_f64(u64::from(c) | u64::from(d) << 32);
        ((-2.0 * u.ln()).sqrt() * (core::f64::consts::TAU * v).cos()) as f32
    }

    /// An integer in `0..n`, by the high half of a 128-bit product: no value is favoured by more than n / 2^64.
    ///
    /// # Panics
    /// When `n` is zero.
    pub fn below(&self, i: u64, n: u64) -> u64 {
        assert!(n > 0, "no integer is below 0");
        ((u128::from(self.u64_at(i)) * u128::from(n)) >> 64) as u64
    }

    /// `out[j] = lo + (hi - lo) * uniform_at(start + j)`.
    pub fn fill_uniform(&self, start: u64, lo: f32, hi: f32, out: &mut [f32]) {
        self.for_each_words(start, out.len(), |at, words| {
            for (o, &word) in out[at..].iter_mut().zip(words) {
                *o = lo + (hi - lo) * unit(word);
            }
        });
    }

    /// `out[j] = std * normal_at(start + j)`.
    pub fn fill_normal(&self, start: u64, std: f32, out: &mut [f32]) {
        crate::threads::for_each_rows(out, 1, 4096, |first, part| {
            for (j, o) in part.iter_mut().enumerate() {
                *o = std * self.normal_at(start + (first + j) as u64);
            }
        });
    }

    /// Calls `body(at, words)` with runs of `u32_at(start + at)..`, which together are `len` words.
    pub(crate) fn for_each_words(&self, start: u64, len: usize, mut body: impl FnMut(usize, &[u32])) {
        let mut words = [0u32; 4 * BLOCKS];
        let mut at = 0;
        while at < len {
            let position = start + at as u64;
            self.blocks(position / 4, &mut words);
            let skip = (position % 4) as usize;
            let n = (words.len() - skip).min(len - at);
            body(at, &words[skip..skip + n]);
            at += n;
        }
    }

    fn blocks(&self, first: u64, words: &mut [u32; 4 * BLOCKS]) {
        philox_blocks(first, halves(self.stream), halves(self.seed), words);
    }
}

/// Puts `items` in a random order (Fisher and Yates), the same for the same seed, stream and length.
pub fn shuffle<T>(seed: u64, stream: u64, items: &mut [T]) {
    let rng = CounterRng::new(seed, stream);
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u64, i as u64 + 1) as usize);
    }
}

/// A stream number from a name: the 64-bit FNV-1a hash of its bytes.
pub fn stream_of(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Combines two keys to one, by the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). The order matters.
pub fn mix(a: u64, b: u64) -> u64 {
    let finalise = |mut z: u64| {
        z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    finalise(finalise(a) ^ b)
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

fn unit_f64(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// Ten rounds on `W` counters at once; word `w` of counter `l` is `counter[w][l]`.
#[inline(always)]
fn philox<const W: usize>(mut counter: [[u32; W]; 4], mut key: [u32; 2]) -> [[u32; W]; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let old = counter;
        for l in 0..W {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(old[0][l]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(old[2][l]);
            counter[0][l] = (b >> 32) as u32 ^ old[1][l] ^ key[0];
            counter[1][l] = b as u32;
            counter[2][l] = (a >> 32) as u32 ^ old[3][l] ^ key[1];
            counter[3][l] = a as u32;
        }
    }
    counter
}

multiversion! {
    fn philox_blocks(first: u64, stream: [u32; 2], key: [u32; 2], words: &mut [u32; 4 * BLOCKS]) {
        let positions: [[u32; 2]; BLOCKS] = core::array::from_fn(|l| halves(first.wrapping_add(l as u64)));
        let counter = [positions.map(|p| p[0]), positions.map(|p| p[1]), [stream[0]; BLOCKS], [stream[1]; BLOCKS]];
        let out = philox(counter, key);
        for l in 0..BLOCKS {
            for w in 0..4 {
                words[4 * l + w] = out[w][l];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        CounterRng::new(join(key[0], key[1]), join(counter[2], counter[3]))
            .block(join(counter[0], counter[1]))
    }

    /// The vectors that Random123 ships in `kat_vectors` for `philox4x32 10`.
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(of([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(of([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(of(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn fills_equal_the_numbers_at_their_positions() {
        let rng = CounterRng::new(7, 9);
        for start in [0u64, 1, 3, 62, u64::from(u32::MAX) * 4 - 5] {
            let mut uniform = vec![f32::NAN; 131];
            rng.fill_uniform(start, -2.0, 3.0, &mut uniform);
            let mut normal = vec![f32::NAN; 131];
            rng.fill_normal(start, 0.5, &mut normal);
            for j in 0..131 {
                assert_eq!(uniform[j], -2.0 + 5.0 * rng.uniform_at(start + j as u64));
                assert_eq!(normal[j], 0.5 * rng.normal_at(start + j as u64));
            }
        }
    }

    #[test]
    fn uniforms_and_normals_have_their_moments() {
        let rng = CounterRng::new(1, stream_of("moments"));
        let n = 200_000u64;
        let (mut u1, mut u2, mut z1, mut z2, mut z4) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for i in 0..n {
            let u = f64::from(rng.uniform_at(i));
            assert!((0.0..1.0).contains(&u));
            assert!((0.0..1.0).contains(&rng.uniform_f64_at(i)));
            let z = f64::from(rng.normal_at(i));
            (u1, u2, z1, z2, z4) = (u1 + u, u2 + u * u, z1 + z, z2 + z * z, z4 + z * z * z * z);
        }
        let n = n as f64;
        assert!((u1 / n - 0.5).abs() < 3e-3 && (u2 / n - 1.0 / 3.0).abs() < 3e-3);
        assert!((z1 / n).abs() < 0.01 && (z2 / n - 1.0).abs() < 0.02 && (z4 / n - 3.0).abs() < 0.1);
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let rng = CounterRng::new(3, 4);
        let mut counts = [0usize; 7];
        for i in 0..70_000 {
            counts[rng.below(i, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_600..10_400).contains(&c)), "{counts:?}");
    }

    #[test]
    fn shuffling_permutes_and_depends_on_seed_and_stream() {
        let order = |seed, stream| {
            let mut items: Vec<usize> = (0..50).collect();
            shuffle(seed, stream, &mut items);
            items
        };
        let mut sorted = order(1, 2);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(2, 2));
        assert_ne!(order(1, 2), order(1, 3));
    }

    #[test]
    fn keys_are_told_apart() {
        // The published FNV-1a test values.
        assert_eq!(stream_of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stream_of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stream_of("foobar"), 0x8594_4171_f739_67e8);
        assert_ne!(mix(1, 2), mix(2, 1));
        assert_ne!(mix(0, 0), 0);
    }
}
