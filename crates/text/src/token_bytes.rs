//! What each token adds to a text, as bytes.

use crate::contained::contained;
use crate::{Error, Result, Tokenizer};
use std::collections::HashMap;
use tokenizers::{Decoder, DecoderWrapper};

/// Stands before a token when it is decoded, since a first token may lose its leading space.
const ANCHOR: &str = "a";

impl Tokenizer {
    /// The bytes that each of the ids `0..ids` adds to a text which has begun: those that [`Tokenizer::decode`] with
    /// `skip_special` gives, before they are read as UTF-8. Empty for special tokens and for ids without a token.
    ///
    /// Byte-level tokens and byte-fallback tokens (`<0xE2>`) can be parts of a character. The first token of a text can decode to
    /// a space less.
    ///
    /// # Errors
    /// When the decoder is of a kind that looks at the tokens beside a token (WordPiece, CTC, BPE with word ends), or there
    /// is none.
    pub fn token_bytes(&self, ids: usize) -> Result<Vec<Vec<u8>>> {
        let decoder = self.inner().get_decoder().ok_or(Error::TokenBytes { decoder: "none" })?;
        let kind = Kind::of(decoder)?;
        let byte_of = byte_level_alphabet();
        let mut out = vec![Vec::new(); ids];
        for (token, id) in self.inner().get_vocab(true) {
            let Some(bytes) = out.get_mut(id as usize).filter(|_| !self.is_special(id)) else { continue };
            *bytes = match kind {
                Kind::ByteLevel => {
                    let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
                    bytes.unwrap_or_else(|| token.into_bytes())
                }
                Kind::Pieces { byte_fallback } => match byte_token(&token).filter(|_| byte_fallback) {
                    Some(byte) => vec![byte],
                    None => behind_anchor(decoder, token)?,
                },
            };
        }
        Ok(out)
    }
}

/// How tokens become text.
#[derive(Clone, Copy)]
enum Kind {
    /// Each character of a token is a byte.
    ByteLevel,
    /// Sentencepiece: pieces of text, and with `byte_fallback` tokens that are bytes.
    Pieces { byte_fallback: bool },
}

impl Kind {
    fn of(decoder: &DecoderWrapper) -> Result<Self> {
        let steps = match decoder {
            DecoderWrapper::Sequence(steps) => steps.get_decoders(),
            one => std::slice::from_ref(one),
        };
        let mut byte_fallback = false;
        for step in steps {
            match step {
                DecoderWrapper::ByteLevel(_) => return Ok(Self::ByteLevel),
                DecoderWrapper::ByteFallback(_) => byte_fallback = true,
                DecoderWrapper::BPE(_) => return Err(Error::TokenBytes { decoder: "BPEDecoder" }),
                DecoderWrapper::WordPiece(_) => return Err(Error::TokenBytes { decoder: "WordPiece" }),
                DecoderWrapper::CTC(_) => return Err(Error::TokenBytes { decoder: "CTC" }),
                DecoderWrapper::Sequence(_) => {
                    return Err(Error::TokenBytes { decoder: "a Sequence in a Sequence" });
                }
                DecoderWrapper::Metaspace(_)
                | DecoderWrapper::Replace(_)
                | DecoderWrapper::Fuse(_)
                | DecoderWrapper::Strip(_) => {}
            }
        }
        Ok(Self::Pieces { byte_fallback })
    }
}

/// The byte of `<0xNN>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

fn behind_anchor(decoder: &DecoderWrapper, token: String) -> Result<Vec<u8>> {
    let failed = |message: String| Error::Decode { tokens: 2, message };
    let text = contained(|| decoder.decode(vec![ANCHOR.to_owned(), token]))
        .map_err(failed)?
        .map_err(|error| failed(error.to_string()))?;
    Ok(text.strip_prefix(ANCHOR).unwrap_or_default().as_bytes().to_vec())
}

/// GPT-2's alphabet: a byte that is printable in Latin-1 stands for itself, the others follow from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut other = 0x100;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { u32::from(byte) } else { other };
            other += u32::from(!printable);
            char::from_u32(code).map(|c| (c, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{byte_level_alphabet, byte_token};

    #[test]
    fn the_alphabet_has_a_character_for_every_byte() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        let of = |c: char| alphabet[&c];
        assert_eq!((of('A'), of('Ġ'), of('Ċ'), of('ÿ'), of('Ń')), (b'A', b' ', b'\n', 0xFF, 0xAD));
    }

    #[test]
    fn byte_tokens_have_two_hex_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        for other in ["<0x0A", "<0x0>", "<0xGG>", "<0x123>", "0x0A"] {
            assert_eq!(byte_token(other), None, "{other}");
        }
    }
}
