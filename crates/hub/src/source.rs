//! What a user may name as the base, and how it becomes files.

use crate::section::is_revision;
use crate::{Error, ModelFiles, ModelSection, Result, fetch};
use std::fmt;
use std::path::{Path, PathBuf};

/// A model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder on the disk.
    Folder(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/name`.
        id: String,
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
    /// A folder, or `owner/name`, or `owner/name@revision`. A folder that exists goes before a hub id of the same spelling.
    ///
    /// # Errors
    /// When it is none of these, a file, or a GGUF file.
    pub fn parse(given: &str) -> Result<Self> {
        Self::parse_in(Path::new(""), given)
    }

    /// [`Self::parse`], with folders relative to `base`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_in(base: &Path, given: &str) -> Result<Self> {
        let path = base.join(given);
        if given.to_lowercase().ends_with(".gguf") {
            return Err(Error::Gguf { given: given.into() });
        }
        if path.is_file() {
            return Err(Error::FileNotFolder { path });
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
            Self::Hub { id, .. } => Ok(Self::Hub { id, revision: Some(given.into()) }),
        }
    }

    /// The files. A hub id is looked for in the cache and fetched when it is not there.
    ///
    /// # Errors
    /// When the folder is not a model, or the hub cannot or must not be asked.
    pub fn resolve(&self, options: &HubOptions) -> Result<ModelFiles> {
        match self {
            Self::Folder(root) => ModelFiles::of_folder(root),
            Self::Hub { id, revision } => fetch::resolve(id, revision.as_deref().unwrap_or("main"), options),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(root) => write!(f, "{}", root.display()),
            Self::Hub { id, revision: Some(revision) } => write!(f, "{id}@{revision}"),
            Self::Hub { id, revision: None } => f.write_str(id),
        }
    }
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
        assert!(matches!(ModelSource::parse("x/model.Q4_0.GGUF"), Err(Error::Gguf { .. })));
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
