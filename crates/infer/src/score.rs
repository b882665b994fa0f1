//! How surprised a model is by given tokens.

use crate::pass::{ROWS_PER_HEAD, check_length, head, hidden, must_run_alone};
use crate::{Error, Result, error::doing};
use taper_models::CausalLm;
use taper_nn::{ForwardContext, SequenceLayout, ops};

/// A sequence and which of its tokens are to be scored.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// The ids.
    pub input_ids: &'a [u32],
    /// Which ids are scored. The first token follows nothing, so it is never scored.
    pub mask: &'a [bool],
}

/// `-ln p(token | tokens before it)` in nats of each scored token, a list for each sequence.
///
/// Sequences are packed into passes of about `tokens_per_pass` tokens (a longer sequence is a pass of its own); they do not
/// see each other.
///
/// # Errors
/// When a mask does not fit its ids, a sequence is longer than the model's longest, or the arithmetic fails.
pub fn token_losses(
    model: &dyn CausalLm,
    sequences: &[Scored<'_>],
    tokens_per_pass: usize,
) -> Result<Vec<Vec<f32>>> {
    for (sequence, scored) in sequences.iter().enumerate() {
        let (tokens, mask) = (scored.input_ids.len(), scored.mask.len());
        if tokens != mask {
            return Err(Error::MaskLength { sequence, tokens, mask });
        }
        check_length(model, tokens, |limit| Error::SequenceTooLong { sequence, tokens, limit })?;
    }
    let tokens_per_pass = if must_run_alone(model) { 1 } else { tokens_per_pass };
    let mut out = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|s| {
            tokens += s.input_ids.len();
            tokens <= tokens_per_pass
        });
        let (now, later) = rest.split_at(fit.count().max(1));
        out.extend(score_pass(model, now)?);
        rest = later;
    }
    Ok(out)
}

fn score_pass(model: &dyn CausalLm, sequences: &[Scored<'_>]) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.input_ids.len()).collect();
    let layout = SequenceLayout::from_lengths(&lengths);
    let ids: Vec<u32> = sequences.iter().flat_map(|s| s.input_ids).copied().collect();
    // The row of a token's predecessor predicts it.
    let (mut rows, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (segment, scored) in layout.segments().iter().zip(sequences) {
        let before = rows.len();
        for at in (1..scored.input_ids.len()).filter(|&at| scored.mask[at]) {
            rows.push((segment.start + at - 1) as u32);
            targets.push(scored.input_ids[at]);
        }
        counts.push(rows.len() - before);
    }
    if rows.is_empty() {
        return Ok(vec![Vec::new(); sequences.len()]);
    }
    let hidden = hidden(model, &ids, &layout, None, &[], &rows)?;
    let ctx = ForwardContext::new(&layout);
    let mut losses = Vec::with_capacity(targets.len());
    for (chunk, targets) in targets.chunks(ROWS_PER_HEAD).enumerate() {
        let x = hidden.narrow(0, chunk * ROWS_PER_HEAD, targets.len()).map_err(doing("select rows"))?;
        let logits = head(model, &x, &ctx)?;
        let computed = ops::cross_entropy(&logits, targets).and_then(|losses| losses.losses());
        losses.extend(computed.map_err(doing("compute losses"))?);
    }
    let mut losses = losses.into_iter();
    Ok(counts.into_iter().map(|n| losses.by_ref().take(n).collect()).collect())
}
