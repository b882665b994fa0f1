//! `tokenizer.ggml.*` from a `tokenizer.json`: the inverse of what is read.
//!
//! A file names the way in which texts are split by a word ([`super::split`]), and llama.cpp has that way in its code. So a tokenizer whose
//! steps are none of those that have a name cannot be written, and is refused with what it does. Source of the values: the `set_vocab`
//! functions of llama.cpp's converter.

use super::TokenKind;
use super::sentencepiece::Spaces;
use super::split::Split;
use super::vocabulary::SPACE_SIGN;
use crate::gguf::shown;
use crate::gguf::write::Keys;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::collections::HashMap;
use taper_diagnostics::Diagnose;

/// The score of a piece that no merge makes; below that of all merges.
const NO_MERGE: f32 = -1e6;
/// The most rows that an embedding has.
const MAX_ROWS: usize = 1 << 24;

/// What a file's tokenizer is made from.
#[derive(Debug, Clone, Default)]
pub struct TokenizerParts<'a> {
    /// The text of `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// The tokens that are found in a text before all else: id, text, and whether they are special, those that only `tokenizer_config.json`
    /// names included.
    pub added: Vec<(u32, &'a str, bool)>,
    /// Rows of the embedding's table: every one gets a token.
    pub rows: usize,
    /// The id that begins a text.
    pub bos: Option<u32>,
    /// The ids at which a generation stops. The first is EOS, the others the ends of a turn and of a message; there is room for three.
    pub ends: &'a [u32],
    /// The id for what has no token.
    pub unknown: Option<u32>,
    /// The id for padding.
    pub padding: Option<u32>,
    /// Whether BOS is put before a text by itself.
    pub adds_bos: bool,
    /// Whether EOS is put behind one.
    pub adds_eos: bool,
}

/// A tokenizer in a file's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTokenizer {
    /// The keys `tokenizer.ggml.*`.
    pub keys: Keys,
    /// Added tokens that take the space behind them along. Files do not say so; llama.cpp does it for models with `phi-3` in
    /// `general.name`.
    pub strips_right: Vec<String>,
    /// For people: what the file says otherwise than `tokenizer.json`.
    pub notes: Vec<String>,
}

/// Why a tokenizer cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenizerWriteError {
    /// Not a tokenizer.json.
    #[error("`tokenizer.json` is not one: {0}")]
    Json(String),
    /// Another model than BPE.
    #[error("its tokenizer is a `{given}` model, and GGUF files are written of `BPE` ones")]
    Model {
        /// What it is.
        given: String,
    },
    /// Steps that llama.cpp has no name for.
    #[error("its tokenizer prepares texts in a way that GGUF has no name for: {found}")]
    Steps {
        /// What it does.
        found: String,
    },
    /// A special token without a row.
    #[error("its {what} token has the id {id}, and the embedding has {rows} rows")]
    Beyond {
        /// Which one.
        what: &'static str,
        /// Its id.
        id: u32,
        /// Rows.
        rows: usize,
    },
    /// More rows than any model has.
    #[error("an embedding of {0} rows is larger than any tokenizer")]
    Rows(usize),
}

impl Diagnose for TokenizerWriteError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Json(_) => None,
            _ => Some("export the \"merged\" folder instead: it carries the tokenizer as it is".into()),
        }
    }
}

#[derive(Deserialize)]
struct KindOnly {
    model: ModelKind,
}

#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type")]
    kind: Option<String>,
    merges: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl Merge {
    fn sides(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Joined(both) => both.split_once(' '),
        }
    }
}

/// How a file's tokenizer works, by `tokenizer.ggml.model` and `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ByteLevel(&'static str),
    SentencePiece { space_prefix: bool },
}

/// The keys of a tokenizer.
///
/// # Errors
/// When llama.cpp has no such tokenizer, or a special token has no row in the embedding.
pub fn tokenizer_keys(parts: &TokenizerParts<'_>) -> Result<WrittenTokenizer, TokenizerWriteError> {
    let file = parse(parts.tokenizer_json)?;
    if parts.rows > MAX_ROWS {
        return Err(TokenizerWriteError::Rows(parts.rows));
    }
    let way = recognise(&file)?;
    let mut notes = Vec::new();
    let table = Table::make(&file, parts, way, &mut notes);
    let mut keys = Keys::new();
    let (model, pre) = match way {
        Way::ByteLevel(pre) => ("gpt2", pre),
        Way::SentencePiece { .. } => ("llama", "default"),
    };
    keys.text("tokenizer.ggml.model", model);
    keys.text("tokenizer.ggml.pre", pre);
    keys.texts("tokenizer.ggml.tokens", table.tokens.iter());
    match way {
        Way::ByteLevel(_) => {
            let merges = file.model.merges.iter().filter_map(|merge| table.merge(merge));
            keys.texts("tokenizer.ggml.merges", merges.collect::<Vec<_>>().into_iter());
        }
        Way::SentencePiece { space_prefix } => {
            if space_prefix && file.pre_tokenizer["type"] == "Metaspace" {
                notes.push("llama.cpp puts a space before a text that begins with one, which the model's tokenizer does not".into());
            }
            keys.numbers("tokenizer.ggml.scores", &scores(&file.model.merges, &table.tokens));
            keys.number("tokenizer.ggml.add_space_prefix", space_prefix);
        }
    }
    keys.numbers("tokenizer.ggml.token_type", &table.kinds);
    special_ids(parts, &mut keys, &mut notes)?;
    let strips_right =
        file.added_tokens.iter().filter(|token| token.rstrip).map(|t| t.content.clone()).collect();
    for token in file.added_tokens.iter().filter(|token| token.lstrip || token.single_word) {
        let what =
            if token.lstrip { "takes the space before it along" } else { "is found as a whole word only" };
        notes.push(format!("the token `{}` {what}, which GGUF cannot say", shown(&token.content)));
    }
    Ok(WrittenTokenizer { keys, strips_right, notes })
}

fn parse(text: &[u8]) -> Result<File, TokenizerWriteError> {
    let json = |error: serde_json::Error| TokenizerWriteError::Json(error.to_string());
    // Other models have a vocabulary of another shape.
    let kind: KindOnly = serde_json::from_slice(text).map_err(json)?;
    match kind.model.kind.as_deref() {
        Some("BPE") => {}
        // Files from before the key.
        None if kind.model.merges.is_some() => {}
        other => return Err(TokenizerWriteError::Model { given: shown(other.unwrap_or("unnamed")) }),
    }
    serde_json::from_slice(text).map_err(json)
}

fn recognise(file: &File) -> Result<Way, TokenizerWriteError> {
    let model = &file.model;
    let affix = |affix: &Option<String>| affix.as_deref().is_some_and(|text| !text.is_empty());
    let ignore_merges = model.ignore_merges.unwrap_or(false);
    let byte_fallback = model.byte_fallback.unwrap_or(false);
    let plain = !affix(&model.continuing_subword_prefix) && !affix(&model.end_of_word_suffix);
    if plain
        && !byte_fallback
        && let Some(name) = Split::name_of(&file.normalizer, &file.pre_tokenizer, ignore_merges)
    {
        return Ok(Way::ByteLevel(name));
    }
    if plain
        && byte_fallback
        && !ignore_merges
        && let Some(spaces) = Spaces::recognise(&file.normalizer, &file.pre_tokenizer)
    {
        return Ok(Way::SentencePiece { space_prefix: spaces != Spaces::None });
    }
    let mut found = format!("normalizer {}, pre-tokenizer {}", file.normalizer, file.pre_tokenizer);
    if found.chars().count() > 600 {
        found = found.chars().take(600).chain("...".chars()).collect();
    }
    for (on, what) in
        [(ignore_merges, "ignore_merges"), (byte_fallback, "byte_fallback"), (!plain, "affixes")]
    {
        if on {
            found.push_str(", ");
            found.push_str(what);
        }
    }
    Err(TokenizerWriteError::Steps { found })
}

/// A token and its kind for each row.
struct Table {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    known: std::collections::HashSet<String>,
}

impl Table {
    fn make(file: &File, parts: &TokenizerParts<'_>, way: Way, notes: &mut Vec<String>) -> Self {
        let mut tokens: Vec<String> = (0..parts.rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![TokenKind::Unused.id(); parts.rows];
        let mut beyond = 0usize;
        let mut set = |id: u32, token: String, kind: TokenKind| match tokens.get_mut(id as usize) {
            Some(place) => {
                *place = token;
                kinds[id as usize] = kind.id();
            }
            None => beyond += 1,
        };
        let sentencepiece = matches!(way, Way::SentencePiece { .. });
        for (token, id) in &file.model.vocab {
            let kind =
                if sentencepiece && is_byte_token(token) { TokenKind::Byte } else { TokenKind::Normal };
            set(*id, token.clone(), kind);
        }
        for (id, token, special) in &parts.added {
            let kind = match special {
                _ if sentencepiece && is_byte_token(token) => TokenKind::Byte,
                _ if sentencepiece && parts.unknown == Some(*id) => TokenKind::Unknown,
                true => TokenKind::Control,
                false => TokenKind::UserDefined,
            };
            // llama.cpp looks for these in the text as it came.
            let spaced = sentencepiece && kind == TokenKind::UserDefined;
            let token = if spaced { token.replace(SPACE_SIGN, " ") } else { (*token).to_owned() };
            set(*id, token, kind);
        }
        if beyond > 0 {
            let rows = parts.rows;
            notes.push(format!(
                "{beyond} tokens have no row in the embedding of {rows} rows and are left out"
            ));
        }
        let known = tokens.iter().cloned().collect();
        Self { tokens, kinds, known }
    }

    /// A merge as a file has it, of tokens that the file has.
    fn merge(&self, merge: &Merge) -> Option<String> {
        let (left, right) = merge.sides()?;
        let has = |token: &str| self.known.contains(token);
        (has(left) && has(right) && has(&format!("{left}{right}"))).then(|| format!("{left} {right}"))
    }
}

/// Whether a token stands for a byte: `<0x0A>`.
pub fn is_byte_token(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A piece scores by the place of the first merge that makes it: pieces keep the order that SentencePiece's own scores gave their merges.
fn scores(merges: &[Merge], tokens: &[String]) -> Vec<f32> {
    let mut first = HashMap::with_capacity(merges.len());
    for (place, merge) in merges.iter().enumerate() {
        if let Some((left, right)) = merge.sides() {
            first.entry(format!("{left}{right}")).or_insert(place);
        }
    }
    tokens.iter().map(|token| first.get(token).map_or(NO_MERGE, |place| -(*place as f32))).collect()
}

fn special_ids(
    parts: &TokenizerParts<'_>,
    keys: &mut Keys,
    notes: &mut Vec<String>,
) -> Result<(), TokenizerWriteError> {
    let end = |place: usize| parts.ends.get(place).copied();
    for (what, key, id) in [
        ("BOS", "bos", parts.bos),
        ("EOS", "eos", end(0)),
        ("end-of-turn", "eot", end(1)),
        ("end-of-message", "eom", end(2)),
        ("unknown", "unknown", parts.unknown),
        ("padding", "padding", parts.padding),
    ] {
        let Some(id) = id else { continue };
        if id as usize >= parts.rows {
            return Err(TokenizerWriteError::Beyond { what, id, rows: parts.rows });
        }
        keys.number(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    for id in parts.ends.iter().skip(3) {
        notes.push(format!("generation stops at token {id} too, and GGUF has room for three such ids"));
    }
    keys.number("tokenizer.ggml.add_bos_token", parts.adds_bos);
    keys.number("tokenizer.ggml.add_eos_token", parts.adds_eos);
    Ok(())
}
