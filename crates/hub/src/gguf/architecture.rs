//! The architectures of GGUF files that are read.

use super::metadata::required;
use super::{GgufError, Header, Metadata};

/// The most blocks, as for a `config.json`; the deepest models have some hundred.
const MAX_BLOCKS: usize = 1 << 12;

/// An architecture, by `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and Mistral.
    Llama,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its text part.
    Gemma3,
    /// Phi 3, 3.5 and 4.
    Phi3,
    /// OLMo 2.
    Olmo2,
    /// Granite 3 without experts.
    Granite,
}

impl Architecture {
    /// All that are read.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Olmo2,
        Self::Granite,
    ];

    /// The name in a file, which is also the beginning of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::Granite => "granite",
        }
    }

    /// The architecture of a file that holds a whole model.
    ///
    /// # Errors
    /// When it holds an adapter or a part of a model, or the architecture is not read.
    pub fn of(header: &Header) -> Result<Self, GgufError> {
        let metadata = &header.metadata;
        // `general.type` is absent in files from before 2024.
        match metadata.text("general.type")? {
            None | Some("model") => {}
            Some("adapter") => return Err(GgufError::NotAModel { what: "an adapter".into() }),
            Some("mmproj") => {
                return Err(GgufError::NotAModel { what: "the projector of a model that sees".into() });
            }
            Some(other) => {
                return Err(GgufError::NotAModel { what: format!("a `{}`", super::shown(other)) });
            }
        }
        let key = "general.architecture";
        let given = required(metadata.text(key)?, key, "the architecture's name")?;
        let unknown = |given: String| GgufError::Architecture {
            given,
            known: Self::ALL.iter().map(|known| known.name().to_owned()).collect(),
        };
        let Some(found) = Self::ALL.into_iter().find(|known| known.name() == given) else {
            return Err(unknown(super::shown(given)));
        };
        // Mixtral and Granite MoE of an early converter carry the names of their dense kin.
        if found != Self::Qwen3Moe && found.size(metadata, "expert_count")?.is_some_and(|n| n > 0) {
            return Err(unknown(format!("{given} with experts")));
        }
        Ok(found)
    }

    /// The full key of what the architecture's own part of the metadata calls `key`.
    pub fn key(self, key: &str) -> String {
        format!("{}.{key}", self.name())
    }

    pub(super) fn size(self, metadata: &Metadata, key: &str) -> Result<Option<u64>, GgufError> {
        metadata.uniform_size(&self.key(key))
    }

    pub(super) fn number(self, metadata: &Metadata, key: &str) -> Result<Option<f64>, GgufError> {
        metadata.number(&self.key(key))
    }

    /// A size that must be there and not be 0; no model has one over 2^32.
    pub(super) fn required_size(self, metadata: &Metadata, key: &str) -> Result<usize, GgufError> {
        let full = self.key(key);
        let size = required(metadata.uniform_size(&full)?, &full, "a whole number")?;
        match usize::try_from(size) {
            Ok(size) if (1..=u32::MAX as usize).contains(&size) => Ok(size),
            _ => Err(GgufError::Value {
                key: full,
                expected: "a whole number from 1 to 4294967295".into(),
                given: size.to_string(),
            }),
        }
    }

    /// The number of blocks. What is made for each of them is as long as a hostile file says, so that there is a limit.
    pub(super) fn blocks(self, metadata: &Metadata) -> Result<usize, GgufError> {
        let key = "block_count";
        let blocks = self.required_size(metadata, key)?;
        if blocks > MAX_BLOCKS {
            return Err(GgufError::Value {
                key: self.key(key),
                expected: format!("a whole number from 1 to {MAX_BLOCKS}"),
                given: blocks.to_string(),
            });
        }
        Ok(blocks)
    }

    /// Whether the converter put the rows of queries and keys in pairs, for a rotary embedding that turns neighbours.
    ///
    /// Source: `LlamaModel.permute` and the classes that inherit it in llama.cpp's converter; OLMo 2 does not.
    pub fn pairs_rotary_rows(self) -> bool {
        matches!(self, Self::Llama | Self::Granite)
    }

    /// Whether the converter added 1 to the weights of norms. Source: `GemmaModel` and its kin in llama.cpp's converter.
    pub fn adds_one_to_norms(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}
