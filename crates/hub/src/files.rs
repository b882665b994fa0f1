//! The files of a model folder.

use crate::error::ForeignKind;
use crate::{Error, Fingerprint, Result, ShardIndex};
use std::path::{Path, PathBuf};

/// The files of a model folder, all of them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The folder.
    pub root: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// The safetensors files, sorted by name. Empty for a folder that only describes a model, which is what training from the start takes.
    pub weights: Vec<PathBuf>,
    /// `model.safetensors.index.json`, when the weights are sharded.
    pub index: Option<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<PathBuf>,
}

/// The file that a folder with one shard has.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The file that names the shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What is taken beside the weights.
pub(crate) const COMPANIONS: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
];

impl ModelFiles {
    /// The files of a folder.
    ///
    /// # Errors
    /// When there is no `config.json`, the weights are of a format that is not read, or the shards do not fit their index.
    pub fn of_folder(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::NoFolder { root: root.into() });
        }
        let names = names_in(root)?;
        let at = |name: &str| {
            let path = root.join(name);
            path.is_file().then_some(path)
        };
        let Some(config) = at("config.json") else {
            return Err(match foreign(&names) {
                Some((ForeignKind::Gguf, found)) => {
                    Error::ForeignWeights { root: root.into(), kind: ForeignKind::Gguf, found }
                }
                _ => Error::NotAModel { root: root.into(), found: names },
            });
        };
        let (weights, index) = weights_in(root, &names)?;
        Ok(Self {
            root: root.into(),
            config,
            weights,
            index,
            tokenizer: at("tokenizer.json"),
            tokenizer_config: at("tokenizer_config.json"),
            chat_template: at("chat_template.jinja"),
            generation_config: at("generation_config.json"),
            special_tokens_map: at("special_tokens_map.json"),
        })
    }

    /// The weight files, of which there must be one.
    ///
    /// # Errors
    /// When the folder holds no weights.
    pub fn require_weights(&self) -> Result<&[PathBuf]> {
        if self.weights.is_empty() {
            return Err(Error::NoWeights { root: self.root.clone() });
        }
        Ok(&self.weights)
    }

    /// The fingerprint of the weights and `config.json`: equal for equal models, wherever they lie.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let mut files = self.weights.clone();
        files.push(self.config.clone());
        Fingerprint::of_files(&files)
    }
}

/// The weight files and the index, by the rules of transformers: the single file goes before the index.
fn weights_in(root: &Path, names: &[String]) -> Result<(Vec<PathBuf>, Option<PathBuf>)> {
    let has = |name: &str| root.join(name).is_file();
    if has(SINGLE) {
        return Ok((vec![root.join(SINGLE)], None));
    }
    if has(INDEX) {
        let path = root.join(INDEX);
        let index = read_index(&path)?;
        let missing: Vec<String> =
            index.shards().into_iter().filter(|shard| !has(shard)).map(str::to_owned).collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { root: root.into(), missing });
        }
        let shards = index.shards().into_iter().map(|shard| root.join(shard)).collect();
        return Ok((shards, Some(path)));
    }
    let found: Vec<String> = names
        .iter()
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter_"))
        .cloned()
        .collect();
    match (found.as_slice(), foreign(names)) {
        ([], Some((kind, found))) => Err(Error::ForeignWeights { root: root.into(), kind, found }),
        ([], None) => Ok((Vec::new(), None)),
        ([one], _) => Ok((vec![root.join(one)], None)),
        _ => Err(Error::NoIndex { root: root.into(), found }),
    }
}

pub(crate) fn read_index(path: &Path) -> Result<ShardIndex> {
    let text = fs_err::read_to_string(path)?;
    ShardIndex::parse(&text).map_err(|source| Error::Index { path: path.into(), source })
}

/// Weights of formats that are not read, pickles first.
pub(crate) fn foreign(names: &[String]) -> Option<(ForeignKind, Vec<String>)> {
    let ending = |endings: &[&str]| -> Vec<String> {
        names.iter().filter(|name| endings.iter().any(|end| name.ends_with(end))).cloned().collect()
    };
    let pickles = ending(&[".bin", ".pt", ".pth", ".ckpt"]);
    let gguf = ending(&[".gguf"]);
    match (pickles.is_empty(), gguf.is_empty()) {
        (false, _) => Some((ForeignKind::Pickle, pickles)),
        (true, false) => Some((ForeignKind::Gguf, gguf)),
        (true, true) => None,
    }
}

fn names_in(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_diagnostics::Diagnose;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs_err::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn refused(files: &[(&str, &str)]) -> Error {
        ModelFiles::of_folder(folder(files).path()).unwrap_err()
    }

    #[test]
    fn a_folder_gives_what_it_holds() {
        let here = folder(&[
            ("config.json", "{}"),
            (SINGLE, ""),
            ("tokenizer.json", "{}"),
            ("pytorch_model.bin", ""),
        ]);
        let files = ModelFiles::of_folder(here.path()).unwrap();
        assert_eq!(files.weights, [here.path().join(SINGLE)]);
        assert_eq!(files.tokenizer, Some(here.path().join("tokenizer.json")));
        assert_eq!((files.index, files.chat_template), (None, None));
    }

    #[test]
    fn shards_come_from_the_index_and_must_be_there() {
        let index = r#"{"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}}"#;
        let here = folder(&[
            ("config.json", "{}"),
            (INDEX, index),
            ("m-1.safetensors", ""),
            ("m-2.safetensors", ""),
        ]);
        let files = ModelFiles::of_folder(here.path()).unwrap();
        assert_eq!(files.weights, [here.path().join("m-1.safetensors"), here.path().join("m-2.safetensors")]);
        assert_eq!(files.index, Some(here.path().join(INDEX)));
        let error = refused(&[("config.json", "{}"), (INDEX, index), ("m-1.safetensors", "")]);
        assert!(
            error.to_string().contains("lacks a shard that its index names: `m-2.safetensors`"),
            "{error}"
        );
        let error = refused(&[("config.json", "{}"), ("m-1.safetensors", ""), ("m-2.safetensors", "")]);
        assert!(matches!(error, Error::NoIndex { .. }), "{error}");
    }

    #[test]
    fn what_is_not_a_model_is_refused_with_what_it_holds() {
        let error = refused(&[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")]);
        assert!(
            error
                .to_string()
                .contains("no `config.json`; it holds `adapter_config.json`, `adapter_model.safetensors`"),
            "{error}"
        );
        let error = refused(&[]);
        assert!(error.to_string().ends_with("it holds nothing"), "{error}");
        let error = ModelFiles::of_folder(Path::new("no/such/folder")).unwrap_err();
        assert_eq!(error.to_string(), "no folder `no/such/folder`");
    }

    #[test]
    fn pickles_and_gguf_are_refused_by_name_with_what_to_do() {
        let error = refused(&[("config.json", "{}"), ("pytorch_model.bin", "")]);
        assert!(error.to_string().contains("are Python pickles only: `pytorch_model.bin`"), "{error}");
        assert!(error.hint().unwrap().contains("safe_serialization"));
        for config in [&[("config.json", "{}"), ("m.gguf", "")][..], &[("m.gguf", "")]] {
            let error = refused(config);
            assert!(error.to_string().contains("are GGUF files only: `m.gguf`"), "{error}");
        }
    }

    #[test]
    fn a_folder_without_weights_is_good_until_weights_are_wanted() {
        let here = folder(&[("config.json", "{}")]);
        let files = ModelFiles::of_folder(here.path()).unwrap();
        assert!(files.weights.is_empty());
        assert!(matches!(files.require_weights(), Err(Error::NoWeights { .. })));
    }
}
