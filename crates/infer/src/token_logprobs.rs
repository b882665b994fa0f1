//! How likely a token was.

use crate::service::WrittenToken;

/// `ln p` of `id` by logits `[V]`, and of the `top` likeliest.
pub(crate) fn token_logprobs(logits: &[f32], id: u32, top: usize) -> WrittenToken {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    let of = |logit: f32| (f64::from(logit - highest) - sum.ln()) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let top = ids.into_iter().take(top).map(|id| (id, of(logits[id as usize]))).collect();
    WrittenToken { id, logprob: logits.get(id as usize).map(|&logit| of(logit)), top }
}
