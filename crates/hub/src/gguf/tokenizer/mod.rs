//! The texts of `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, from a GGUF file's `tokenizer.ggml.*`; and the
//! other way ([`tokenizer_keys`]).
//!
//! What is made gives the ids of the tokenizer on the Hub that the file was made from, which is not always what llama.cpp gives: it
//! normalises nothing, and has regular expressions of its own. What the converter loses is set as for the models that are known to need it,
//! and said where it is. Source of the keys: `constants.py` and `vocab.py` of llama.cpp's `gguf-py`.

mod byte_level;
mod json;
mod sentencepiece;
mod split;
mod vocabulary;
mod write;

pub use sentencepiece::strips_right;
pub use write::{TokenizerParts, TokenizerWriteError, WrittenTokenizer, is_byte_token, tokenizer_keys};

use super::{GgufError, Header, shown};
use serde_json::{Map, Value, json};
use vocabulary::{TokenKind, Vocabulary};

const MODEL: &str = "tokenizer.ggml.model";

/// What a Hub folder has of a tokenizer.
#[derive(Debug, Clone)]
pub(super) struct Texts {
    pub(super) tokenizer: String,
    pub(super) tokenizer_config: String,
    pub(super) generation_config: String,
}

/// The texts; `None` for a file without a tokenizer.
pub(super) fn texts(header: &Header) -> Result<Option<Texts>, GgufError> {
    let kind = match header.metadata.text(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => Kind::ByteLevel,
        Some("llama") => Kind::SentencePiece,
        Some(other) => {
            return Err(GgufError::Tokenizer {
                key: MODEL,
                given: shown(other),
                known: vec!["gpt2".into(), "llama".into()],
            });
        }
    };
    let vocabulary = Vocabulary::read(header, kind)?;
    let (mut tokenizer, adds_bos) = match kind {
        Kind::ByteLevel => byte_level::tokenizer(header, &vocabulary)?,
        Kind::SentencePiece => sentencepiece::tokenizer(header, &vocabulary)?,
    };
    let flag = |key: &str, default: bool| Ok(header.metadata.flag(key)?.unwrap_or(default));
    let adds = Adds {
        bos: flag("tokenizer.ggml.add_bos_token", adds_bos)?,
        eos: flag("tokenizer.ggml.add_eos_token", false)?,
    };
    if let Some(post_processor) = post_processor(&vocabulary, &adds)? {
        tokenizer.post_processor = post_processor;
    }
    Ok(Some(Texts {
        tokenizer: tokenizer.text(&vocabulary),
        tokenizer_config: tokenizer_config(header, &vocabulary, &adds)?,
        generation_config: generation_config(header, &vocabulary)?,
    }))
}

/// How words are made of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// BPE over bytes that are written as characters, behind a split by a regular expression.
    ByteLevel,
    /// SentencePiece's BPE over whole texts, with bytes for what has no piece.
    SentencePiece,
}

/// What is put around a text by itself.
struct Adds {
    bos: bool,
    eos: bool,
}

/// BOS before and EOS behind a text, as far as they are added.
fn post_processor(vocabulary: &Vocabulary<'_>, adds: &Adds) -> Result<Option<Value>, GgufError> {
    let mut named = Map::new();
    let mut special = |on: bool, id: Option<u32>, key: &str| -> Result<Option<String>, GgufError> {
        if !on {
            return Ok(None);
        }
        let missing =
            || GgufError::Missing { key: key.to_owned(), expected: "the id of the token that is added" };
        let id = id.ok_or_else(missing)?;
        let token = vocabulary.token(id).to_owned();
        named.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        Ok(Some(token))
    };
    let bos = special(adds.bos, vocabulary.bos, "tokenizer.ggml.bos_token_id")?;
    let eos = special(adds.eos, vocabulary.eos, "tokenizer.ggml.eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let around = |sequence: &str, type_id: u32| -> Vec<Value> {
        let token = |token: &String| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
        let mut parts: Vec<Value> = bos.iter().map(token).collect();
        parts.push(json!({ "Sequence": { "id": sequence, "type_id": type_id } }));
        parts.extend(eos.iter().map(token));
        parts
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    Ok(Some(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": named,
    })))
}

fn tokenizer_config(header: &Header, vocabulary: &Vocabulary<'_>, adds: &Adds) -> Result<String, GgufError> {
    let mut config = Map::new();
    for (name, id) in [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.padding),
    ] {
        if let Some(id) = id {
            config.insert(name.into(), vocabulary.token(id).into());
        }
    }
    config.insert("add_bos_token".into(), adds.bos.into());
    config.insert("add_eos_token".into(), adds.eos.into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    if let Some(template) = chat_template(header)? {
        config.insert("chat_template".into(), template);
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

/// One template as a text; several as transformers' list of named ones.
fn chat_template(header: &Header) -> Result<Option<Value>, GgufError> {
    let metadata = &header.metadata;
    let default = metadata.text("tokenizer.chat_template")?;
    let names = metadata.texts("tokenizer.chat_templates")?;
    let mut listed = Vec::new();
    for name in names.iter().flat_map(|names| names.iter()) {
        let key = format!("tokenizer.chat_template.{name}");
        let template = super::metadata::required(metadata.text(&key)?, &key, "a chat template")?;
        listed.push(json!({ "name": name, "template": template }));
    }
    match default {
        Some(template) if listed.is_empty() => Ok(Some(template.into())),
        Some(template) => {
            listed.insert(0, json!({ "name": "default", "template": template }));
            Ok(Some(listed.into()))
        }
        None if listed.is_empty() => Ok(None),
        None => Ok(Some(listed.into())),
    }
}

/// Every id that ends a generation: the end of a text, of a turn, of a message.
fn generation_config(header: &Header, vocabulary: &Vocabulary<'_>) -> Result<String, GgufError> {
    let mut ends: Vec<u32> = vocabulary.eos.into_iter().collect();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(vocabulary.special_id(header, key)?.filter(|id| !ends.contains(id)));
    }
    let mut config = Map::new();
    if let Some(id) = vocabulary.bos {
        config.insert("bos_token_id".into(), id.into());
    }
    match ends.as_slice() {
        [] => {}
        [one] => {
            config.insert("eos_token_id".into(), (*one).into());
        }
        several => {
            config.insert("eos_token_id".into(), several.into());
        }
    }
    if let Some(id) = vocabulary.padding {
        config.insert("pad_token_id".into(), id.into());
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

#[cfg(test)]
mod tests;
