//! The largest of a row of logits, in one or two passes over it.

/// Elements that are compared side by side.
const LANES: usize = 16;

/// The largest logit and the first place it stands at. `None` when no logit is above minus infinity, or one is NaN or plus infinity.
pub(crate) fn highest(logits: &[f32]) -> Option<(usize, f32)> {
    let mut most = [f32::NEG_INFINITY; LANES];
    let mut sound = [true; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            // False for NaN.
            sound[lane] &= block[lane] < f32::INFINITY;
            most[lane] = if block[lane] > most[lane] { block[lane] } else { most[lane] };
        }
    }
    if !sound.iter().all(|sound| *sound) || !rest.iter().all(|logit| *logit < f32::INFINITY) {
        return None;
    }
    let most = most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let at = (most > f32::NEG_INFINITY).then(|| logits.iter().position(|logit| *logit == most))??;
    Some((at, most))
}

/// The `k`-th largest of logits without NaN; `k` from 1 to their number.
///
/// A histogram over the leading bits finds the few among which it is.
pub(crate) fn kth_largest(logits: &[f32], k: usize) -> f32 {
    let bucket = |logit: f32| (ordered(logit) >> (32 - BUCKET_BITS)) as usize;
    let mut counts = vec![0usize; 1 << BUCKET_BITS];
    for &logit in logits {
        counts[bucket(logit)] += 1;
    }
    let mut above = 0;
    let mut at = counts.len() - 1;
    while above + counts[at] < k && at > 0 {
        above += counts[at];
        at -= 1;
    }
    let mut here: Vec<f32> = logits.iter().copied().filter(|logit| bucket(*logit) == at).collect();
    let rank = (k - above - 1).min(here.len() - 1);
    *here.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
}

/// Leading bits of a logit: its sign, its exponent, three bits of its mantissa.
const BUCKET_BITS: u32 = 12;

/// Bits that are in the order of the numbers.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_kernels::rng::{CounterRng, stream_of};

    fn row(seed: u64, v: usize) -> Vec<f32> {
        let rng = CounterRng::new(seed, stream_of("logits"));
        (0..v).map(|i| (rng.normal_at(i as u64) * 8.0).round() / 4.0).collect()
    }

    #[test]
    fn the_highest_is_the_first_of_the_largest() {
        for (seed, v) in [(0, 1), (1, 15), (2, 16), (3, 17), (4, 1000)] {
            let row = row(seed, v);
            let at = (0..v).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            assert_eq!(highest(&row), Some((at, row[at])), "{v} logits");
        }
    }

    #[test]
    fn a_row_that_is_no_numbers_has_no_highest() {
        for v in [3, 40] {
            for place in [0, 1, v - 1] {
                for (bad, expected) in
                    [(f32::NAN, None), (f32::INFINITY, None), (f32::NEG_INFINITY, Some(1.0))]
                {
                    let mut row = vec![1.0; v];
                    row[place] = bad;
                    assert_eq!(highest(&row).map(|(_, logit)| logit), expected, "{bad} at {place} of {v}");
                }
            }
            assert_eq!(highest(&vec![f32::NEG_INFINITY; v]), None);
        }
        assert_eq!(highest(&[]), None);
    }

    #[test]
    fn the_kth_largest_is_that_of_the_sorted_row() {
        for seed in 0..5 {
            let mut row = row(seed, 333);
            row.extend([0.0, -0.0, f32::NEG_INFINITY, 1e30, -1e30, f32::MIN_POSITIVE]);
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for k in 1..=row.len() {
                assert_eq!(kth_largest(&row, k), sorted[k - 1], "{k}");
            }
        }
    }
}
