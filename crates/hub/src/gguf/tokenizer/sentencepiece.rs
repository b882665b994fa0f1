//! `tokenizer.ggml.model` = `llama`: SentencePiece's BPE, as transformers' converter writes it.

use super::json::TokenizerJson;
use super::split::steps;
use super::vocabulary::{SPACE_SIGN, TokenKind, Vocabulary};
use crate::gguf::metadata::{finite, required};
use crate::gguf::{GgufError, Header, Value as Found};
use serde_json::{Value, json};

const SCORES: &str = "tokenizer.ggml.scores";

/// The tokenizer, and whether it adds BOS where the file does not say.
pub(super) fn tokenizer<'a>(
    header: &'a Header,
    vocabulary: &'a Vocabulary<'a>,
) -> Result<(TokenizerJson<'a>, bool), GgufError> {
    let spaces = Spaces::of(header, vocabulary)?;
    let tokenizer = TokenizerJson {
        normalizer: spaces.normalizer(),
        pre_tokenizer: spaces.pre_tokenizer(),
        post_processor: Value::Null,
        decoder: spaces.decoder(),
        unknown: vocabulary.unknown.map(|id| vocabulary.token(id)),
        fuse_unknown: true,
        byte_fallback: vocabulary.kinds.contains(&TokenKind::Byte),
        ignore_merges: false,
        merges: merges(header, vocabulary)?,
        strips_right: if strips_right(header)? { strips_right_in_phi3 } else { |_, _| false },
    };
    Ok((tokenizer, true))
}

/// Where a space is put that the text does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spaces {
    /// Nowhere (Gemma).
    None,
    /// Before the text and behind each special token in it (Llama 2, Phi 3), as SentencePiece does with each piece of text it is given.
    BeforeEachPart,
    /// Before the text alone (Mistral).
    BeforeTheText,
}

impl Spaces {
    /// The file says whether there is one, and not where. Mistral's tokenizers from version 2 on, which have `[INST]` as a special token,
    /// have it before the text alone; with one behind `[INST]` each turn would begin with two.
    fn of(header: &Header, vocabulary: &Vocabulary<'_>) -> Result<Self, GgufError> {
        let inst = vocabulary.ids.get("[INST]").and_then(|id| vocabulary.kinds.get(*id as usize));
        Ok(match header.metadata.flag("tokenizer.ggml.add_space_prefix")? {
            Some(false) => Self::None,
            _ if matches!(inst, Some(TokenKind::Control)) => Self::BeforeTheText,
            _ => Self::BeforeEachPart,
        })
    }

    /// By a tokenizer.json's normalizer and pre-tokenizer.
    pub(super) fn recognise(normalizer: &Value, pre_tokenizer: &Value) -> Option<Self> {
        let (normalizers, before) = (steps(normalizer, "normalizers"), steps(pre_tokenizer, "pretokenizers"));
        let is_sign = |step: &Value| {
            step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE_SIGN
        };
        // Gemma's, which has no space left to split at.
        let idle = |step: &Value| step["type"] == "Split" && step["pattern"]["String"] == " ";
        match (normalizers.as_slice(), before.as_slice()) {
            ([sign], []) if is_sign(sign) => Some(Self::None),
            ([sign], [split]) if is_sign(sign) && idle(split) => Some(Self::None),
            ([prepend, sign], []) if is_sign(sign) => (prepend["type"] == "Prepend"
                && prepend["prepend"] == SPACE_SIGN)
                .then_some(Self::BeforeEachPart),
            ([], [meta]) if meta["type"] == "Metaspace" && meta["replacement"] == SPACE_SIGN => {
                // With words apart, merges could not reach over a space.
                match meta["prepend_scheme"].as_str()? {
                    _ if meta["split"] != false => None,
                    "first" => Some(Self::BeforeTheText),
                    "always" => Some(Self::BeforeEachPart),
                    "never" => Some(Self::None),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn normalizer(self) -> Value {
        let sign = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE_SIGN });
        match self {
            Self::None => sign,
            Self::BeforeTheText => Value::Null,
            Self::BeforeEachPart => {
                let prepend = json!({ "type": "Prepend", "prepend": SPACE_SIGN });
                json!({ "type": "Sequence", "normalizers": [prepend, sign] })
            }
        }
    }

    fn pre_tokenizer(self) -> Value {
        match self {
            Self::None | Self::BeforeEachPart => Value::Null,
            Self::BeforeTheText => {
                json!({ "type": "Metaspace", "replacement": SPACE_SIGN, "prepend_scheme": "first", "split": false })
            }
        }
    }

    fn decoder(self) -> Value {
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE_SIGN }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self != Self::None {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": decoders })
    }
}

/// Every way to put a piece together from two others, the best piece first.
///
/// Source: `generate_merges` of transformers' `convert_slow_tokenizer.py`: the ways of one piece by the ids of their sides, then all by the
/// piece's score, ties as they come. A token that a user defined has the best score: the file's is the converter's own.
fn merges<'a>(header: &Header, vocabulary: &'a Vocabulary<'a>) -> Result<Vec<(&'a str, &'a str)>, GgufError> {
    let scores = scores(header, vocabulary.tokens.len())?;
    let is_piece = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined);
    let piece_id = |text: &str| {
        let id = *vocabulary.ids.get(text)?;
        vocabulary.kinds.get(id as usize).filter(|kind| is_piece(**kind)).map(|_| id)
    };
    let mut all: Vec<(f32, &str, &str)> = Vec::new();
    let mut ways: Vec<(u32, u32, usize)> = Vec::new();
    let mut looked_up = 0u64;
    for ((id, token, kind), score) in vocabulary.iter().zip(scores) {
        if !is_piece(kind) || vocabulary.ids.get(token) != Some(&id) || token.len() > MAX_PIECE_BYTES {
            continue;
        }
        let score = if kind == TokenKind::UserDefined { 0.0 } else { score };
        looked_up += (token.len() * token.len()) as u64;
        limit("bytes that merges are looked up by", looked_up, MAX_LOOKED_UP)?;
        limit("merges", all.len() as u64, MAX_MERGES)?;
        ways.clear();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left), Some(right)) = (piece_id(left), piece_id(right)) {
                ways.push((left, right, at));
            }
        }
        ways.sort_unstable();
        all.extend(ways.iter().map(|(_, _, at)| {
            let (left, right) = token.split_at(*at);
            (score, left, right)
        }));
    }
    all.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    Ok(all.into_iter().map(|(_, left, right)| (left, right)).collect())
}

/// Longer pieces are taken as they are and made from no others; the longest of known vocabularies have about a hundred.
const MAX_PIECE_BYTES: usize = 1024;
/// Gemma's 262k pieces have half a million merges.
const MAX_MERGES: u64 = 1 << 22;
/// The ways to divide a piece grow with its length, and the work for each too: some hundred millions of bytes for honest files.
const MAX_LOOKED_UP: u64 = 1 << 33;

fn limit(what: &str, given: u64, limit: u64) -> Result<(), GgufError> {
    if given <= limit {
        return Ok(());
    }
    Err(GgufError::TooMuch { what: format!("the number of {what}"), given, limit })
}

fn scores(header: &Header, count: usize) -> Result<Vec<f32>, GgufError> {
    let numbers = required(header.metadata.numbers(SCORES)?, SCORES, "the tokens' scores")?;
    let wrong = |expected: String, given: String| GgufError::Value { key: SCORES.into(), expected, given };
    if numbers.len() != count {
        return Err(wrong(
            format!("{count} numbers, one for each token"),
            format!("{} of them", numbers.len()),
        ));
    }
    let score = |one: Found| match one {
        Found::F32(score) => score.is_finite().then_some(score),
        other => finite(&other).map(|score| score as f32),
    };
    let scores: Option<Vec<f32>> = numbers.iter().map(score).collect();
    let scores = scores.ok_or_else(|| wrong("finite numbers".into(), "another array".into()))?;
    // A converter that was not given SentencePiece's own file wrote the same score for all, and so lost the order of merges.
    if count > 1 && scores.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err(wrong("scores that order the tokens".into(), "the same for all".into()));
    }
    Ok(scores)
}

/// Whether a file's special tokens take the space behind them along: it is Phi 3's, by the name of its model.
///
/// # Errors
/// When the name is no text.
pub fn strips_right(header: &Header) -> Result<bool, GgufError> {
    let name = header.metadata.text("general.name")?.unwrap_or_default().to_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

/// Special tokens of Phi 3 take the space behind them along. The file does not say so; llama.cpp has the same list, by the model's name.
fn strips_right_in_phi3(token: &str, kind: TokenKind) -> bool {
    match token {
        "<unk>" | "<s>" | "<|endoftext|>" => false,
        "</s>" => true,
        _ => matches!(kind, TokenKind::Control | TokenKind::UserDefined),
    }
}
