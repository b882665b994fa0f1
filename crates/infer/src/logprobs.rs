//! Log-probabilities of tokens by the model's own distribution.

use crate::WrittenToken;
use crate::select::{highest, kth_largest};

/// `ln softmax(logits)` of `id` and of the `k` likeliest ids, likeliest first (ties: the lower id first), from raw logits `[V]`: before
/// penalties, temperature and filters. The sum is in f64.
///
/// A token of probability 0 has minus infinity. Logits that are no distribution (NaN or plus infinity among them, or all minus
/// infinity) or lack `id` give no `logprob`.
pub fn token_logprobs(logits: &[f32], id: u32, k: usize) -> WrittenToken {
    let Some((_, most)) = highest(logits) else { return WrittenToken { id, logprob: None, top: Vec::new() } };
    let most = f64::from(most);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
    let of = |logit: f32| (f64::from(logit) - most - sum.ln()) as f32;
    let logprob = logits.get(id as usize).map(|&logit| of(logit));
    let k = k.min(logits.len());
    if k == 0 {
        return WrittenToken { id, logprob, top: Vec::new() };
    }
    let last = kth_largest(logits, k);
    let mut top: Vec<(u32, f32)> =
        (0..).zip(logits).filter(|(_, logit)| **logit >= last).map(|(id, logit)| (id, *logit)).collect();
    top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.truncate(k);
    top.iter_mut().for_each(|(_, logit)| *logit = of(*logit));
    WrittenToken { id, logprob, top }
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
    fn the_likeliest_are_those_of_the_sorted_row() {
        for (seed, v, k) in [(0, 100, 20), (1, 100, 1), (2, 7, 20), (3, 1000, 5), (4, 50, 0)] {
            let logits = row(seed, v);
            let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let ln_p = |id: usize| (f64::from(logits[id]).exp() / total).ln() as f32;
            let mut order: Vec<u32> = (0..v as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(k);
            let got = token_logprobs(&logits, 3, k);
            assert_eq!(got.id, 3);
            assert!((got.logprob.unwrap() - ln_p(3)).abs() < 1e-5);
            assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order);
            assert!(got.top.iter().all(|(id, logprob)| (logprob - ln_p(*id as usize)).abs() < 1e-5));
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_the_probabilities_sum_to_one() {
        let logits: Vec<f32> = row(9, 64).iter().map(|l| l + 3000.0).collect();
        let total: f64 = token_logprobs(&logits, 0, 64).top.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }

    #[test]
    fn what_has_no_probability_is_told_as_that() {
        let ruled_out = token_logprobs(&[0.0, f32::NEG_INFINITY], 1, 2);
        assert_eq!(
            (ruled_out.logprob, ruled_out.top),
            (Some(f32::NEG_INFINITY), vec![(0, 0.0), (1, f32::NEG_INFINITY)])
        );
        assert_eq!(
            token_logprobs(&[0.0, f32::NAN], 0, 2),
            WrittenToken { id: 0, logprob: None, top: vec![] }
        );
        assert_eq!(token_logprobs(&[0.0, 0.0], 2, 0).logprob, None);
    }
}
