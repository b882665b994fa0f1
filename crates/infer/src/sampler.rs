//! From a row of logits to a token.
//!
//! The filters and their order are those of transformers (`generation/logits_process.py`): repetition penalty,
//! temperature, top_k, top_p (Holtzman et al. 2020), min_p (Nguyen et al. 2024). Probabilities and their sums are f64.

use crate::GenerationConfig;
use std::sync::Arc;
use taper_kernels::rng::{CounterRng, mix, stream_of};

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

    /// Token number `index` of the request from logits `[V]`; `seen` are all tokens before it, the prompt included.
    ///
    /// `None` when no logit is a number that a token could be chosen by (all NaN or minus infinity, or a plus infinity).
    pub fn sample(&self, logits: &[f32], seen: &[u32], index: usize) -> Option<u32> {
        if self.config.is_greedy() && self.config.repetition_penalty == 1.0 {
            return likeliest(logits.iter().enumerate().map(|(id, &logit)| (id as u32, f64::from(logit))));
        }
        let penalised = penalised(logits, seen, self.config.repetition_penalty);
        if self.config.is_greedy() {
            return likeliest(penalised.into_iter());
        }
        draw(&filtered(penalised, &self.config), self.rng.uniform_f64_at(index as u64))
    }
}

/// The tokens that the filters leave of logits `[V]`, by id, each with its probability; they sum to 1.
///
/// Empty when no logit is finite, or one is plus infinity or NaN.
pub fn distribution(logits: &[f32], seen: &[u32], config: &GenerationConfig) -> Vec<(u32, f64)> {
    let kept = filtered(penalised(logits, seen, config.repetition_penalty), config);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    kept.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

/// The first of the largest; `None` when there is none that is finite, or one is plus infinity or NaN.
fn likeliest(logits: impl Iterator<Item = (u32, f64)>) -> Option<u32> {
    let mut best: Option<(u32, f64)> = None;
    for (id, logit) in logits {
        if logit.is_nan() || logit == f64::INFINITY {
            return None;
        }
        if logit > best.map_or(f64::NEG_INFINITY, |(_, highest)| highest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id)
}

/// Keskar et al. 2019: the logit of a token that occurred is divided by the penalty when positive, else multiplied.
fn penalised(logits: &[f32], seen: &[u32], penalty: f64) -> Vec<(u32, f64)> {
    let mut out: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(id, &logit)| (id as u32, f64::from(logit))).collect();
    if penalty != 1.0 {
        let mut ids: Vec<u32> = seen.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some((_, logit)) = out.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }
    out
}

/// What is left, by id, with weights `exp((logit - highest) / temperature)`.
fn filtered(mut logits: Vec<(u32, f64)>, config: &GenerationConfig) -> Vec<(u32, f64)> {
    let highest = match likeliest(logits.iter().copied()) {
        Some(id) => logits[id as usize].1,
        None => return Vec::new(),
    };
    keep_top_k(&mut logits, config.top_k);
    let temperature = if config.is_greedy() { 1.0 } else { config.temperature };
    for (_, value) in &mut logits {
        *value = ((*value - highest) / temperature).exp();
    }
    keep_top_p(&mut logits, config.top_p);
    // The likeliest token is always left, and its weight is 1.
    logits.retain(|(_, weight)| *weight > 0.0 && *weight >= config.min_p);
    logits
}

/// Ties with the last one stay, as in transformers.
fn keep_top_k(logits: &mut Vec<(u32, f64)>, top_k: usize) {
    if top_k == 0 || top_k >= logits.len() {
        return;
    }
    let mut values: Vec<f64> = logits.iter().map(|(_, logit)| *logit).collect();
    let (_, last, _) = values.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
    let last = *last;
    logits.retain(|(_, logit)| *logit >= last);
}

/// A token stays while those before it, from the likeliest down (ties: by id), have less than `top_p` together.
fn keep_top_p(weights: &mut Vec<(u32, f64)>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    weights.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut before = 0.0;
    let kept = weights
        .iter()
        .take_while(|(_, weight)| {
            let stays = before < top_p * total;
            before += weight;
            stays
        })
        .count();
    weights.truncate(kept.max(1));
    weights.sort_unstable_by_key(|(id, _)| *id);
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
                let (got, want) = (distribution(&logits, &[], &config), by_the_book(&logits, &config));
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
        let expected = distribution(&logits, &[], &config);
        assert!(expected.len() > 5);
        let draws = 20_000usize;
        let mut counts = vec![0usize; 40];
        let sampler = Sampler::new(Arc::new(config.clone()), 0);
        for index in 0..draws {
            counts[sampler.sample(&logits, &[], index).unwrap() as usize] += 1;
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
        let of = |config: &GenerationConfig, request| -> Vec<u32> {
            let sampler = Sampler::new(Arc::new(config.clone()), request);
            (0..20).map(|i| sampler.sample(&logits, &[], i).unwrap()).collect()
        };
        assert_eq!(of(&config, 0), of(&config, 0));
        assert_ne!(of(&config, 0), of(&config, 1));
        assert_ne!(of(&config, 0), of(&other, 0));
        let sampler = Sampler::new(Arc::new(config.clone()), 0);
        assert_eq!(sampler.sample(&logits, &[], 13).unwrap(), of(&config, 0)[13]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_the_penalty_can_change_it() {
        let greedy = GenerationConfig::default();
        let sample = |config: &GenerationConfig, logits: &[f32], seen: &[u32]| {
            Sampler::new(Arc::new(config.clone()), 0).sample(logits, seen, 0)
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
            let sampler = Sampler::new(Arc::new(config.clone()), 0);
            assert_eq!(sampler.sample(&[0.0, f32::NAN], &[], 0), None);
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &[], 0), None);
            assert_eq!(sampler.sample(&[0.0, f32::INFINITY], &[], 0), None);
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -5.0], &[], 0), Some(1));
        }
    }
}
