//! Token ids that come one by one, back to text.

use crate::{Result, Tokenizer};

/// Decodes a stream of ids; what it gives out, joined, is the text of all ids.
///
/// A token can be a part of a character, and its text can depend on the token before it (a leading space that is
/// only there inside a text). So a window of the last tokens is decoded, once without and once with the new token, and
/// what came new is given out as soon as it does not end in the middle of a character.
///
/// One case cannot be told in advance: a byte-fallback decoder turns a whole run of byte tokens into replacement
/// characters when the run as a whole is not UTF-8, also those bytes that already made a character.
#[derive(Debug)]
pub struct DetokenizerStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    window: Vec<u32>,
    /// How many tokens of the window have been given out.
    read: usize,
}

impl<'a> DetokenizerStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), read: 0 }
    }

    /// Take one id; the text that is now certain, or an empty string.
    ///
    /// # Errors
    /// When the decoder refuses.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        self.advance(false)
    }

    /// The end: the text still held back. A character of which only a part came shows as U+FFFD.
    ///
    /// # Errors
    /// When the decoder refuses.
    pub fn finish(mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, at_end: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.read], self.skip_special)?;
        let after = self.tokenizer.decode(&self.window, self.skip_special)?;
        if !at_end && after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = after.get(before.len()..).unwrap_or_default().to_owned();
        // Tokens before the last ones may go, when what is left still gives the next token its surroundings: a window
        // that decodes to nothing but a space would let a decoder strip it again.
        let tail = self.tokenizer.decode(&self.window[self.read..], self.skip_special)?;
        if !tail.trim().is_empty() {
            self.window.drain(..self.read);
        }
        self.read = self.window.len();
        Ok(new)
    }
}
