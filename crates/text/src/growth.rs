//! How much longer than its text a tokenizer can make what it works on.
//!
//! A list of 40 replacements of `a` by `aa` makes a trillion bytes of one. Each step of a tokenizer.json is given the
//! factor by which it can lengthen a text, in bytes; the product over the steps is bounded on loading, so that memory is
//! linear in the text.

use serde::Serialize;
use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::{NormalizerWrapper, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

/// The largest product that is taken; those of honest files are below 100.
const LARGEST: usize = 4096;
/// The Unicode forms in a row gain nothing, and the first of them less than this on honest text.
const UNICODE_FORM: usize = 2;
/// A byte becomes a character of up to two bytes.
const BYTE_LEVEL: usize = 2;

/// Refuse a tokenizer whose steps multiply the length of a text too often.
pub(crate) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let normalizing = tokenizer.get_normalizer().map_or(1, normalizer);
    let splitting = tokenizer.get_pre_tokenizer().map_or(1, pre_tokenizer);
    let decoding = tokenizer.get_decoder().map_or(1, decoder);
    for (factor, what) in
        [(normalizing.saturating_mul(splitting), "normalizer and pre-tokenizer"), (decoding, "decoder")]
    {
        if factor > LARGEST {
            return Err(format!("its {what} can make a text {factor} times longer, the limit is {LARGEST}"));
        }
    }
    Ok(())
}

fn product(factors: impl Iterator<Item = usize>) -> usize {
    factors.fold(1, usize::saturating_mul)
}

/// A string becomes the content; an expression can match a single byte or nothing, between any two bytes.
fn replace(step: &Replace) -> usize {
    let shape = serde_json::to_value(step).unwrap_or_default();
    match shape.pointer("/pattern/String").and_then(Value::as_str) {
        Some(pattern) if !pattern.is_empty() => step.content.len().div_ceil(pattern.len()).max(1),
        _ => step.content.len() + 1,
    }
}

/// A table of sentencepiece's is the bytes of a trie, the trie, and the replacements, each with a zero behind it. A byte of
/// the text can become the longest of them.
fn longest_replacement(step: &impl Serialize) -> usize {
    let shape = serde_json::to_value(step).unwrap_or_default();
    let table = shape.get("precompiled_charsmap").and_then(Value::as_str).map(base64).unwrap_or_default();
    let Some((size, rest)) = table.split_first_chunk::<4>() else { return 1 };
    let replacements = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or_default();
    replacements.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1).max(1)
}

/// The bytes of a text in base 64, as far as it is one.
fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

fn normalizer(step: &NormalizerWrapper) -> usize {
    match step {
        NormalizerWrapper::Sequence(steps) => product(steps.as_ref().iter().map(normalizer)),
        NormalizerWrapper::Replace(step) => replace(step),
        // Once per text, which has at least a byte.
        NormalizerWrapper::Prepend(step) => step.prepend.len() + 1,
        NormalizerWrapper::ByteLevel(_) => BYTE_LEVEL,
        NormalizerWrapper::Precompiled(step) => longest_replacement(step),
        NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKD(_)
        | NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFKC(_) => UNICODE_FORM,
        _ => 1,
    }
}

fn pre_tokenizer(step: &PreTokenizerWrapper) -> usize {
    match step {
        PreTokenizerWrapper::Sequence(steps) => product(steps.as_ref().iter().map(pre_tokenizer)),
        PreTokenizerWrapper::ByteLevel(_) => BYTE_LEVEL,
        _ => 1,
    }
}

fn decoder(step: &DecoderWrapper) -> usize {
    match step {
        DecoderWrapper::Sequence(steps) => product(steps.get_decoders().iter().map(decoder)),
        DecoderWrapper::Replace(step) => replace(step),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn base_64_is_read_as_far_as_it_goes() {
        assert_eq!(base64("TWFueSBoYW5kcw=="), b"Many hands");
        assert_eq!(base64("/+8"), [0xff, 0xef]);
        assert_eq!(base64("TWFu!eSBo"), b"Man");
    }

    #[test]
    fn the_longest_replacement_of_a_table_counts() {
        // A trie of four bytes, then `ab` and `abc`.
        let table = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhYgBhYmMA"});
        assert_eq!(longest_replacement(&table), 3);
        assert_eq!(longest_replacement(&json!({"precompiled_charsmap": "AAA"})), 1);
        assert_eq!(longest_replacement(&json!({"precompiled_charsmap": "/////w=="})), 1);
    }
}
