//! `tokenizer.ggml.model` = `gpt2`: BPE over bytes that are written as characters.

use super::json::TokenizerJson;
use super::split::Split;
use super::vocabulary::Vocabulary;
use crate::gguf::metadata::required;
use crate::gguf::{GgufError, Header, shown};
use serde_json::{Value, json};

const MERGES: &str = "tokenizer.ggml.merges";

/// The tokenizer, and whether it adds BOS where the file does not say.
pub(super) fn tokenizer<'a>(
    header: &'a Header,
    vocabulary: &'a Vocabulary<'a>,
) -> Result<(TokenizerJson<'a>, bool), GgufError> {
    let split = Split::of(header, vocabulary.ids.contains_key("<|begin_of_text|>"))?;
    let merges = required(header.metadata.texts(MERGES)?, MERGES, "the merges")?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges.iter() {
        let (left, right) = pair(merge)?;
        // Where a vocabulary was cut, merges are left that make no token any more.
        if [left, right, &format!("{left}{right}")].iter().all(|token| vocabulary.ids.contains_key(*token)) {
            pairs.push((left, right));
        }
    }
    let byte_level = |add_prefix_space: bool, trim_offsets: bool, use_regex: bool| {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": add_prefix_space,
            "trim_offsets": trim_offsets,
            "use_regex": use_regex,
        })
    };
    let tokenizer = TokenizerJson {
        normalizer: if split.normalizes { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: split.pre_tokenizer(),
        post_processor: byte_level(false, false, false),
        decoder: byte_level(true, true, true),
        unknown: None,
        fuse_unknown: false,
        byte_fallback: false,
        ignore_merges: split.ignore_merges,
        merges: pairs,
        strips_right: |_, _| false,
    };
    Ok((tokenizer, split.adds_bos))
}

/// The two sides of a merge.
fn pair(merge: &str) -> Result<(&str, &str), GgufError> {
    // A piece may be a space by itself in no byte-level vocabulary, so the first space divides.
    merge.split_once(' ').ok_or_else(|| GgufError::Value {
        key: MERGES.into(),
        expected: "pairs of tokens with a space between".into(),
        given: format!("a list with `{}`", shown(merge)),
    })
}
