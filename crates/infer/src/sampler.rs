//! From a row of logits to a token.
//!
//! The filters and their order are those of transformers (`generation/logits_process.py`): temperature, top_k, top_p (Holtzman et
//! al. 2020), min_p (Nguyen et al. 2024), after the changes that [`crate::adjust`] makes. Probabilities and their sums are f64.

use crate::adjust::adjusted;
use crate::select::{highest, kth_largest};
use crate::{GenerationConfig, TokenMask};
use std::sync::Arc;
use taper_kernels::rng::{CounterRng, mix, stream_of};

/// What a token is chosen by beside its logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct SamplerInput<'a> {
    /// The ids of the prompt.
    pub prompt: &'a [u32],
    /// The ids that were written since; their number is the index of the token.
    pub written: &'a [u32],
    /// The ids that end the text, for `min_new_tokens`.
    pub stop_ids: &'a [u32],
    /// The tokens that a grammar leaves; none is all.
    pub allowed: Option<&'a TokenMask>,
}

/// Draws the tokens of one request.
///
/// The draw of token `i` depends on the seed, the request's number and `i` alone, not on what else is in the batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: Arc<GenerationConfig>,
    rng: CounterRng,
}

impl Sampler {
    /// The sampler of request number `request`.
    pub fn new(config: Arc<GenerationConfig>, request: u64) -> Self {
        let rng = CounterRng::new(mix(config.seed, request), stream_of("generate"));
        Self { config, rng }
    }

    /// The next token of the request from logits `[V]`.
    ///
    /// `None` when no logit is a number that a token could be chosen by (all that is allowed is NaN or minus infinity, or one is a plus
    /// infinity).
    pub fn sample(&self, logits: &[f32], input: &SamplerInput<'_>) -> Option<u32> {
        let logits = adjusted(logits, input, &self.config);
        if self.config.is_greedy() {
            return highest(&logits).map(|(id, _)| id as u32);
        }
        draw(&filtered(&logits, &self.config), self.rng.uniform_f64_at(input.written.len() as u64))
    }
}

/// The tokens that the filters leave of logits `[V]`, by id, each with its probability; they sum to 1.
///
/// Empty when no logit is finite, or one is plus infinity or NaN.
pub fn distribution(logits: &[f32], input: &SamplerInput<'_>, config: &GenerationConfig) -> Vec<(u32, f64)> {
    let kept = filtered(&adjusted(logits, input, config), config);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    kept.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

/// What is left, by id, with weights `exp((logit - highest) / temperature)`.
fn filtered(logits: &[f32], config: &GenerationConfig) -> Vec<(u32, f64)> {
    let Some((_, highest)) = highest(logits) else { return Vec::new() };
    let highest = f64::from(highest);
    // Ties with the last one stay, as in transformers.
    let cut = config.top_k > 0 && config.top_k < logits.len();
    let lowest = if cut { kth_largest(logits, config.top_k) } else { f32::NEG_INFINITY };
    let temperature = if config.is_greedy() { 1.0 } else { config.temperature };
    let mut weights: Vec<(u32, f64)> = Vec::with_capacity(if cut { config.top_k } else { logits.len() });
    for (id, &logit) in (0..).zip(logits) {
        if logit >= lowest && logit > f32::NEG_INFINITY {
            weights.push((id, ((f64::from(logit) - highest) / temperature).exp()));
        }
    }
    keep_top_p(&mut weights, config.top_p);
    // The likeliest token is always left, and its weight is 1.
    weights.retain(|(_, weight)| *weight > 0.0 && *weight >= config.min_p);
    weights
}

/// A token stays while those before it, from the likeliest down (ties: by id), have less than `top_p` together.
///
/// Only the tokens around the bound have to be in order: the weights are summed by size first (eight sizes for each power of two), and
/// what is sorted are those of the size in which the bound falls.
fn keep_top_p(weights: &mut Vec<(u32, f64)>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let size = |weight: f64| (weight.to_bits() >> 49) as usize;
    let mut masses = vec![0.0; size(1.0) + 1];
    for &(_, weight) in weights.iter() {
        masses[size(weight)] += weight;
    }
    let bound = top_p * masses.iter().sum::<f64>();
    let (mut before, mut edge) = (0.0, size(1.0));
    while before + masses[edge] < bound && edge > 0 {
        before += masses[edge];
        edge -= 1;
    }
    let by_rank = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut at_edge: Vec<(u32, f64)> = weights.iter().copied().filter(|(_, w)| size(*w) == edge).collect();
    at_edge.sort_unstable_by(by_rank);
    let inside = at_edge.iter().take_while(|(_, weight)| {
        let stays = before < bound;
        before += weight;
        stays
    });
    let last = inside.last().copied();
    weights.retain(|token| {
        size(token.1) > edge
            || (size(token.1) == edge && last.is_some_and(|last| by_rank(token, &last).is_le()))
    });
}

/// The token at which the running sum of weights passes `u` of the total.
fn draw(weights: &[(u32, f64)], u: f64) -> Option<u32> {
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    for (id, weight) in weights {
        sum += weight;
        if sum > u * total {
            return Some(*id);
        }
    }
    weights.last().map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u64, v: usize) -> Vec<f32> {
        let rng = CounterRng::new(seed, stream_of("logits"));
        // A coarse grid, so that there are ties.
        (0..v).map(|i| (rng.normal_at(i as u64) * 8.0).round() / 4.0).collect()
    }

    /// The filters one by one over the whole vocabulary, minus infinity for what is out, a softmax before each, as
    /// transformers does it.
    fn by_the_book(logits: &[f32], config: &GenerationConfig) -> Vec<(u32, f64)> {
        let softmax = |scores: &[f64]| -> Vec<f64> {
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| e / sum).collect()
        };
        let mut scores: Vec<f64> = logits.iter().map(|&l| f64::from(l) / config.temperature).collect();
        if config.top_k > 0 {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let kth = sorted[config.top_k.min(sorted.len()) - 1];
            scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
        }
        if config.top_p < 1.0 {
            let p = softmax(&scores);
            let rank_before = |i: usize, j: usize| p[j] > p[i] || (p[j] == p[i] && j < i);
            let out: Vec<bool> = (0..p.len())
                .map(|i| {
                    let before: f64 = (0..p.len()).filter(|&j| rank_before(i, j)).map(|j| p[j]).sum();
                    before >= config.top_p
                })
                .collect();
            scores.iter_mut().zip(out).filter(|(_, out)| *out).for_each(|(s, _)| *s = f64::NEG_INFINITY);
        }
        if config.min_p > 0.0 {
            let p = softmax(&scores);
            let top = p.iter().copied().fold(0.0, f64::max);
            scores.iter_mut().zip(p).filter(|(_, p)| *p < config.min_p * top).for_each(|(s, _)| {
                *s = f64::NEG_INFINITY;
            });
        }
        let p = softmax(&scores);
        p.into_iter().enumerate().filter(|(_, p)| *p > 0.0).map(|(i, p)| (i as u32, p)).collect()
    }

    #[test]
    fn the_filters_leave_what_the_book_says() {
        let mut cases = 0;
        for seed in 0..12 {
            let logits = logits(seed, 64);
            for (temperature, top_k, top_p, min_p) in [
                (1.0, 0, 1.0, 0.0),
                (0.7, 5, 1.0, 0.0),
                (1.3, 0, 0.83, 0.0),
                (1.0, 0, 1.0, 0.13),
                (0.9, 20, 0.71, 0.07),
                (2.0, 1, 0.5, 0.5),
                (1.0, 500, 0.02, 0.0),
            ] {
                let config =
                    GenerationConfig { temperature, top_k, top_p, min_p, ..GenerationConfig::default() };
                let (got, want) =
                    (distribution(&logits, &SamplerInput::default(), &config), by_the_book(&logits, &config));
                let ids = |d: &[(u32, f64)]| d.iter().map(|(id, _)| *id).collect::<Vec<_>>();
                assert_eq!(ids(&got), ids(&want), "seed {seed}, {config:?}");
                assert!(got.iter().zip(&want).all(|(g, w)| (g.1 - w.1).abs() < 1e-12));
                cases += 1;
            }
        }
        assert_eq!(cases, 84);
    }

    #[test]
    fn draws_follow_the_filtered_distribution() {
        let config = GenerationConfig {
            temperature: 0.8,
            top_k: 12,
            top_p: 0.95,
            min_p: 0.02,
            seed: 5,
            ..GenerationConfig::default()
        };
        let logits = logits(3, 40);
        let expected = distribution(&logits, &SamplerInput::default(), &config);
        assert!(expected.len() > 5);
        let draws = 20_000usize;
        let mut counts = vec![0usize; 40];
        let sampler = Sampler::new(config.into(), 0);
        let written = vec![0; draws];
        for index in 0..draws {
            let input = SamplerInput { written: &written[..index], ..SamplerInput::default() };
            counts[sampler.sample(&logits, &input).unwrap() as usize] += 1;
        }
        // Pearson's statistic is about chi-square with k - 1 degrees of freedom: mean k - 1, variance 2 (k - 1).
        let statistic: f64 = expected
            .iter()
            .map(|(id, p)| {
                let mean = p * draws as f64;
                (counts[*id as usize] as f64 - mean).powi(2) / mean
            })
            .sum();
        let freedom = expected.len() as f64 - 1.0;
        assert!((statistic - freedom).abs() < 4.0 * (2.0 * freedom).sqrt(), "{statistic} for {freedom}");
        let outside: usize =
            counts.iter().sum::<usize>() - expected.iter().map(|(id, _)| counts[*id as usize]).sum::<usize>();
        assert_eq!(outside, 0);
    }

    #[test]
    fn draws_depend_on_seed_request_and_index_and_on_nothing_else() {
        let config = GenerationConfig { temperature: 1.5, seed: 1, ..GenerationConfig::default() };
        let other = GenerationConfig { seed: 2, ..config.clone() };
        let logits = logits(1, 64);
        let of = |config: &GenerationConfig, request, written: u32| -> Vec<u32> {
            let sampler = Sampler::new(config.clone().into(), request);
            let written = [written; 20];
            let at = |i| SamplerInput { written: &written[..i], ..SamplerInput::default() };
            (0..20).map(|i| sampler.sample(&logits, &at(i)).unwrap()).collect()
        };
        assert_eq!(of(&config, 0, 0), of(&config, 0, 9));
        assert_ne!(of(&config, 0, 0), of(&config, 1, 0));
        assert_ne!(of(&config, 0, 0), of(&other, 0, 0));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_the_penalty_can_change_it() {
        let greedy = GenerationConfig::default();
        let sample = |config: &GenerationConfig, logits: &[f32], prompt: &[u32]| {
            let input = SamplerInput { prompt, ..SamplerInput::default() };
            Sampler::new(config.clone().into(), 0).sample(logits, &input)
        };
        assert_eq!(sample(&greedy, &[0.0, 3.0, 3.0, -1.0], &[1]), Some(1));
        let penalty = GenerationConfig { repetition_penalty: 1.5, ..GenerationConfig::default() };
        assert_eq!(sample(&penalty, &[0.0, 3.0, 2.5, -1.0], &[1, 1]), Some(2));
        // Negative logits are multiplied: -1.2 * 1.5 = -1.8.
        assert_eq!(sample(&penalty, &[-1.2, -1.5], &[0]), Some(1));
        assert_eq!(sample(&penalty, &[-1.2, -1.5], &[]), Some(0));
    }

    #[test]
    fn logits_that_are_no_numbers_give_no_token() {
        let sampled = GenerationConfig { temperature: 1.0, ..GenerationConfig::default() };
        for config in [GenerationConfig::default(), sampled] {
            let sampler = Sampler::new(config.into(), 0);
            let sample = |logits: &[f32]| sampler.sample(logits, &SamplerInput::default());
            assert_eq!(sample(&[0.0, f32::NAN]), None);
            assert_eq!(sample(&[f32::NEG_INFINITY; 3]), None);
            assert_eq!(sample(&[0.0, f32::INFINITY]), None);
            assert_eq!(sample(&[f32::NEG_INFINITY, -5.0]), Some(1));
        }
    }

    #[test]
    fn a_mask_leaves_what_it_allows_and_nothing_when_that_is_ruled_out() {
        let mask = TokenMask::of([2, 3], 4);
        let input = SamplerInput { allowed: Some(&mask), ..SamplerInput::default() };
        let sampled = GenerationConfig { temperature: 1.0, ..GenerationConfig::default() };
        assert_eq!(
            Sampler::new(GenerationConfig::default().into(), 0).sample(&[9.0, 8.0, 1.0, 2.0], &input),
            Some(3)
        );
        let left = distribution(&[9.0, 8.0, 1.0, 1.0], &input, &sampled);
        assert_eq!(left, [(2, 0.5), (3, 0.5)]);
        let ruled_out = [9.0, 8.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        assert_eq!(Sampler::new(sampled.into(), 0).sample(&ruled_out, &input), None);
    }

    #[test]
    fn the_nucleus_of_a_large_vocabulary_is_that_of_the_sorted_one() {
        let rng = CounterRng::new(4, stream_of("logits"));
        let logits: Vec<f32> = (0..20_000).map(|i| rng.normal_at(i) * 3.0).collect();
        for (top_p, temperature) in [(0.95, 1.0), (0.5, 0.7), (0.999, 2.0), (1e-9, 1.0)] {
            let config = GenerationConfig { top_p, temperature, ..GenerationConfig::default() };
            let mut sorted: Vec<(u32, f64)> =
                (0..).zip(&logits).map(|(id, l)| (id, (f64::from(*l) / temperature).exp())).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let total: f64 = sorted.iter().map(|(_, w)| w).sum();
            let mut before = 0.0;
            let mut kept: Vec<u32> = Vec::new();
            for (id, weight) in sorted {
                if before >= top_p * total {
                    break;
                }
                before += weight;
                kept.push(id);
            }
            kept.sort_unstable();
            let got = distribution(&logits, &SamplerInput::default(), &config);
            assert_eq!(got.iter().map(|(id, _)| *id).collect::<Vec<_>>(), kept, "top_p {top_p}");
        }
    }
}
