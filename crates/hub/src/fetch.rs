//! A hub id to files in the cache that the Hub's own tools share.

use crate::error::ForeignKind;
use crate::files::{COMPANIONS, INDEX, SINGLE, foreign, read_index};
use crate::{Error, HubOptions, ModelFiles, Result};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::PathBuf;

/// The files of `id` at `revision`: from the cache when it holds config, weights and tokenizer, else fetched.
///
/// A branch that lies in the cache is not looked up again; a run that must follow it names its new commit.
pub(crate) fn resolve(id: &str, revision: &str, options: &HubOptions) -> Result<ModelFiles> {
    let cache = cache(options);
    let cached = cached_folder(&cache, id, revision).map(|root| ModelFiles::of_folder(&root));
    match cached {
        Some(Ok(files)) if !files.weights.is_empty() && (files.tokenizer.is_some() || options.offline) => {
            return Ok(files);
        }
        Some(Err(error)) if options.offline => return Err(error),
        _ => {}
    }
    if options.offline {
        return Err(Error::Offline { id: id.into(), revision: revision.into(), cache: cache.path().clone() });
    }
    let root = Fetcher::new(id, revision, &cache, options)?.fetch()?;
    ModelFiles::of_folder(&root)
}

/// The GGUF file `file` of `id` at `revision`: from the cache, else fetched. Nothing else of the model is.
pub(crate) fn resolve_gguf(id: &str, file: &str, revision: &str, options: &HubOptions) -> Result<ModelFiles> {
    let cache = cache(options);
    let named = cache.repo(repo(id, revision));
    let of_commit = named.pointer_path(revision).join(file);
    let cached = named.get(file).or_else(|| of_commit.is_file().then_some(of_commit));
    if let Some(path) = cached {
        return ModelFiles::of_gguf(&path);
    }
    if options.offline {
        let id = format!("{id}/{file}");
        return Err(Error::Offline { id, revision: revision.into(), cache: cache.path().clone() });
    }
    ModelFiles::of_gguf(&Fetcher::new(id, revision, &cache, options)?.fetch_file(file)?)
}

fn cache(options: &HubOptions) -> Cache {
    match &options.cache_dir {
        Some(folder) => Cache::new(folder.clone()),
        None => Cache::from_env(),
    }
}

/// The snapshot of a branch, tag or commit in the cache.
fn cached_folder(cache: &Cache, id: &str, revision: &str) -> Option<PathBuf> {
    let named = cache.repo(repo(id, revision));
    if let Some(config) = named.get("config.json") {
        return config.parent().map(PathBuf::from);
    }
    // A commit that other tools fetched has no ref of its own.
    let snapshot = named.pointer_path(revision);
    snapshot.join("config.json").is_file().then_some(snapshot)
}

fn repo(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.into(), RepoType::Model, revision.into())
}

struct Fetcher<'a> {
    id: &'a str,
    revision: &'a str,
    cache: &'a Cache,
    api: Api,
}

impl<'a> Fetcher<'a> {
    fn new(id: &'a str, revision: &'a str, cache: &'a Cache, options: &HubOptions) -> Result<Self> {
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_progress(options.progress)
            .with_retries(3)
            .with_user_agent("taper", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = &options.token {
            builder = builder.with_token(Some(token.clone()));
        }
        let api = builder.build().map_err(|e| failed(id, revision, "the list of files", e))?;
        Ok(Self { id, revision, cache, api })
    }

    fn failed(&self, what: &str, error: ApiError) -> Error {
        failed(self.id, self.revision, what, error)
    }

    /// All files from one commit, even when the branch moves meanwhile. Gives the snapshot's folder.
    fn fetch(&self) -> Result<PathBuf> {
        let info = self
            .api
            .repo(repo(self.id, self.revision))
            .info()
            .map_err(|e| self.failed("the list of files", e))?;
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let has = |name: &str| names.iter().any(|n| n == name);
        if !has("config.json") {
            return Err(match foreign(&names) {
                Some((ForeignKind::Gguf, found)) => {
                    Error::ForeignWeights { root: self.id.into(), kind: ForeignKind::Gguf, found }
                }
                _ => Error::NotAModel { root: self.id.into(), found: names },
            });
        }
        let commit = self.api.repo(repo(self.id, &info.sha));
        let config = self.get(&commit, "config.json")?;
        for name in COMPANIONS.into_iter().filter(|name| has(name)) {
            self.get(&commit, name)?;
        }
        if has(SINGLE) {
            self.get(&commit, SINGLE)?;
        } else if has(INDEX) {
            let index = read_index(&self.get(&commit, INDEX)?)?;
            for shard in index.shards() {
                self.get(&commit, shard)?;
            }
        } else if let Some((kind, found)) = foreign(&names) {
            return Err(Error::ForeignWeights { root: self.id.into(), kind, found });
        } else {
            return Err(Error::NoWeights { root: self.id.into() });
        }
        // Last of all, so that a branch in the cache is always a whole model.
        self.cache.repo(repo(self.id, self.revision)).create_ref(&info.sha)?;
        Ok(config.parent().map(PathBuf::from).unwrap_or_default())
    }

    /// One file, from the commit that the revision names now.
    fn fetch_file(&self, name: &str) -> Result<PathBuf> {
        let info = self
            .api
            .repo(repo(self.id, self.revision))
            .info()
            .map_err(|e| self.failed("the list of files", e))?;
        let path = self.get(&self.api.repo(repo(self.id, &info.sha)), name)?;
        self.cache.repo(repo(self.id, self.revision)).create_ref(&info.sha)?;
        Ok(path)
    }

    fn get(&self, commit: &ApiRepo, name: &str) -> Result<PathBuf> {
        commit.get(name).map_err(|e| self.failed(&format!("`{name}`"), e))
    }
}

fn failed(id: &str, revision: &str, what: &str, error: ApiError) -> Error {
    Error::Fetch { id: id.into(), revision: revision.into(), what: what.into(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use taper_diagnostics::Diagnose;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub of one model on this machine; it notes the paths it was asked for.
    struct TinyHub {
        endpoint: String,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl TinyHub {
        fn serve(files: &'static [(&'static str, &'static str)]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let log = asked.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = answer(&stream.unwrap(), files, &log);
                }
            });
            Self { endpoint, asked }
        }

        fn options(&self, cache: &std::path::Path) -> HubOptions {
            HubOptions {
                cache_dir: Some(cache.join("hub")),
                endpoint: Some(self.endpoint.clone()),
                token: Some("t0ken".into()),
                ..HubOptions::default()
            }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    fn answer(stream: &TcpStream, files: &[(&str, &str)], log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let (mut from, mut authorised, mut line) = (0, false, String::new());
        while reader.read_line(&mut line)? > 2 {
            let header = line.trim().to_lowercase();
            if let Some(range) = header.strip_prefix("range: bytes=") {
                from = range.split('-').next().unwrap().parse().unwrap();
            }
            authorised |= header == "authorization: bearer t0ken";
            line.clear();
        }
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        log.lock().unwrap().push(path.clone());
        let write = |status: &str, headers: &str, body: &str| {
            let mut stream = stream;
            write!(
                stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
                body.len()
            )
        };
        if !authorised {
            return write("401 Unauthorized", "", "");
        }
        if path == "/api/models/o/m/revision/main" {
            let siblings: Vec<_> =
                files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return write("200 OK", "Content-Type: application/json\r\n", &body);
        }
        let file = path.strip_prefix(&format!("/o/m/resolve/{COMMIT}/"));
        match files.iter().find(|(name, _)| Some(*name) == file) {
            None => write("404 Not Found", "", ""),
            Some((name, content)) => {
                let headers = format!(
                    "x-repo-commit: {COMMIT}\r\netag: \"{name}-etag\"\r\nContent-Range: bytes {from}-{}/{}\r\n",
                    content.len() - 1,
                    content.len()
                );
                write("206 Partial Content", &headers, &content[from..])
            }
        }
    }

    #[test]
    fn only_needed_files_are_fetched_and_the_cache_serves_the_second_time() {
        let hub = TinyHub::serve(&[
            ("config.json", "{\"c\":1}"),
            ("tokenizer.json", "{}"),
            ("model.safetensors", "weights"),
            ("pytorch_model.bin", "pickle"),
            ("README.md", "text"),
        ]);
        let home = tempfile::tempdir().unwrap();
        let options = hub.options(home.path());
        let files = resolve("o/m", "main", &options).unwrap();
        assert_eq!(fs_err::read_to_string(files.config.path()).unwrap(), "{\"c\":1}");
        assert_eq!(fs_err::read_to_string(&files.weights[0]).unwrap(), "weights");
        assert!(files.tokenizer.is_some());
        let asked = hub.asked();
        assert!(!asked.iter().any(|path| path.contains("README") || path.contains("pytorch")), "{asked:?}");
        for offline in [false, true] {
            assert_eq!(resolve("o/m", "main", &HubOptions { offline, ..options.clone() }).unwrap(), files);
            assert_eq!(resolve("o/m", COMMIT, &HubOptions { offline, ..options.clone() }).unwrap(), files);
        }
        assert_eq!(hub.asked(), asked, "the cache asked the hub");
    }

    #[test]
    fn shards_of_the_index_are_fetched() {
        let hub = TinyHub::serve(&[
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            ("model.safetensors.index.json", r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#),
            ("s1.safetensors", "1"),
            ("s2.safetensors", "2"),
            ("s3.safetensors", "3"),
        ]);
        let home = tempfile::tempdir().unwrap();
        let files = resolve("o/m", "main", &hub.options(home.path())).unwrap();
        assert_eq!(files.weights.len(), 2);
        assert!(!hub.asked().iter().any(|path| path.contains("s3")));
    }

    #[test]
    fn pickles_only_missing_models_and_missing_rights_are_told_apart() {
        let hub = TinyHub::serve(&[("config.json", "{}"), ("pytorch_model.bin", "x")]);
        let home = tempfile::tempdir().unwrap();
        let options = hub.options(home.path());
        let error = resolve("o/m", "main", &options).unwrap_err();
        assert!(matches!(error, Error::ForeignWeights { .. }), "{error}");
        let error = resolve("o/absent", "main", &options).unwrap_err();
        assert!(
            matches!(error, Error::Fetch { .. }) && error.hint().unwrap().contains("spelling"),
            "{error:?}"
        );
        let error =
            resolve("o/m", "main", &HubOptions { token: Some("wrong".into()), ..options }).unwrap_err();
        assert!(error.hint().unwrap().contains("HF_TOKEN"), "{error:?}");
    }

    #[test]
    fn a_gguf_file_is_fetched_alone_and_a_model_of_such_files_lists_them() {
        let hub = TinyHub::serve(&[("q4/m.gguf", "not one"), ("m.Q8_0.gguf", "x"), ("config.json.txt", "x")]);
        let home = tempfile::tempdir().unwrap();
        let options = hub.options(home.path());
        let fetch = |offline| {
            resolve_gguf("o/m", "q4/m.gguf", "main", &HubOptions { offline, ..options.clone() }).unwrap_err()
        };
        assert!(fetch(true).to_string().contains("`o/m/q4/m.gguf` at revision `main` is not in the cache"));
        let error = fetch(false);
        let Error::Gguf { path, .. } = &error else { panic!("{error:?}") };
        assert_eq!(fs_err::read_to_string(path).unwrap(), "not one");
        let asked = hub.asked();
        assert!(!asked.iter().any(|path| path.contains("Q8_0")), "{asked:?}");
        assert!(matches!(fetch(true), Error::Gguf { .. }), "the cache has it");
        assert_eq!(hub.asked(), asked, "the cache asked the hub");
        let error = resolve("o/m", "main", &options).unwrap_err();
        assert!(matches!(&error, Error::ForeignWeights { found, .. } if found.len() == 2), "{error:?}");
        assert!(error.hint().unwrap().contains("`o/m/q4/m.gguf`"), "{error:?}");
    }

    #[test]
    fn offline_never_asks_and_says_so() {
        let hub = TinyHub::serve(&[]);
        let home = tempfile::tempdir().unwrap();
        let options = HubOptions { offline: true, ..hub.options(home.path()) };
        let error = resolve("o/m", "main", &options).unwrap_err();
        assert!(error.to_string().contains("offline mode is on"), "{error}");
        assert!(hub.asked().is_empty());
    }
}
