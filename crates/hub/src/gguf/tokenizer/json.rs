//! The text of a tokenizer.json, written as it goes: the tables are large.

use super::vocabulary::{TokenKind, Vocabulary};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// What differs between tokenizers, in the words of the crate `tokenizers`.
pub(super) struct TokenizerJson<'a> {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) unknown: Option<&'a str>,
    /// One sign for a run of what has no token.
    pub(super) fuse_unknown: bool,
    pub(super) byte_fallback: bool,
    /// A word that is a token is that token, whatever its merges would make.
    pub(super) ignore_merges: bool,
    pub(super) merges: Vec<(&'a str, &'a str)>,
    /// Whether the space behind a token that is found before all else belongs to it.
    pub(super) strips_right: fn(&str, TokenKind) -> bool,
}

impl TokenizerJson<'_> {
    pub(super) fn text(&self, vocabulary: &Vocabulary<'_>) -> String {
        let file = File {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens: Added { vocabulary, strips_right: self.strips_right },
            normalizer: &self.normalizer,
            pre_tokenizer: &self.pre_tokenizer,
            post_processor: &self.post_processor,
            decoder: &self.decoder,
            model: Model {
                kind: "BPE",
                dropout: None,
                unk_token: self.unknown,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: self.fuse_unknown,
                byte_fallback: self.byte_fallback,
                ignore_merges: self.ignore_merges,
                vocab: Table(vocabulary),
                merges: &self.merges,
            },
        };
        // Texts and numbers alone: nothing in it can fail to be written.
        serde_json::to_string(&file).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Added<'a>,
    normalizer: &'a Value,
    pre_tokenizer: &'a Value,
    post_processor: &'a Value,
    decoder: &'a Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Table<'a>,
    merges: &'a [(&'a str, &'a str)],
}

/// Token to id.
struct Table<'a>(&'a Vocabulary<'a>);

impl Serialize for Table<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.entries().map(|(id, token)| (token, id)))
    }
}

/// The tokens that are found in a text before all else.
struct Added<'a> {
    vocabulary: &'a Vocabulary<'a>,
    strips_right: fn(&str, TokenKind) -> bool,
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Serialize for Added<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let found = |kind| matches!(kind, TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined);
        let added = self.vocabulary.iter().filter(|(_, content, kind)| found(*kind) && !content.is_empty());
        serializer.collect_seq(added.map(|(id, content, kind)| AddedToken {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: (self.strips_right)(content, kind),
            normalized: false,
            special: kind != TokenKind::UserDefined,
        }))
    }
}
