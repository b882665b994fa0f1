//! The tokens of a file, what kind each is of, and the special ones.

use super::Kind;
use crate::gguf::metadata::required;
use crate::gguf::{GgufError, Header, Value};
use std::borrow::Cow;
use std::collections::HashMap;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
/// SentencePiece's sign for a space.
pub(super) const SPACE_SIGN: &str = "\u{2581}";

/// What a token is. Source: `llama_token_type` of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what has no piece.
    Unknown,
    /// A sign between texts, such as BOS.
    Control,
    /// Found in a text before all else.
    UserDefined,
    /// A place without a token.
    Unused,
    /// One byte, `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// The number in a file.
    pub(super) fn id(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

/// The tokens of a file.
pub(super) struct Vocabulary<'a> {
    /// By id. SentencePiece's spaces are [`SPACE_SIGN`] in all of them.
    pub(super) tokens: Vec<Cow<'a, str>>,
    pub(super) kinds: Vec<TokenKind>,
    /// By text, the first of those that are the same.
    pub(super) ids: HashMap<String, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(header: &'a Header, kind: Kind) -> Result<Self, GgufError> {
        let metadata = &header.metadata;
        let texts = required(metadata.texts(TOKENS)?, TOKENS, "the tokens")?;
        let kinds = kinds(header, texts.len())?;
        // The converter writes the spaces of tokens that users defined as spaces, and SentencePiece's own as signs.
        let spaced = |kind_of: TokenKind| kind == Kind::SentencePiece && kind_of == TokenKind::UserDefined;
        let tokens: Vec<Cow<'a, str>> = texts
            .iter()
            .zip(&kinds)
            .map(|(text, kind_of)| {
                if spaced(*kind_of) && text.contains(' ') {
                    Cow::Owned(text.replace(' ', SPACE_SIGN))
                } else {
                    Cow::Borrowed(text)
                }
            })
            .collect();
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(&tokens) {
            ids.entry(token.to_string()).or_insert(id);
        }
        let mut vocabulary = Self { tokens, kinds, ids, bos: None, eos: None, unknown: None, padding: None };
        // llama.cpp's defaults for SentencePiece; files from before the keys rely on them.
        let default = |id: u32| (kind == Kind::SentencePiece).then_some(id).filter(|id| vocabulary.has(*id));
        let given = |name: &str| vocabulary.special_id(header, &format!("tokenizer.ggml.{name}_token_id"));
        let (bos, eos) = (given("bos")?.or(default(1)), given("eos")?.or(default(2)));
        let (unknown, padding) = (given("unknown")?.or(default(0)), given("padding")?);
        (vocabulary.bos, vocabulary.eos) = (bos, eos);
        (vocabulary.unknown, vocabulary.padding) = (unknown, padding);
        Ok(vocabulary)
    }

    fn has(&self, id: u32) -> bool {
        (id as usize) < self.tokens.len()
    }

    /// The text of a token; empty for an id that is none.
    pub(super) fn token(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("", |token| token)
    }

    /// The id under a key, which must be that of a token.
    pub(super) fn special_id(&self, header: &Header, key: &str) -> Result<Option<u32>, GgufError> {
        let Some(given) = header.metadata.size(key)? else { return Ok(None) };
        // Some converters write 2^32 - 1 for none.
        if given == u64::from(u32::MAX) {
            return Ok(None);
        }
        let id = u32::try_from(given).ok().filter(|id| self.has(*id));
        id.map(Some).ok_or_else(|| GgufError::Value {
            key: key.to_owned(),
            expected: format!("the id of one of {} tokens", self.tokens.len()),
            given: given.to_string(),
        })
    }

    /// Ids, tokens and their kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0u32..).zip(&self.tokens).zip(&self.kinds).map(|((id, token), kind)| (id, token.as_ref(), *kind))
    }

    /// What stands in the table of the model: all but the places that the converter filled up to the rows of the embedding, and later tokens
    /// of a text that an earlier one has, which nothing can reach.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &str)> {
        self.iter()
            .filter(|(id, token, kind)| {
                let filler = *kind == TokenKind::Unused && *token == format!("[PAD{id}]");
                !filler && self.ids.get(*token) == Some(id)
            })
            .map(|(id, token, _)| (id, token))
    }
}

fn kinds(header: &Header, count: usize) -> Result<Vec<TokenKind>, GgufError> {
    let Some(numbers) = header.metadata.numbers(TYPES)? else {
        return Ok(vec![TokenKind::Normal; count]);
    };
    let wrong = |expected: String, given: String| GgufError::Value { key: TYPES.into(), expected, given };
    if numbers.len() != count {
        return Err(wrong(
            format!("{count} numbers, one for each token"),
            format!("{} of them", numbers.len()),
        ));
    }
    let kind = |value: Value| match value {
        Value::Signed(0 | 1) | Value::Unsigned(0 | 1) => Ok(TokenKind::Normal),
        Value::Signed(2) | Value::Unsigned(2) => Ok(TokenKind::Unknown),
        Value::Signed(3) | Value::Unsigned(3) => Ok(TokenKind::Control),
        Value::Signed(4) | Value::Unsigned(4) => Ok(TokenKind::UserDefined),
        Value::Signed(5) | Value::Unsigned(5) => Ok(TokenKind::Unused),
        Value::Signed(6) | Value::Unsigned(6) => Ok(TokenKind::Byte),
        other => Err(wrong("numbers from 0 to 6".into(), format!("an array with {other:?}"))),
    };
    numbers.iter().map(kind).collect()
}
