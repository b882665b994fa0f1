//! One text on its way through a grammar.

use super::compiler::words_of;
use super::{GrammarError, TokenMask};
use llguidance::Matcher;

/// Follows one text by a grammar, token by token.
pub struct GrammarMatcher {
    matcher: Matcher,
    vocab: usize,
    stop_ids: Vec<u32>,
    /// The tokens that may come next, until one has.
    mask: Option<TokenMask>,
    /// A stop token has come.
    ended: bool,
}

impl GrammarMatcher {
    pub(super) fn new(matcher: Matcher, vocab: usize, stop_ids: &[u32]) -> Self {
        Self { matcher, vocab, stop_ids: stop_ids.to_vec(), mask: None, ended: false }
    }

    /// The tokens that may come next. A stop token is among them where the text may end, and nowhere else, even if the grammar could use
    /// it as text. Never empty but for a complete text without stop tokens.
    ///
    /// # Errors
    /// When the grammar became too large on the way, or the tokenizer has no tokens to go on with.
    pub fn allowed(&mut self) -> Result<&TokenMask, GrammarError> {
        if self.mask.is_none() {
            self.mask = Some(self.compute()?);
        }
        self.mask.as_ref().ok_or_else(|| GrammarError::Matching("no mask".into()))
    }

    fn compute(&mut self) -> Result<TokenMask, GrammarError> {
        if self.is_complete() {
            return Ok(TokenMask::of(
                self.stop_ids.iter().copied().filter(|id| (*id as usize) < self.vocab),
                self.vocab,
            ));
        }
        let may_stop = self.may_stop()?;
        let vob = self.matcher.compute_mask().map_err(|error| failed(&error))?;
        let mut mask = TokenMask::from_vob(&vob, self.vocab);
        for &id in self.stop_ids.iter().filter(|id| (**id as usize) < self.vocab) {
            mask.set(id, may_stop);
        }
        if mask.ids().next().is_none() {
            return Err(GrammarError::Matching("no token of the tokenizer goes on".into()));
        }
        Ok(mask)
    }

    /// Take the chosen token in.
    ///
    /// # Errors
    /// When it is not allowed, or the grammar became too large on the way; there is no going on then.
    pub fn accept(&mut self, id: u32) -> Result<(), GrammarError> {
        self.mask = None;
        if self.stop_ids.contains(&id) {
            if !self.ended && !self.may_stop()? {
                return Err(GrammarError::Matching(format!("the stop token {id} came before its end")));
            }
            self.ended = true;
            return Ok(());
        }
        if self.is_complete() {
            return Err(GrammarError::Matching(format!("the token {id} came after its end")));
        }
        self.matcher.consume_token(id).map_err(|error| failed(&error))
    }

    /// Whether the text is whole and nothing but a stop token may follow: it can be ended without one.
    pub fn is_complete(&self) -> bool {
        self.ended || (self.matcher.is_stopped() && !self.matcher.is_error())
    }

    /// Whether the text may end here; it may also go on unless it [is complete](Self::is_complete).
    ///
    /// # Errors
    /// When the grammar became too large on the way.
    pub fn may_stop(&mut self) -> Result<bool, GrammarError> {
        if self.is_complete() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(|error| failed(&error))
    }
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

fn failed(error: &dyn std::fmt::Display) -> GrammarError {
    GrammarError::Matching(words_of(error))
}
