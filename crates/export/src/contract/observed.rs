//! What the files of a base say, for a contract to be made of or held against.

use super::{BaseFacts, FileFacts, SpecialToken, TemplateText, TokenizerFacts};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;
use taper_hub::{Fingerprint, HashCache, ModelFiles};
use taper_text::{ChatTemplate, Tokenizer};

/// The longest tokenizer.json that is hashed; one of 262k entries takes 34 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The longest `config.json`.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A base and how it reads text, as it is about to be used.
#[derive(Debug, Clone, Copy)]
pub struct BaseInUse<'a> {
    /// How the user named it.
    pub name: &'a str,
    /// Its files.
    pub files: &'a ModelFiles,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template that is used with it.
    pub template: Option<&'a ChatTemplate>,
    /// Hashes that are known from before.
    pub hashes: Option<&'a HashCache>,
}

impl BaseInUse<'_> {
    /// What a contract holds of the base; `quantized` says what the weights are quantised to while they are loaded.
    ///
    /// # Errors
    /// When a file cannot be read, or the folder holds no weights.
    pub fn base_facts(&self, quantized: Option<String>) -> Result<BaseFacts> {
        let mut weights = Vec::new();
        for path in self.files.weight_files() {
            weights.push(file_facts(path, self.hashes)?);
        }
        weights.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(BaseFacts { name: self.name.to_owned(), weights, config: self.config()?, quantized })
    }

    /// What a contract holds of the tokenizer.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn tokenizer_facts(&self) -> Result<TokenizerFacts> {
        let sha256 = match &self.files.tokenizer {
            Some(source) => {
                let read = |error| Error::Read { path: source.path().into(), source: error };
                Fingerprint::of_bytes(&source.read(MAX_TOKENIZER_BYTES).map_err(read)?)
            }
            None => Fingerprint::of_bytes(b""),
        };
        let tokenizer = self.tokenizer;
        let special = |(name, content): (&String, &Value)| {
            let content = content.as_str()?.to_owned();
            Some((name.clone(), SpecialToken { id: tokenizer.id(&content), content }))
        };
        let stop_ids = match self.template {
            Some(template) => template.stop_ids(tokenizer),
            None => tokenizer.eos_ids().to_vec(),
        };
        Ok(TokenizerFacts {
            sha256,
            vocab_size: tokenizer.vocab_size(),
            special_tokens: tokenizer.special_tokens().iter().filter_map(special).collect(),
            adds_bos: tokenizer.adds_bos(),
            stop_ids,
        })
    }

    /// The chat template as text.
    pub fn template_text(&self) -> Option<TemplateText> {
        let source = self.template?.source().to_owned();
        Some(TemplateText { sha256: Fingerprint::of_bytes(source.as_bytes()), source })
    }

    pub(super) fn config(&self) -> Result<Map<String, Value>> {
        let source = &self.files.config;
        let bytes = source
            .read(MAX_CONFIG_BYTES)
            .map_err(|error| Error::Read { path: source.path().into(), source: error })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Config { path: source.path().into(), reason: error.to_string() })
    }
}

/// A file's name, length and hash.
///
/// # Errors
/// When it cannot be read.
pub(super) fn file_facts(path: &Path, hashes: Option<&HashCache>) -> Result<FileFacts> {
    let read = |source| Error::Read { path: path.into(), source };
    let bytes = fs_err::metadata(path).map_err(read)?.len();
    let sha256 = Fingerprint::of_file_with(path, hashes).map_err(Error::Files)?;
    Ok(FileFacts { file: name_of(path), bytes, sha256 })
}

impl FileFacts {
    /// Those of a file on the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path, hashes: Option<&HashCache>) -> Result<Self> {
        file_facts(path, hashes)
    }
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
