//! A batch: one flat run of tokens, cut in segments, with nothing padded.

use crate::example::RowPlace;
use crate::tokenize::TokenizedExample;
use std::ops::Range;

/// A target that is not learned.
pub const IGNORE: u32 = u32::MAX;

/// T tokens of one or several examples, one after the other.
///
/// Each example is its own segment: attention stays inside it, its position ids start at 0, and its last token has no
/// target. `targets[t]` is the token after `t` in the same segment, or [`IGNORE`] where that token is not learned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Token ids, T of them.
    pub input_ids: Vec<u32>,
    /// Position in its segment of each token, from 0.
    pub position_ids: Vec<u32>,
    /// What each token has to predict.
    pub targets: Vec<u32>,
    /// The segments, in order, without gaps, covering 0..T.
    pub segments: Vec<Range<usize>>,
    /// How many targets are learned: the loss of an optimiser step is the sum over these, divided by their number over
    /// the whole step.
    pub target_tokens: usize,
    /// The row each segment came from.
    pub sources: Vec<RowPlace>,
}

impl Batch {
    /// The examples as segments, in this order.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a TokenizedExample>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            batch.push(example);
        }
        batch
    }

    /// T, the number of tokens.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    fn push(&mut self, example: &TokenizedExample) {
        let start = self.input_ids.len();
        self.input_ids.extend(&example.input_ids);
        self.position_ids.extend(0..example.input_ids.len() as u32);
        let following = example.input_ids.iter().zip(&example.loss_mask).skip(1);
        self.targets.extend(following.map(|(&id, &learned)| if learned { id } else { IGNORE }));
        if !example.input_ids.is_empty() {
            self.targets.push(IGNORE);
        }
        self.segments.push(start..self.input_ids.len());
        self.target_tokens += example.target_tokens();
        self.sources.push(example.source.clone());
    }
}
