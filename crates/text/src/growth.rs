//! How much longer than its text a tokenizer can make what it works on.
//!
//! A list of 40 replacements of `a` by `aa` makes a trillion bytes of one. Each step of a tokenizer.json is given the
//! factor by which it can lengthen a text, in bytes; the product over the steps is bounded on loading, so that memory is
//! linear in the text.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::{NormalizerWrapper, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

/// The largest product that is taken; those of honest files are below 100.
const LARGEST: usize = 4096;
/// The Unicode forms in a row gain nothing, and the first of them less than this on honest text.
const UNICODE_FORM: usize = 2;
/// What a table of sentencepiece's is taken to do; those in use are a Unicode form with a few more rows.
const PRECOMPILED: usize = 4;
/// A byte becomes a character of up to two bytes.
const BYTE_LEVEL: usize = 2;

/// Refuse a tokenizer whose steps multiply the length of a text too often.
pub(crate) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let normalizing = tokenizer.get_normalizer().map_or(1, normalizer);
    let splitting = tokenizer.get_pre_tokenizer().map_or(1, pre_tokenizer);
    let decoding = tokenizer.get_decoder().map_or(1, decoder);
    for (factor, what) in [
        (normalizing.saturating_mul(splitting), "normalizer and pre-tokenizer"),
        (decoding, "decoder"),
    ] {
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

fn normalizer(step: &NormalizerWrapper) -> usize {
    match step {
        NormalizerWrapper::Sequence(steps) => product(steps.as_ref().iter().map(normalizer)),
        NormalizerWrapper::Replace(step) => replace(step),
        // Once per text, which has at least a byte.
        NormalizerWrapper::Prepend(step) => step.prepend.len() + 1,
        NormalizerWrapper::ByteLevel(_) => BYTE_LEVEL,
        NormalizerWrapper::Precompiled(_) => PRECOMPILED,
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
