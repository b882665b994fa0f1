//! What can be wrong with a model reference or its files.

use crate::IndexError;
use crate::gguf::GgufError;
use std::io;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Diagnose, ExitCode, Location, list_names};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a model reference or its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is neither a folder nor a hub id.
    #[error("`{given}` is neither a folder nor a hub id `owner/name`")]
    NotASource {
        /// What the user gave.
        given: String,
    },
    /// A GGUF file cannot be read as a model.
    #[error("cannot read `{}`", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// The GGUF file does not exist.
    #[error("no file `{}`", path.display())]
    NoGguf {
        /// The path.
        path: PathBuf,
    },
    /// Several GGUF files and nothing that says which.
    #[error("`{}` holds {} GGUF files: {}", root.display(), found.len(), list_names(found, 8))]
    SeveralGguf {
        /// The folder.
        root: PathBuf,
        /// Names of the files.
        found: Vec<String>,
    },
    /// A file was given where a folder or a GGUF file is wanted.
    #[error("`{}` is a file, and a base model is a folder or a GGUF file", path.display())]
    FileNotFolder {
        /// The file.
        path: PathBuf,
    },
    /// A revision was given for a folder.
    #[error("`revision` is `{revision}`, but `{}` is a folder, and a folder has no revisions", root.display())]
    RevisionOfFolder {
        /// The folder.
        root: PathBuf,
        /// The revision given.
        revision: String,
    },
    /// A revision was given for a file on the disk.
    #[error("`revision` is `{revision}`, but `{}` is a file, and a file has no revisions", path.display())]
    RevisionOfFile {
        /// The file.
        path: PathBuf,
        /// The revision given.
        revision: String,
    },
    /// Two revisions were given.
    #[error("`{id}` names the revision `{in_id}`, and `revision` names `{beside}`")]
    TwoRevisions {
        /// The hub id.
        id: String,
        /// The revision behind the `@`.
        in_id: String,
        /// The revision given beside it.
        beside: String,
    },
    /// The folder does not exist.
    #[error("no folder `{}`", root.display())]
    NoFolder {
        /// The path.
        root: PathBuf,
    },
    /// The folder is not a model.
    #[error("`{}` is not a model folder: it has no `config.json`; it holds {}", root.display(), shown(found))]
    NotAModel {
        /// The folder.
        root: PathBuf,
        /// Names of what lies in it.
        found: Vec<String>,
    },
    /// The weights are in a format that is not read.
    #[error("the weights of `{}` are {kind} only: {}", root.display(), list_names(found, 6))]
    ForeignWeights {
        /// The folder or hub id.
        root: PathBuf,
        /// What they are.
        kind: ForeignKind,
        /// Names of the files.
        found: Vec<String>,
    },
    /// A `config.json` without any weights where weights are needed.
    #[error("`{}` has a `config.json` but no weights", root.display())]
    NoWeights {
        /// The folder.
        root: PathBuf,
    },
    /// Several safetensors files and no index that says what they are.
    #[error("`{}` holds {} safetensors files and no `model.safetensors.index.json`: {}", root.display(), found.len(), list_names(found, 6))]
    NoIndex {
        /// The folder.
        root: PathBuf,
        /// Names of the files.
        found: Vec<String>,
    },
    /// Shards that the index names are absent.
    #[error("`{}` lacks {} that its index names: {}", root.display(), if missing.len() == 1 { "a shard" } else { "shards" }, list_names(missing, 6))]
    MissingShards {
        /// The folder.
        root: PathBuf,
        /// Names of the files.
        missing: Vec<String>,
    },
    /// The index is broken.
    #[error("cannot read `{}`", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        source: IndexError,
    },
    /// The model is not in the cache, and the network must not be used.
    #[error("`{id}` at revision `{revision}` is not in the cache `{}`, and the hub must not be asked: offline mode is on", cache.display())]
    Offline {
        /// The hub id.
        id: String,
        /// The revision.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The hub refused or could not be reached.
    #[error("cannot fetch {what} of `{id}` at revision `{revision}`")]
    Fetch {
        /// The hub id.
        id: String,
        /// The revision.
        revision: String,
        /// What was fetched: a file, or the list of files.
        what: String,
        /// What the client said.
        source: Box<hf_hub::api::sync::ApiError>,
    },
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A format of weights that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignKind {
    /// Python pickles, which run code when they are read.
    Pickle,
    /// GGUF.
    Gguf,
}

impl std::fmt::Display for ForeignKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pickle => "Python pickles",
            Self::Gguf => "GGUF files",
        })
    }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotASource { .. } => {
                "write `./name` for a folder, or a hub id such as `HuggingFaceTB/SmolLM2-135M`".into()
            }
            Self::Gguf { source, .. } => return source.hint(),
            Self::ForeignWeights { root, kind: ForeignKind::Gguf, found } => name_one(root, found),
            Self::SeveralGguf { root, found } => name_one(root, found),
            Self::ForeignWeights { kind: ForeignKind::Pickle, .. } => {
                "pickles can run code when they are read, so they are not; take a revision with `.safetensors` files, or load the model once in \
                 Python and call `save_pretrained(folder, safe_serialization=True)`"
                    .into()
            }
            Self::FileNotFolder { path } => match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => format!("give its folder, `{}`", folder.display()),
                _ => "give its folder, `.`".into(),
            },
            Self::RevisionOfFolder { .. } | Self::RevisionOfFile { .. } => "leave `revision` out".into(),
            Self::TwoRevisions { .. } => "name the revision once".into(),
            Self::NoFolder { .. } | Self::NoGguf { .. } => "paths in a recipe are relative to the recipe file".into(),
            Self::NotAModel { .. } => {
                "a model folder has `config.json`, `tokenizer.json` and `.safetensors` files, or is one GGUF file; an adapter is not a base"
                    .into()
            }
            Self::NoWeights { .. } => "copy `model.safetensors` beside it, or train all weights from the start".into(),
            Self::NoIndex { .. } | Self::MissingShards { .. } | Self::Index { .. } => {
                "copy or download the folder again, all files of it".into()
            }
            Self::Offline { .. } => {
                "leave out `--offline` (or HF_HUB_OFFLINE), fill the cache on a machine with a network, or name a folder".into()
            }
            Self::Fetch { source, .. } => fetch_hint(&source.to_string()),
            Self::Io(_) => return None,
        })
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Index { path, .. } | Self::Gguf { path, .. } => Some(Location::file(path)),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::UserError
    }
}

/// The client gives the status in its text only.
fn fetch_hint(said: &str) -> String {
    if said.contains("401") || said.contains("403") {
        "the model may be private or want its licence accepted: accept it on its page and set HF_TOKEN"
    } else if said.contains("404") {
        "check the spelling of the id and the revision; a private model also looks absent without HF_TOKEN"
    } else {
        "check the network, or name a folder"
    }
    .into()
}

/// How to name one of a folder's or a hub id's files.
fn name_one(root: &Path, found: &[String]) -> String {
    let first = found.first().map_or("FILE.gguf", String::as_str);
    format!("name the file itself, for example `{}`", root.join(first).display())
}

fn shown(found: &[String]) -> String {
    if found.is_empty() { "nothing".into() } else { list_names(found, 8) }
}
