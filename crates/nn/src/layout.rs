//! Which of the T tokens of a batch belong together, and where each stands in its sequence.

use std::ops::Range;

/// The segments of a packed batch and the position of every token.
///
/// Attention never crosses a segment (invariant 6: packed = separate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceLayout {
    segments: Vec<Range<usize>>,
    position_ids: Vec<u32>,
    text_lengths: Vec<usize>,
}

impl SequenceLayout {
    /// One sequence of `tokens` tokens, positions from 0.
    pub fn single(tokens: usize) -> Self {
        Self::from_lengths(&[tokens])
    }

    /// Sequences of the given lengths, one behind the other, each with positions from 0.
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let continued: Vec<(usize, usize)> = lengths.iter().map(|&length| (length, 0)).collect();
        Self::continued(&continued)
    }

    /// Sequences that go on from a cache: `(new tokens, tokens already cached)` of each.
    pub fn continued(lengths_and_pasts: &[(usize, usize)]) -> Self {
        let mut segments = Vec::with_capacity(lengths_and_pasts.len());
        let mut position_ids = Vec::new();
        for &(length, past) in lengths_and_pasts {
            let start = position_ids.len();
            position_ids.extend((past..past + length).map(|p| p as u32));
            segments.push(start..start + length);
        }
        let text_lengths = lengths_and_pasts.iter().map(|(length, past)| length + past).collect();
        Self { segments, position_ids, text_lengths }
    }

    /// The same, of texts that are read in pieces and are so many tokens long in all, the tokens still to come included.
    #[must_use]
    pub fn of_texts(self, text_lengths: Vec<usize>) -> Self {
        debug_assert_eq!(self.segments.len(), text_lengths.len());
        Self { text_lengths, ..self }
    }

    /// The token range of each sequence.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// The position of each token in its sequence, length T.
    pub fn position_ids(&self) -> &[u32] {
        &self.position_ids
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.position_ids.len()
    }

    /// The length of each sequence's text as far as it is known, in tokens: cached, in this batch, and what [`Self::of_texts`] says of the
    /// rest.
    pub fn text_lengths(&self) -> &[usize] {
        &self.text_lengths
    }

    /// The longest sequence so far, cached part included: what length-dependent rotary scalings look at.
    pub fn longest(&self) -> usize {
        self.position_ids.iter().max().map_or(0, |&p| p as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_start_again_in_each_segment_and_go_on_from_a_cache() {
        let layout = SequenceLayout::continued(&[(2, 0), (1, 7)]);
        assert_eq!(layout.segments(), &[0..2, 2..3]);
        assert_eq!(layout.position_ids(), &[0, 1, 7]);
        assert_eq!((layout.tokens(), layout.longest()), (3, 8));
        assert_eq!(layout.text_lengths(), [2, 8]);
        assert_eq!(layout.of_texts(vec![2, 20]).text_lengths(), [2, 20]);
    }
}
