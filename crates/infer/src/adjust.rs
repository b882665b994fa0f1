//! What changes logits before they are sampled from: bias, penalties, and tokens that are ruled out.
//!
//! In this order, on the raw logits: `logit_bias`, presence and frequency penalty (as OpenAI's API defines them), repetition penalty
//! (Keskar et al. 2019), the allowed tokens, `min_new_tokens`.

use crate::{GenerationConfig, SamplerInput};
use std::borrow::Cow;

/// The logits `[V]` to sample from; the given ones where nothing changes.
pub(crate) fn adjusted<'l>(
    logits: &'l [f32],
    input: &SamplerInput<'_>,
    config: &GenerationConfig,
) -> Cow<'l, [f32]> {
    let early = input.written.len() < config.min_new_tokens && !input.stop_ids.is_empty();
    if config.logit_bias.is_empty() && !penalises(config) && input.allowed.is_none() && !early {
        return Cow::Borrowed(logits);
    }
    let mut row = logits.to_vec();
    for (&id, bias) in &config.logit_bias {
        change(&mut row, id, |logit| logit + bias);
    }
    penalise_written(&mut row, input.written, config);
    penalise_repetition(&mut row, input, config.repetition_penalty);
    if let Some(allowed) = input.allowed {
        allowed.apply(&mut row);
    }
    // A grammar that has nothing left but its end comes before the wish for a longer text.
    if early && input.allowed.is_none_or(|allowed| allowed.ids().any(|id| !input.stop_ids.contains(&id))) {
        for &id in input.stop_ids {
            change(&mut row, id, |_| f64::NEG_INFINITY);
        }
    }
    Cow::Owned(row)
}

fn penalises(config: &GenerationConfig) -> bool {
    config.repetition_penalty != 1.0 || config.presence_penalty != 0.0 || config.frequency_penalty != 0.0
}

/// Ids outside the vocabulary are passed over.
fn change(row: &mut [f32], id: u32, new: impl Fn(f64) -> f64) {
    if let Some(logit) = row.get_mut(id as usize) {
        *logit = new(f64::from(*logit)) as f32;
    }
}

/// `logit -= presence + frequency * count` for each token that was written.
fn penalise_written(row: &mut [f32], written: &[u32], config: &GenerationConfig) {
    let (presence, frequency) = (config.presence_penalty, config.frequency_penalty);
    if presence == 0.0 && frequency == 0.0 {
        return;
    }
    let mut written = written.to_vec();
    written.sort_unstable();
    for same in written.chunk_by(|a, b| a == b) {
        change(row, same[0], |logit| logit - (presence + frequency * same.len() as f64));
    }
}

/// The logit of a token that occurred is divided by the penalty when positive, else multiplied.
fn penalise_repetition(row: &mut [f32], input: &SamplerInput<'_>, penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut done = vec![0u64; row.len().div_ceil(64)];
    for &id in input.prompt.iter().chain(input.written) {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        let Some(word) = done.get_mut(word).filter(|word| **word & bit == 0) else { continue };
        *word |= bit;
        change(row, id, |logit| if logit < 0.0 { logit * penalty } else { logit / penalty });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenMask;
    use std::collections::BTreeMap;

    fn rows(logits: &[f32], input: &SamplerInput<'_>, config: &GenerationConfig) -> Vec<f32> {
        adjusted(logits, input, config).into_owned()
    }

    #[test]
    fn nothing_is_copied_where_nothing_changes() {
        let input = SamplerInput { prompt: &[1], written: &[0], stop_ids: &[1], allowed: None };
        assert!(matches!(adjusted(&[0.0, 1.0], &input, &GenerationConfig::default()), Cow::Borrowed(_)));
    }

    #[test]
    fn presence_and_frequency_count_what_was_written_and_not_the_prompt() {
        let config = GenerationConfig {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..GenerationConfig::default()
        };
        let input =
            SamplerInput { prompt: &[0, 0, 9], written: &[2, 1, 2, 2, 77], ..SamplerInput::default() };
        assert_eq!(rows(&[1.0, 1.0, 1.0, 1.0], &input, &config), [1.0, 0.25, -0.25, 1.0]);
        let other_way = GenerationConfig { presence_penalty: -1.0, ..GenerationConfig::default() };
        assert_eq!(rows(&[1.0, 1.0, 1.0, 1.0], &input, &other_way), [1.0, 2.0, 2.0, 1.0]);
    }

    #[test]
    fn repetition_counts_prompt_and_text_and_each_token_once() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..GenerationConfig::default() };
        let input = SamplerInput { prompt: &[0, 0, 70], written: &[1, 1], ..SamplerInput::default() };
        assert_eq!(rows(&[3.0, -3.0, 3.0], &input, &config), [1.5, -6.0, 3.0]);
    }

    #[test]
    fn bias_comes_first_and_repetition_last() {
        let config = GenerationConfig {
            logit_bias: BTreeMap::from([(0, 3.0), (1, -3.0), (500, 1.0)]),
            presence_penalty: 1.0,
            repetition_penalty: 2.0,
            ..GenerationConfig::default()
        };
        let input = SamplerInput { written: &[0, 1], ..SamplerInput::default() };
        // (1 + 3 - 1) / 2 and (1 - 3 - 1) * 2.
        assert_eq!(rows(&[1.0, 1.0, 1.0], &input, &config), [1.5, -6.0, 1.0]);
    }

    #[test]
    fn stop_tokens_are_out_until_the_fewest_tokens_are_written() {
        let config = GenerationConfig { min_new_tokens: 2, ..GenerationConfig::default() };
        let at = |written: &[u32], allowed: Option<&TokenMask>| {
            let input = SamplerInput { written, stop_ids: &[1, 40], allowed, ..SamplerInput::default() };
            rows(&[0.0, 5.0, 1.0], &input, &config)
        };
        let out = f32::NEG_INFINITY;
        assert_eq!(at(&[], None), [0.0, out, 1.0]);
        assert_eq!(at(&[0], None), [0.0, out, 1.0]);
        assert_eq!(at(&[0, 0], None), [0.0, 5.0, 1.0]);
        // A grammar allows other tokens, or nothing but the end.
        assert_eq!(at(&[], Some(&TokenMask::of([1, 2], 3))), [out, out, 1.0]);
        assert_eq!(at(&[], Some(&TokenMask::of([1], 3))), [out, 5.0, out]);
    }

    #[test]
    fn only_allowed_tokens_are_left_and_none_beyond_the_mask() {
        let logits: Vec<f32> = (0..100).map(|i| i as f32).collect();
        for ids in [vec![0, 31, 32, 63, 64], (0..70).collect(), (32..64).collect()] {
            let mask = TokenMask::of(ids.iter().copied(), 70);
            let input = SamplerInput { allowed: Some(&mask), ..SamplerInput::default() };
            let row = rows(&logits, &input, &GenerationConfig::default());
            let left: Vec<u32> = (0..100).filter(|i| row[*i as usize] > f32::NEG_INFINITY).collect();
            assert_eq!(left, ids);
            assert!(left.iter().all(|&id| row[id as usize] == id as f32));
        }
    }
}
