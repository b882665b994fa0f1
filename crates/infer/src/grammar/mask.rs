//! A set of tokens.

use toktrie::SimpleVob;

/// The tokens that may come next. Ids beyond its vocabulary are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    /// A bit for each id, from the lowest of the first word.
    words: Vec<u32>,
}

impl TokenMask {
    /// The set of these ids, all below `vocab`.
    pub fn of(ids: impl IntoIterator<Item = u32>, vocab: usize) -> Self {
        let mut mask = Self { words: vec![0; vocab.div_ceil(32)] };
        ids.into_iter().for_each(|id| mask.set(id, true));
        mask
    }

    /// Bits at and behind `vocab` are scratch space there.
    pub(super) fn from_vob(vob: &SimpleVob, vocab: usize) -> Self {
        let mut words = vob.as_slice()[..vocab.div_ceil(32)].to_vec();
        if let Some(last) = words.last_mut().filter(|_| !vocab.is_multiple_of(32)) {
            *last &= (1 << (vocab % 32)) - 1;
        }
        Self { words }
    }

    /// Put an id in, or take it out; those beyond the vocabulary stay out.
    pub(super) fn set(&mut self, id: u32, allowed: bool) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            let bit = 1 << (id % 32);
            *word = if allowed { *word | bit } else { *word & !bit };
        }
    }

    /// Whether the id is in it.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Its ids, rising.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.words).flat_map(|(index, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(32 * index + bit)
            })
        })
    }

    /// Minus infinity for the logits of all other ids.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    let out = |(bit, logit): (usize, &mut f32)| {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    };
                    logits.iter_mut().enumerate().for_each(out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_lists_what_was_put_in() {
        let mut mask = TokenMask::of([0, 31, 32, 69], 70);
        mask.set(31, false);
        mask.set(96, true);
        assert_eq!(mask.ids().collect::<Vec<_>>(), [0, 32, 69]);
        assert_eq!(
            [0, 31, 32, 69, 70, 96, u32::MAX].map(|id| mask.allows(id)),
            [true, false, true, true, false, false, false]
        );
    }

    #[test]
    fn bits_behind_the_vocabulary_are_dropped() {
        let mut vob = SimpleVob::alloc_with_capacity(70, 71);
        vob.allow_token(69);
        vob.allow_token(70);
        assert_eq!(TokenMask::from_vob(&vob, 70).ids().collect::<Vec<_>>(), [69]);
    }
}
