//! Ranks and scales of modules by the patterns of a configuration.

use crate::targets::Pattern;
use crate::{AdapterConfig, Result};

/// The patterns of one configuration, compiled once for all modules of a model.
pub(crate) struct Sizes<'a> {
    config: &'a AdapterConfig,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl<'a> Sizes<'a> {
    pub(crate) fn new(config: &'a AdapterConfig) -> Result<Self> {
        Ok(Self {
            config,
            ranks: compiled("rank_pattern", &config.rank_pattern)?,
            alphas: compiled("alpha_pattern", &config.alpha_pattern)?,
        })
    }

    /// The rank of the module at `path`.
    pub(crate) fn rank_of(&self, path: &str) -> Result<usize> {
        Ok(first_match(&self.ranks, path)?.unwrap_or(self.config.r))
    }

    /// The numerator of the scale of the module at `path`.
    pub(crate) fn alpha_of(&self, path: &str) -> Result<f64> {
        Ok(first_match(&self.alphas, path)?.unwrap_or(self.config.lora_alpha))
    }

    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA, of the module at `path`.
    pub(crate) fn scale_of(&self, path: &str) -> Result<f64> {
        let (rank, alpha) = (self.rank_of(path)? as f64, self.alpha_of(path)?);
        Ok(alpha / if self.config.use_rslora { rank.sqrt() } else { rank })
    }
}

fn compiled<T: Copy>(key: &'static str, patterns: &[(String, T)]) -> Result<Vec<(Pattern, T)>> {
    patterns.iter().map(|(pattern, value)| Ok((Pattern::suffix(key, pattern)?, *value))).collect()
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}
