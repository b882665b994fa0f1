//! `taper.json` beside an adapter: what it was trained over, so that it is not used over something else unnoticed.
//!
//! An adapter is a difference. Over another base, with another tokenizer or in another chat format it loads, runs and answers, worse. The
//! contract holds the hashes of the base's files as they lie (a base that is quantised while it is loaded is the same base), the facts of
//! its tokenizer and its template, how each layer's delta is scaled, a fingerprint of the training data, the scores, and a few golden
//! prompts with the logits that base and adapter give together. [`Contract::differences`] names what is not the same,
//! [`Contract::verify`] computes the golden prompts again.
//!
//! Golden prompts are sentences of ours, not rows of the data: what is published with an adapter must not tell what it was trained on.

mod check;
mod golden;
mod observed;

pub use check::Difference;
pub use golden::{GoldenOutcome, GoldenPrompt, TopLogit};
pub use observed::BaseInUse;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::{TextSource, write_bytes_atomically};
use taper_hub::Fingerprint;

/// The contract's file name.
pub const CONTRACT_FILE: &str = "taper.json";

/// The layout that is written, and the newest that is read.
pub const CONTRACT_SCHEMA: u32 = 1;

/// Golden prompts that are read: who wrote the file must not choose the work.
const MOST_GOLDEN: usize = 64;

/// The longest contract that is read: a template of 1 MiB and some thousand layers fit many times.
const MAX_CONTRACT_BYTES: u64 = 16 << 20;

/// What an adapter was trained over, and how it is to be used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// [`CONTRACT_SCHEMA`].
    pub schema: u32,
    /// The version of taper that wrote it.
    pub taper: String,
    /// The base.
    pub base: BaseFacts,
    /// How it reads text.
    pub tokenizer: TokenizerFacts,
    /// The chat template; `None` where there was none.
    pub chat_template: Option<TemplateText>,
    /// What the deltas are multiplied by.
    pub scale: ScaleFacts,
    /// What was trained on, split by split.
    pub data: Vec<DataFacts>,
    /// Scores on held-out data, as far as they were measured.
    pub evaluation: Vec<Score>,
    /// Prompts with the logits of base and adapter.
    pub golden: Vec<GoldenPrompt>,
}

/// The base as its files lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseFacts {
    /// How the recipe named it.
    pub name: String,
    /// The files that hold its weights, sorted by name.
    pub weights: Vec<FileFacts>,
    /// `config.json`, or what was made of a GGUF file's metadata.
    pub config: Map<String, Value>,
    /// What the weights were quantised to while they were loaded; a note, the base is the same.
    pub quantized: Option<String>,
}

/// A file by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its content.
    pub sha256: Fingerprint,
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerFacts {
    /// The SHA-256 of `tokenizer.json`, or of what was made of a GGUF file's vocabulary.
    pub sha256: Fingerprint,
    /// Tokens, added ones included.
    pub vocab_size: usize,
    /// The special tokens by name.
    pub special_tokens: BTreeMap<String, SpecialToken>,
    /// Whether the tokenizer begins a text with BOS by itself.
    pub adds_bos: bool,
    /// The ids that end an answer in this chat format.
    pub stop_ids: Vec<u32>,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialToken {
    /// Its text.
    pub content: String,
    /// Its id; `None` where the vocabulary does not have it.
    pub id: Option<u32>,
}

/// A chat template, whole: a hash cannot tell what differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateText {
    /// The SHA-256 of `source`.
    pub sha256: Fingerprint,
    /// Its text.
    pub source: String,
}

/// How deltas are scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleFacts {
    /// In words, for those who read the file.
    pub meaning: String,
    /// Each layer that has a delta, by its path in the base.
    pub layers: BTreeMap<String, LayerScale>,
}

/// The scale of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerScale {
    /// The rank.
    pub r: usize,
    /// `lora_alpha` after the patterns.
    pub lora_alpha: f64,
    /// What the low-rank product is multiplied by.
    pub scale: f64,
}

/// A split of the training data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFacts {
    /// `train`, `valid` or `test`.
    pub split: String,
    /// Examples.
    pub examples: usize,
    /// SHA-256 over the token ids and which of them are supervised: equal for the same examples in the same order under the same rules.
    pub tokens_sha256: Fingerprint,
    /// The files they came from.
    pub files: Vec<FileFacts>,
}

/// A score on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// The evaluation.
    pub evaluation: String,
    /// The metric.
    pub metric: String,
    /// What the base reached, where it was measured.
    pub base: Option<f64>,
    /// What base and adapter reached.
    pub adapter: f64,
    /// Items.
    pub n: usize,
}

impl Contract {
    /// The contract beside an adapter; `None` where there is none.
    ///
    /// # Errors
    /// When the file is no contract, is of a newer layout, or is too long.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(CONTRACT_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = TextSource::file(&path)
            .read(MAX_CONTRACT_BYTES)
            .map_err(|source| Error::Read { path: path.clone(), source })?;
        Self::parse(&bytes).map_err(|reason| Error::Contract { path, reason }).map(Some)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(CONTRACT_SCHEMA) => {}
            Some(schema) => {
                return Err(format!("its layout is {schema}, and this version reads {CONTRACT_SCHEMA}"));
            }
            None => return Err("it has no number `schema`".into()),
        }
        let contract: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if contract.golden.len() > MOST_GOLDEN {
            return Err(format!(
                "{} golden prompts, and at most {MOST_GOLDEN} are computed",
                contract.golden.len()
            ));
        }
        let wrong = contract.hashes().find(|(_, hash)| !hash.is_sha256());
        let wrong = wrong.map(|(what, hash)| format!("the hash of {what} is `{hash}`, and no SHA-256"));
        wrong.map_or(Ok(contract), Err)
    }

    fn hashes(&self) -> impl Iterator<Item = (&str, &Fingerprint)> {
        let files = self.base.weights.iter().chain(self.data.iter().flat_map(|split| &split.files));
        files
            .map(|file| (file.file.as_str(), &file.sha256))
            .chain(self.data.iter().map(|split| (split.split.as_str(), &split.tokens_sha256)))
            .chain([("the tokenizer", &self.tokenizer.sha256)])
            .chain(self.chat_template.iter().map(|t| ("the chat template", &t.sha256)))
    }

    /// Write it beside an adapter, whole or not at all. The same contract gives the same bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CONTRACT_FILE);
        let written = serde_json::to_string_pretty(self)
            .map_err(std::io::Error::other)
            .and_then(|text| write_bytes_atomically(&path, format!("{text}\n").as_bytes()));
        written.map_err(|source| Error::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A contract by itself, as the smallest adapter would have it.
    pub(super) fn contract() -> Contract {
        let sha256 = Fingerprint::of_bytes(b"x");
        let file = FileFacts { file: "model.safetensors".into(), bytes: 1, sha256: sha256.clone() };
        let eos = SpecialToken { content: "</s>".into(), id: Some(2) };
        let layer = LayerScale { r: 8, lora_alpha: 16.0, scale: 2.0 };
        Contract {
            schema: CONTRACT_SCHEMA,
            taper: "0.1.0".into(),
            base: BaseFacts {
                name: "models/tiny".into(),
                weights: vec![file.clone()],
                config: Map::from_iter([("hidden_size".to_owned(), Value::from(64))]),
                quantized: None,
            },
            tokenizer: TokenizerFacts {
                sha256: sha256.clone(),
                vocab_size: 100,
                special_tokens: BTreeMap::from([("eos_token".to_owned(), eos)]),
                adds_bos: false,
                stop_ids: vec![2],
            },
            chat_template: Some(TemplateText {
                sha256: Fingerprint::of_bytes(b"a\nb"),
                source: "a\nb".into(),
            }),
            scale: ScaleFacts {
                meaning: "y = W x + scale * B A x".into(),
                layers: BTreeMap::from([("model.layers.0.self_attn.q_proj".to_owned(), layer)]),
            },
            data: vec![DataFacts {
                split: "train".into(),
                examples: 3,
                tokens_sha256: sha256,
                files: vec![file],
            }],
            evaluation: vec![],
            golden: vec![],
        }
    }

    #[test]
    fn a_contract_is_read_as_it_was_written() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(Contract::read(here.path()).unwrap(), None);
        contract().write(here.path()).unwrap();
        let first = fs_err::read(here.path().join(CONTRACT_FILE)).unwrap();
        assert_eq!(Contract::read(here.path()).unwrap(), Some(contract()));
        contract().write(here.path()).unwrap();
        assert_eq!(first, fs_err::read(here.path().join(CONTRACT_FILE)).unwrap());
    }

    #[test]
    fn what_is_no_contract_is_refused_with_the_reason() {
        let here = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&contract()).unwrap();
        let prompt = r#"{"text":"","rendered":false,"input_ids":[1],"top":[]}"#;
        let many = format!("\"golden\":[{}]", vec![prompt; MOST_GOLDEN + 1].join(","));
        let hash = Fingerprint::of_bytes(b"x");
        for (text, reason) in [
            ("{".to_owned(), "EOF"),
            ("[]".to_owned(), "no number `schema`"),
            (good.replace("\"schema\":1", "\"schema\":2"), "its layout is 2, and this version reads 1"),
            (good.replace("\"schema\":1", "\"schema\":1,\"extra\":0"), "extra"),
            (good.replace("\"golden\":[]", &many), "65 golden prompts"),
            (good.replace(hash.as_str(), "abc"), "the hash of model.safetensors is `abc`"),
        ] {
            fs_err::write(here.path().join(CONTRACT_FILE), text).unwrap();
            let error = Contract::read(here.path()).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.to_string().contains(CONTRACT_FILE), "{error}");
        }
    }
}
