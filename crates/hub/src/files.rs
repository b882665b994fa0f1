//! The files of a model folder.

use crate::error::ForeignKind;
use crate::{Error, Fingerprint, HashCache, Result, ShardIndex, gguf};
use std::path::{Path, PathBuf};
use taper_diagnostics::TextSource;

/// The longest `config.json` that is hashed.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The files of a model folder, all of them there; or of a GGUF file, which holds what the others would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The folder.
    pub root: PathBuf,
    /// `config.json`.
    pub config: TextSource,
    /// The safetensors files, sorted by name. Empty for a folder that only describes a model, which is what training from the start takes,
    /// and for a GGUF file.
    pub weights: Vec<PathBuf>,
    /// The GGUF file that the weights are in and the texts were made from.
    pub gguf: Option<PathBuf>,
    /// `model.safetensors.index.json`, when the weights are sharded.
    pub index: Option<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: Option<TextSource>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<TextSource>,
    /// `chat_template.jinja`.
    pub chat_template: Option<TextSource>,
    /// `generation_config.json`.
    pub generation_config: Option<TextSource>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<TextSource>,
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
    /// The files of a folder; one without `config.json` that holds a single GGUF file is that file.
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
            path.is_file().then(|| TextSource::file(path))
        };
        let Some(config) = at("config.json") else {
            let found: Vec<String> = names.iter().filter(|name| gguf::is_gguf_name(name)).cloned().collect();
            return match found.as_slice() {
                [] => Err(Error::NotAModel { root: root.into(), found: names }),
                [one] => Self::of_gguf(&root.join(one)),
                _ => Err(Error::SeveralGguf { root: root.into(), found }),
            };
        };
        let (weights, index) = weights_in(root, &names)?;
        Ok(Self {
            root: root.into(),
            config,
            weights,
            gguf: None,
            index,
            tokenizer: at("tokenizer.json"),
            tokenizer_config: at("tokenizer_config.json"),
            chat_template: at("chat_template.jinja"),
            generation_config: at("generation_config.json"),
            special_tokens_map: at("special_tokens_map.json"),
        })
    }

    /// A GGUF file, with the texts of a folder made from its metadata.
    ///
    /// # Errors
    /// When it is not there or broken, or what it holds is not supported.
    pub fn of_gguf(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::NoGguf { path: path.into() });
        }
        let texts = gguf::read_companions(path)?;
        let made = |text: String| TextSource::made(path, text);
        Ok(Self {
            root: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            config: made(texts.config),
            weights: Vec::new(),
            gguf: Some(path.into()),
            index: None,
            tokenizer: texts.tokenizer.map(made),
            tokenizer_config: texts.tokenizer_config.map(made),
            chat_template: None,
            generation_config: texts.generation_config.map(made),
            special_tokens_map: None,
        })
    }

    /// What stands in a file of this name beside the weights, where it is one of those that are read.
    pub fn companion(&self, name: &str) -> Option<&TextSource> {
        match name {
            "config.json" => Some(&self.config),
            "tokenizer.json" => self.tokenizer.as_ref(),
            "tokenizer_config.json" => self.tokenizer_config.as_ref(),
            "chat_template.jinja" => self.chat_template.as_ref(),
            "generation_config.json" => self.generation_config.as_ref(),
            "special_tokens_map.json" => self.special_tokens_map.as_ref(),
            _ => None,
        }
    }

    /// The weight files, of which there must be one. A GGUF file is not among them: see [`Self::gguf`].
    ///
    /// # Errors
    /// When the folder holds no weights.
    pub fn require_weights(&self) -> Result<&[PathBuf]> {
        if self.weights.is_empty() {
            return Err(Error::NoWeights { root: self.root.clone() });
        }
        Ok(&self.weights)
    }

    /// The fingerprint of the weights and `config.json`, or of the GGUF file: equal for equal models, wherever they lie.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        self.fingerprint_with(None)
    }

    /// [`Self::fingerprint`], with the hashes of files that are known from before.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint_with(&self, cache: Option<&HashCache>) -> Result<Fingerprint> {
        if let Some(gguf) = &self.gguf {
            return Fingerprint::of_file_with(gguf, cache);
        }
        let mut files = self.weights.clone();
        files.push(self.config.path().to_owned());
        Fingerprint::of_files_with(&files, cache)
    }

    /// The files that hold the weights: those of the folder, or the GGUF file.
    pub fn weight_files(&self) -> &[PathBuf] {
        self.gguf.as_ref().map_or(&self.weights, std::slice::from_ref)
    }

    /// The fingerprint of `config.json` alone: what a model of random weights is made from.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn config_fingerprint(&self) -> Result<Fingerprint> {
        Ok(Fingerprint::of_bytes(&self.config.read(MAX_CONFIG_BYTES)?))
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
        assert_eq!(files.tokenizer, Some(here.path().join("tokenizer.json").into()));
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
        let error = refused(&[("config.json", "{}"), ("m.gguf", "")]);
        assert!(error.to_string().contains("are GGUF files only: `m.gguf`"), "{error}");
        assert!(error.hint().unwrap().contains("name the file itself, for example `"), "{error:?}");
    }

    #[test]
    fn one_gguf_file_alone_is_the_model_and_several_are_listed() {
        let error = refused(&[("a.gguf", ""), ("b.GGUF", ""), ("README.md", "")]);
        assert!(error.to_string().ends_with("holds 2 GGUF files: `a.gguf`, `b.GGUF`"), "{error}");
        assert!(error.hint().unwrap().contains("a.gguf`"), "{error:?}");
        let error = refused(&[("a.gguf", "")]);
        assert!(matches!(&error, Error::Gguf { path, .. } if path.ends_with("a.gguf")), "{error}");

        let golden = taper_testkit::golden("gguf/llama_q8_0.gguf");
        let here = folder(&[]);
        fs_err::copy(&golden, here.path().join("m.gguf")).unwrap();
        let files = ModelFiles::of_folder(here.path()).unwrap();
        assert_eq!(files.gguf, Some(here.path().join("m.gguf")));
        assert!(files.weights.is_empty() && files.companion("LICENSE").is_none());
        assert_eq!(files.fingerprint().unwrap(), Fingerprint::of_file(&golden).unwrap());
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            let text = files.companion(name).unwrap().read(1 << 20).unwrap();
            assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap().is_object(), "{name}");
        }
        let error = ModelFiles::of_gguf(&here.path().join("other.gguf")).unwrap_err();
        assert!(error.to_string().starts_with("no file `"), "{error}");
    }

    #[test]
    fn a_folder_without_weights_is_good_until_weights_are_wanted() {
        let here = folder(&[("config.json", "{}")]);
        let files = ModelFiles::of_folder(here.path()).unwrap();
        assert!(files.weights.is_empty());
        assert!(matches!(files.require_weights(), Err(Error::NoWeights { .. })));
    }
}
