//! Responses that an earlier run kept, found by everything they depend on: weights, adapter, prompts, settings. The base's answers are
//! then those of the first run over the same data, and an evaluation that was broken off goes on where it was.

use crate::Response;
use serde::{Deserialize, Serialize};
use taper_diagnostics::KeptFiles;
use taper_hub::Fingerprint;

/// Raise it with every change of what a response means or of how it is computed.
const RULES: u32 = 1;
/// Bytes of all files together; of more, those that were not used for the longest time are removed.
const MOST_BYTES: u64 = 1 << 30;
/// The longest file that is read.
const MOST_FILE_BYTES: u64 = 64 << 20;

/// The folder in which responses are kept, readable by the user alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseCache {
    files: KeptFiles,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    rules: u32,
    responses: Vec<Response>,
}

impl ResponseCache {
    /// A cache in `folder`, which is the cache's own: old files in it are removed.
    pub fn new(folder: impl Into<std::path::PathBuf>) -> Self {
        Self { files: KeptFiles::new(folder, "json", MOST_FILE_BYTES) }
    }

    /// `responses` in the folder that `TAPER_CACHE_DIR` names, else in the user's cache folder; `None` for a user who has none.
    pub fn from_env() -> Option<Self> {
        KeptFiles::from_env("responses", "json", MOST_FILE_BYTES).map(|files| Self { files })
    }

    /// The name under which responses to what `asked` describes are kept.
    pub fn key(asked: &impl Serialize) -> Option<Fingerprint> {
        let text = serde_json::to_vec(&(RULES, env!("CARGO_PKG_VERSION"), asked)).ok()?;
        Some(Fingerprint::of_bytes(&text))
    }

    /// What was kept; `None` also where it cannot be read or is not of `items` items: it is then made again.
    pub fn get(&self, key: &Fingerprint, items: usize) -> Option<Vec<Response>> {
        let bytes = self.files.read(key.as_str()).ok()??;
        let kept: Kept = serde_json::from_slice(&bytes).ok()?;
        let is_whole = kept.rules == RULES && kept.responses.len() == items;
        is_whole.then(|| self.files.touch(key.as_str()))?;
        Some(kept.responses)
    }

    /// Keep responses. The answers are at hand: a full or read-only disk makes the next run slower, and no more.
    pub fn put(&self, key: &Fingerprint, responses: &[Response]) {
        let kept = Kept { rules: RULES, responses: responses.to_vec() };
        if let Ok(bytes) = serde_json::to_vec(&kept) {
            let _ = self.files.write(key.as_str(), &bytes);
        }
    }

    /// Keep the folder within its bounds.
    pub fn sweep(&self) {
        let _ = self.files.sweep(MOST_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_for_the_same_question_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ResponseCache::new(folder.path());
        let (one, other) = (ResponseCache::key(&"a").unwrap(), ResponseCache::key(&"b").unwrap());
        let responses =
            vec![Response { output: Some("é\n".into()), latency_ms: Some(0.1), ..Response::default() }];
        cache.put(&one, &responses);
        assert_eq!(cache.get(&one, 1), Some(responses));
        assert_eq!(cache.get(&one, 2), None);
        assert_eq!(cache.get(&other, 1), None);
        fs_err::write(folder.path().join(one.as_str()).with_extension("json"), "{").unwrap();
        assert_eq!(cache.get(&one, 1), None);
    }
}
