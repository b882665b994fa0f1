//! What a user may name as the base, and how it becomes files.

use crate::gguf::is_gguf_name;
use crate::section::is_revision;
use crate::{Error, ModelFiles, ModelSection, Result, fetch};
use std::fmt;
use std::path::{Path, PathBuf};

/// The branch where no revision is named.
const MAIN: &str = "main";

/// A model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder on the disk.
    Folder(PathBuf),
    /// A GGUF file on the disk.
    Gguf(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit; `None` for `main`.
        revision: Option<String>,
    },
    /// A GGUF file of a model on the hub.
    HubGguf {
        /// `owner/name`.
        id: String,
        /// The file's path in it.
        file: String,
        /// Branch, tag or commit; `None` for `main`.
        revision: Option<String>,
    },
}

/// How the hub may be used.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Never use the network.
    pub offline: bool,
    /// Access token for private or gated models; `None` for the one that `hf auth login` left in the cache.
    pub token: Option<String>,
    /// The folder `hub` of the cache, `~/.cache/huggingface/hub` when `None`.
    pub cache_dir: Option<PathBuf>,
    /// Another server than `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Draw progress bars on stderr.
    pub progress: bool,
}

/// Without the token, so that it never gets into a log.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("progress", &self.progress)
            .finish()
    }
}

impl HubOptions {
    /// What the variables of the Hub's own tools say: `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let on = |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        let home = || variable("HF_HOME").map(|home| Path::new(&home).join("hub"));
        Self {
            offline: variable("HF_HUB_OFFLINE").is_some_and(on),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()),
            cache_dir: variable("HF_HUB_CACHE").map(PathBuf::from).or_else(home),
            endpoint: variable("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_owned()),
            progress: false,
        }
    }
}

impl ModelSource {
    /// A folder, a GGUF file, `owner/name`, `owner/name/file.gguf`; the last two may end in `@revision`. A folder or file that exists goes
    /// before a hub id of the same spelling, and a path whose first folder exists before the file of a hub id.
    ///
    /// # Errors
    /// When it is none of these, or a file of another kind.
    pub fn parse(given: &str) -> Result<Self> {
        Self::parse_in(Path::new(""), given)
    }

    /// [`Self::parse`], with folders relative to `base`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_in(base: &Path, given: &str) -> Result<Self> {
        let path = base.join(given);
        if path.is_file() {
            return if is_gguf_name(given) {
                Ok(Self::Gguf(path))
            } else {
                Err(Error::FileNotFolder { path })
            };
        }
        if let Some(source) = hub_gguf(base, given).filter(|_| !path.is_dir()) {
            return Ok(source);
        }
        if is_gguf_name(given) && !path.is_dir() {
            return Ok(Self::Gguf(path));
        }
        if !given.trim().is_empty() && (path.is_dir() || looks_like_a_path(given)) {
            return Ok(Self::Folder(path));
        }
        match hub_id(given) {
            Some((id, revision)) => Ok(Self::Hub { id, revision }),
            None => Err(Error::NotASource { given: given.into() }),
        }
    }

    /// The source that a recipe's section names, with folders relative to the recipe's folder.
    ///
    /// # Errors
    /// As [`Self::parse`]; also for a revision of a folder, and two revisions of one id.
    pub fn of_section(section: &ModelSection, recipe_folder: &Path) -> Result<Self> {
        Self::parse_in(recipe_folder, &section.base)?.with_revision(section.revision.as_deref())
    }

    /// The same source at a revision, when one is given.
    ///
    /// # Errors
    /// When it is a folder, or names another revision itself.
    pub fn with_revision(self, given: Option<&str>) -> Result<Self> {
        let Some(given) = given else { return Ok(self) };
        match self {
            Self::Folder(root) => Err(Error::RevisionOfFolder { root, revision: given.into() }),
            Self::Hub { id, revision: Some(in_id) } if in_id != given => {
                Err(Error::TwoRevisions { id, in_id, beside: given.into() })
            }
            Self::Gguf(path) => Err(Error::RevisionOfFile { path, revision: given.into() }),
            Self::HubGguf { id, revision: Some(in_id), .. } if in_id != given => {
                Err(Error::TwoRevisions { id, in_id, beside: given.into() })
            }
            Self::Hub { id, .. } => Ok(Self::Hub { id, revision: Some(given.into()) }),
            Self::HubGguf { id, file, .. } => Ok(Self::HubGguf { id, file, revision: Some(given.into()) }),
        }
    }

    /// The files. A hub id is looked for in the cache and fetched when it is not there.
    ///
    /// # Errors
    /// When the folder is not a model, or the hub cannot or must not be asked.
    pub fn resolve(&self, options: &HubOptions) -> Result<ModelFiles> {
        match self {
            Self::Folder(root) => ModelFiles::of_folder(root),
            Self::Gguf(path) => ModelFiles::of_gguf(path),
            Self::Hub { id, revision } => fetch::resolve(id, revision.as_deref().unwrap_or(MAIN), options),
            Self::HubGguf { id, file, revision } => {
                fetch::resolve_gguf(id, file, revision.as_deref().unwrap_or(MAIN), options)
            }
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(root) => write!(f, "{}", root.display()),
            Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::HubGguf { id, file, revision: Some(revision) } => write!(f, "{id}/{file}@{revision}"),
            Self::HubGguf { id, file, revision: None } => write!(f, "{id}/{file}"),
            Self::Hub { id, revision: Some(revision) } => write!(f, "{id}@{revision}"),
            Self::Hub { id, revision: None } => f.write_str(id),
        }
    }
}

/// `owner/name/file.gguf[@revision]`, unless `owner` is a folder here: then it is a path to a file that is missing.
fn hub_gguf(base: &Path, given: &str) -> Option<ModelSource> {
    let (path, revision) = match given.split_once('@') {
        Some((path, revision)) => (path, Some(revision)),
        None => (given, None),
    };
    let (owner, rest) = path.split_once('/')?;
    let (name, file) = rest.split_once('/')?;
    let plain =
        file.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\\'));
    if !is_gguf_name(file) || !plain || base.join(owner).is_dir() {
        return None;
    }
    let (id, none) = hub_id(&format!("{owner}/{name}"))?;
    let revision = match revision {
        Some(revision) => Some(is_revision(revision).then(|| revision.to_owned())?),
        None => none,
    };
    Some(ModelSource::HubGguf { id, file: file.to_owned(), revision })
}

fn looks_like_a_path(given: &str) -> bool {
    given.starts_with(['.', '/', '~'])
        || given.ends_with('/')
        || given.contains('\\')
        || given.chars().filter(|&c| c == '/').count() > 1 && !given.contains('@')
        || Path::new(given).is_absolute()
}

/// `owner/name[@revision]` in the Hub's alphabet.
fn hub_id(given: &str) -> Option<(String, Option<String>)> {
    let (id, revision) = match given.split_once('@') {
        Some((id, revision)) if is_revision(revision) => (id, Some(revision.to_owned())),
        Some(_) => return None,
        None => (given, None),
    };
    let (owner, name) = id.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (plain(owner) && plain(name)).then(|| (id.to_owned(), revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub { id: id.into(), revision: revision.map(str::to_owned) }
    }

    #[test]
    fn references_are_told_apart() {
        let parse = |given| ModelSource::parse(given).unwrap();
        assert_eq!(parse("HuggingFaceTB/SmolLM2-135M"), hub("HuggingFaceTB/SmolLM2-135M", None));
        assert_eq!(parse("Qwen/Qwen2.5-0.5B@refs/pr/1"), hub("Qwen/Qwen2.5-0.5B", Some("refs/pr/1")));
        for path in ["./base", "../base", "/no/such", "bases/", "a/b/c", "~/x", "..\\x"] {
            assert_eq!(parse(path), ModelSource::Folder(path.into()), "{path}");
        }
        for wrong in ["gpt2", "", " ", "a b/c", "a/b@..", "a--b/c", "-a/b", "a/b@"] {
            assert!(matches!(ModelSource::parse(wrong), Err(Error::NotASource { .. })), "{wrong}");
        }
    }

    #[test]
    fn gguf_files_are_told_from_folders_and_hub_ids() {
        let here = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(here.path().join("models/tiny")).unwrap();
        fs_err::create_dir_all(here.path().join("folder.gguf")).unwrap();
        fs_err::write(here.path().join("m.gguf"), b"").unwrap();
        let parse = |given| ModelSource::parse_in(here.path(), given).unwrap();
        for path in
            ["m.gguf", "x/model.Q4_0.GGUF", "./a/b/c.gguf", "models/tiny/absent.gguf", "/no/such/file.gguf"]
        {
            assert_eq!(parse(path), ModelSource::Gguf(here.path().join(path)), "{path}");
        }
        assert_eq!(parse("folder.gguf"), ModelSource::Folder(here.path().join("folder.gguf")));
        let on_hub = |file: &str, revision: Option<&str>| ModelSource::HubGguf {
            id: "owner/name-GGUF".into(),
            file: file.into(),
            revision: revision.map(str::to_owned),
        };
        for (given, source) in [
            ("owner/name-GGUF/m.Q4_K_M.gguf", on_hub("m.Q4_K_M.gguf", None)),
            ("owner/name-GGUF/q4/m.gguf@refs/pr/1", on_hub("q4/m.gguf", Some("refs/pr/1"))),
        ] {
            assert_eq!(parse(given), source);
            assert_eq!(source.to_string(), given);
        }
        assert_eq!(on_hub("m.gguf", None).with_revision(Some("v1")).unwrap(), on_hub("m.gguf", Some("v1")));
        let two = on_hub("m.gguf", Some("v2")).with_revision(Some("v1"));
        assert!(matches!(two, Err(Error::TwoRevisions { .. })));
        let file = parse("m.gguf").with_revision(Some("v1")).unwrap_err();
        assert!(file.to_string().ends_with("is a file, and a file has no revisions"), "{file}");
        assert!(matches!(parse("x.gguf").resolve(&HubOptions::default()), Err(Error::NoGguf { .. })));
    }

    #[test]
    fn a_folder_that_exists_goes_before_a_hub_id() {
        let here = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(here.path().join("owner/name")).unwrap();
        fs_err::write(here.path().join("file"), b"").unwrap();
        let source = ModelSource::parse_in(here.path(), "owner/name").unwrap();
        assert_eq!(source, ModelSource::Folder(here.path().join("owner/name")));
        assert_eq!(ModelSource::parse_in(here.path(), "owner/other").unwrap(), hub("owner/other", None));
        assert!(matches!(ModelSource::parse_in(here.path(), "file"), Err(Error::FileNotFolder { .. })));
    }

    #[test]
    fn a_revision_is_named_once_and_only_for_a_hub_id() {
        let section = |base: &str, revision: &str| ModelSection {
            base: base.into(),
            revision: Some(revision.into()),
            ..ModelSection::default()
        };
        let of = |base, revision| ModelSource::of_section(&section(base, revision), Path::new("r"));
        assert_eq!(of("a/b", "v1").unwrap(), hub("a/b", Some("v1")));
        assert_eq!(of("a/b@v1", "v1").unwrap(), hub("a/b", Some("v1")));
        assert!(matches!(of("a/b@v2", "v1"), Err(Error::TwoRevisions { .. })));
        assert!(matches!(of("./a", "v1"), Err(Error::RevisionOfFolder { .. })));
    }

    #[test]
    fn the_hubs_variables_are_honoured() {
        let options = HubOptions::from_variables(|name| {
            Some(match name {
                "HF_HUB_OFFLINE" => "TRUE".into(),
                "HF_HOME" => "/h".into(),
                "HF_TOKEN" => " secret\n".into(),
                "HF_ENDPOINT" => "http://mirror/".into(),
                _ => return None,
            })
        });
        assert!(options.offline);
        assert_eq!(options.cache_dir.as_deref(), Some(Path::new("/h/hub")));
        assert_eq!(options.token.as_deref(), Some("secret"));
        assert_eq!(options.endpoint.as_deref(), Some("http://mirror"));
        assert!(!format!("{options:?}").contains("secret"));
    }
}
