//! How a text is split into words before merges: what `tokenizer.ggml.pre` stands for.
//!
//! llama.cpp's converter finds the name from the ids that the Hub's tokenizer gives to a fixed text. What a name stands for here is the
//! pre-tokenizer in the `tokenizer.json` of the model that llama.cpp names it after.

use crate::gguf::{Architecture, GgufError, Header, shown};
use serde_json::{Value, json};

const KEY: &str = "tokenizer.ggml.pre";

/// Of OpenAI's cl100k, Llama 3 and others: digits in threes.
const DIGITS_IN_THREES: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Of Qwen 2: each digit by itself.
const SINGLE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Of OpenAI's o200k: words are also split where their case changes.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Of Mistral's Tekken: the same without endings, and each digit by itself.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to split texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    words: Words,
    /// Whether texts are first brought to Unicode's form C.
    pub(super) normalizes: bool,
    /// Whether a word that is a token is that token, whatever its merges would make.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// GPT-2's expression, which is part of the byte-level step.
    Gpt2,
    /// Each digit by itself, then GPT-2's.
    DigitsThenGpt2,
    /// An expression whose matches are the words.
    Matches(&'static str),
}

impl Split {
    const fn plain(words: Words) -> Self {
        Self { words, normalizes: false, ignore_merges: false, adds_bos: false }
    }

    const GPT2: Self = Self::plain(Words::Gpt2);
    const QWEN2: Self = Self { normalizes: true, ..Self::plain(Words::Matches(SINGLE_DIGITS)) };
    const LLAMA3: Self =
        Self { ignore_merges: true, adds_bos: true, ..Self::plain(Words::Matches(DIGITS_IN_THREES)) };
    const TEKKEN: Self = Self { ignore_merges: true, adds_bos: true, ..Self::plain(Words::Matches(TEKKEN)) };

    /// By `tokenizer.ggml.pre`.
    const NAMED: [(&'static str, Self); 23] = [
        ("default", Self::GPT2),
        ("gpt-2", Self::GPT2),
        ("phi-2", Self::GPT2),
        ("mpt", Self { normalizes: true, ..Self::GPT2 }),
        ("olmo", Self { normalizes: true, ..Self::GPT2 }),
        ("dolma12", Self { normalizes: true, ..Self::GPT2 }),
        ("llama-bpe", Self::LLAMA3),
        ("llama3", Self::LLAMA3),
        ("llama-v3", Self::LLAMA3),
        ("falcon3", Self { adds_bos: false, ..Self::LLAMA3 }),
        ("dbrx", Self::plain(Words::Matches(DIGITS_IN_THREES))),
        ("smaug-bpe", Self::plain(Words::Matches(DIGITS_IN_THREES))),
        ("qwen2", Self::QWEN2),
        ("megrez", Self::QWEN2),
        ("deepseek-r1-qwen", Self { normalizes: false, ..Self::QWEN2 }),
        ("tekken", Self::TEKKEN),
        ("pixtral", Self::TEKKEN),
        ("gpt-4o", Self::plain(Words::Matches(O200K))),
        ("smollm", Self::plain(Words::DigitsThenGpt2)),
        ("starcoder", Self::plain(Words::DigitsThenGpt2)),
        ("refact", Self::plain(Words::DigitsThenGpt2)),
        ("command-r", Self { normalizes: true, ..Self::plain(Words::DigitsThenGpt2) }),
        ("codeshell", Self::plain(Words::DigitsThenGpt2)),
    ];

    /// The way of a file. One from before the key gets that of its family, where that is certain, else GPT-2's, as the files did then.
    pub(super) fn of(header: &Header, is_llama3: bool) -> Result<Self, GgufError> {
        let Some(given) = header.metadata.text(KEY)? else {
            let family = header.metadata.text("general.architecture")?.unwrap_or_default();
            let qwen = [Architecture::Qwen2, Architecture::Qwen3, Architecture::Qwen3Moe];
            return Ok(match family {
                family if qwen.iter().any(|known| known.name() == family) => Self::QWEN2,
                _ if is_llama3 => Self::LLAMA3,
                _ => Self::GPT2,
            });
        };
        let found = Self::NAMED.iter().find(|(name, _)| *name == given);
        found.map(|(_, split)| *split).ok_or_else(|| GgufError::Tokenizer {
            key: KEY,
            given: shown(given),
            known: Self::NAMED.iter().map(|(name, _)| (*name).to_owned()).collect(),
        })
    }

    /// The pre-tokenizer of a tokenizer.json.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let before = match self.words {
            Words::Gpt2 => return bytes(true),
            Words::DigitsThenGpt2 => json!({ "type": "Digits", "individual_digits": true }),
            Words::Matches(regex) => {
                json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
            }
        };
        let bytes = bytes(self.words == Words::DigitsThenGpt2);
        json!({ "type": "Sequence", "pretokenizers": [before, bytes] })
    }

    #[cfg(test)]
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMED.iter().map(|(name, _)| *name)
    }

    /// The name of the way that a `tokenizer.json` splits texts, where it has one. Of names for the same way it is the one that llama.cpp
    /// gives the family it is best known from; `default` is never written, for llama.cpp splits by an expression of its own then.
    pub(super) fn name_of(
        normalizer: &Value,
        pre_tokenizer: &Value,
        ignore_merges: bool,
    ) -> Option<&'static str> {
        const WRITTEN: [&str; 12] = [
            "gpt-2",
            "olmo",
            "llama-bpe",
            "dbrx",
            "qwen2",
            "deepseek-r1-qwen",
            "tekken",
            "gpt-4o",
            "smollm",
            "command-r",
            "falcon3",
            "mpt",
        ];
        let normalizes = match steps(normalizer, "normalizers").as_slice() {
            [] => false,
            [one] if one["type"] == "NFC" => true,
            _ => return None,
        };
        let words = Words::of(pre_tokenizer)?;
        let same = |split: &Self| {
            (split.words, split.normalizes, split.ignore_merges) == (words, normalizes, ignore_merges)
        };
        let named = |name: &&str| Self::NAMED.iter().any(|(known, split)| known == name && same(split));
        WRITTEN.into_iter().find(|name| named(name))
    }
}

impl Words {
    /// By a tokenizer.json's pre-tokenizer.
    fn of(pre_tokenizer: &Value) -> Option<Self> {
        let regex_in_bytes = |step: &Value| {
            let bytes = step["type"] == "ByteLevel" && step["add_prefix_space"] == false;
            bytes.then(|| step["use_regex"] != false)
        };
        match steps(pre_tokenizer, "pretokenizers").as_slice() {
            [bytes] => regex_in_bytes(bytes)?.then_some(Self::Gpt2),
            [digits, bytes] if digits["type"] == "Digits" && digits["individual_digits"] == true => {
                regex_in_bytes(bytes)?.then_some(Self::DigitsThenGpt2)
            }
            [split, bytes] if split["type"] == "Split" && !regex_in_bytes(bytes)? => {
                let isolated = split["behavior"] == "Isolated" && split["invert"] == false;
                let regex = split["pattern"]["Regex"].as_str().filter(|_| isolated)?;
                [DIGITS_IN_THREES, SINGLE_DIGITS, O200K, TEKKEN]
                    .into_iter()
                    .find(|known| *known == regex)
                    .map(Self::Matches)
            }
            _ => None,
        }
    }
}

/// The steps of a normalizer or pre-tokenizer: none of `null`, those under `key` of a sequence, or the one that it is.
pub(super) fn steps<'a>(step: &'a Value, key: &str) -> Vec<&'a Value> {
    match step {
        Value::Null => Vec::new(),
        Value::Object(fields) if step["type"] == "Sequence" => {
            fields.get(key).and_then(Value::as_array).into_iter().flatten().collect()
        }
        one => vec![one],
    }
}
