//! `model.safetensors.index.json`: which shard holds which tensor.

use crate::unique::UniqueMap;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Which shard holds which tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// The shard's file name of every tensor.
    pub weight_map: BTreeMap<String, String>,
}

/// What can be wrong with an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not JSON of the right shape.
    #[error("not an index of shards: {0}")]
    Json(#[from] serde_json::Error),
    /// A shard that is not a plain file name could lie anywhere on the disk.
    #[error("tensor `{}` is said to lie in `{}`, which is no plain `.safetensors` file name", tensor.escape_debug(), shard.escape_debug())]
    NotAPlainName {
        /// The tensor.
        tensor: String,
        /// What the index names.
        shard: String,
    },
    /// Nothing is named.
    #[error("`weight_map` names no tensor")]
    Empty,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<String>,
}

impl ShardIndex {
    /// Read an index. The shards are plain names of files in the index's own folder.
    ///
    /// # Errors
    /// When it is not JSON with a `weight_map`, a tensor is named twice, or a shard's name has a folder in it.
    pub fn parse(text: &str) -> Result<Self, IndexError> {
        let raw: RawIndex = serde_json::from_str(text)?;
        let weight_map = raw.weight_map.0;
        if weight_map.is_empty() {
            return Err(IndexError::Empty);
        }
        match weight_map.iter().find(|(_, shard)| !is_plain_name(shard)) {
            Some((tensor, shard)) => {
                Err(IndexError::NotAPlainName { tensor: tensor.clone(), shard: shard.clone() })
            }
            None => Ok(Self { weight_map }),
        }
    }

    /// The names of the shards, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

fn is_plain_name(name: &str) -> bool {
    name.strip_suffix(".safetensors").is_some_and(|stem| !stem.is_empty())
        && !name.starts_with('.')
        && name.chars().all(|c| !c.is_control() && !matches!(c, '/' | '\\' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shards_are_listed_once_each() {
        let index =
            ShardIndex::parse(r#"{"metadata":{"total_size":4},"weight_map":{"b":"2.safetensors","a":"1.safetensors","c":"2.safetensors"}}"#).unwrap();
        assert_eq!(index.shards().into_iter().collect::<Vec<_>>(), ["1.safetensors", "2.safetensors"]);
    }

    #[test]
    fn shards_outside_the_folder_are_refused() {
        let names = [
            "../a.safetensors",
            "/etc/a.safetensors",
            "d/a.safetensors",
            "..",
            "C:a.safetensors",
            "..\\\\a.safetensors",
            ".safetensors",
            "a.bin",
            "a\\u0000.safetensors",
        ];
        for name in names {
            let error = ShardIndex::parse(&format!(r#"{{"weight_map":{{"w":"{name}"}}}}"#)).unwrap_err();
            assert!(matches!(error, IndexError::NotAPlainName { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn a_tensor_named_twice_is_refused() {
        let text = r#"{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}"#;
        assert!(ShardIndex::parse(text).unwrap_err().to_string().contains("`w` is named twice"));
        assert!(matches!(ShardIndex::parse(r#"{"weight_map":{}}"#), Err(IndexError::Empty)));
        assert!(ShardIndex::parse("{}").unwrap_err().to_string().contains("weight_map"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC*") {
            let _ = ShardIndex::parse(&text);
        }

        #[test]
        fn what_is_accepted_stays_in_the_folder(name in "[a-z./\\\\:]{0,12}(\\.safetensors)?") {
            let text = serde_json::json!({"weight_map": {"w": name}}).to_string();
            if ShardIndex::parse(&text).is_ok() {
                let path = std::path::Path::new(&name);
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            }
        }
    }
}
