//! Hashes of files that were hashed before: weights of gigabytes are not read again for their name.
//!
//! A file is known by its path, size, inode and the time of its last change (`ctime` on Unix, which a program cannot set back); when
//! any of them is another, it is hashed again. A file that changed within the last seconds is hashed and not remembered: it could change
//! again within one tick of the clock. What cannot be read or written of the cache costs time and nothing else.

use crate::{Fingerprint, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use taper_diagnostics::write_bytes_atomically;

/// Smaller files are hashed faster than they are looked up.
const LEAST_BYTES: u64 = 1 << 20;
/// The clock of no file system ticks slower.
const TICK: Duration = Duration::from_secs(2);
/// Entries are a few hundred bytes; what is larger is none.
const MOST_ENTRY_BYTES: u64 = 1 << 16;

/// A folder of known hashes.
#[derive(Debug, Clone)]
pub struct HashCache {
    folder: PathBuf,
}

/// What a hash is remembered for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    changed_ns: u64,
    sha256: Fingerprint,
}

impl HashCache {
    /// In `folder`, which is made when there is something to keep.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// `hashes` in the user's cache folder: `TAPER_CACHE_DIR`, or `taper` in `XDG_CACHE_HOME` or `~/.cache`; `None` without any.
    pub fn from_env() -> Option<Self> {
        taper_diagnostics::cache_folder("hashes").map(Self::new)
    }

    /// The SHA-256 of a file's content: the one that is known, or it is read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(&self, path: &Path) -> Result<Fingerprint> {
        let path = fs_err::canonicalize(path)?;
        let metadata = fs_err::metadata(&path)?;
        let (inode, changed) = identity(&metadata);
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        let since_epoch = changed.and_then(|changed| changed.duration_since(UNIX_EPOCH).ok());
        let changed_ns = since_epoch.and_then(|time| u64::try_from(time.as_nanos()).ok());
        let (Some(changed_ns), true) = (changed_ns, metadata.len() >= LEAST_BYTES) else {
            return Fingerprint::of_file(&path);
        };
        let known_by = |entry: &Entry| {
            (&entry.path, entry.bytes, entry.inode, entry.changed_ns)
                == (&path, metadata.len(), inode, changed_ns)
        };
        let at = self.folder.join(Fingerprint::of_bytes(path.as_os_str().as_encoded_bytes()).as_str());
        if let Some(entry) = read(&at).filter(known_by) {
            return Ok(entry.sha256);
        }
        let sha256 = Fingerprint::of_file(&path)?;
        if age.is_some_and(|age| age > TICK) {
            let entry = Entry { path, bytes: metadata.len(), inode, changed_ns, sha256: sha256.clone() };
            if let Ok(text) = serde_json::to_string(&entry) {
                // The hash is at hand; a full or read-only disk makes the next run slower.
                let _ = write_bytes_atomically(&at, text.as_bytes());
            }
        }
        Ok(sha256)
    }
}

fn read(at: &Path) -> Option<Entry> {
    let small = fs_err::metadata(at).ok()?.len() <= MOST_ENTRY_BYTES;
    let text = fs_err::read(at).ok().filter(|_| small)?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    entry.sha256.is_sha256().then_some(entry)
}

#[cfg(unix)]
fn identity(metadata: &std::fs::Metadata) -> (u64, Option<SystemTime>) {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(metadata.ctime()).ok();
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).ok();
    let changed = seconds.zip(nanoseconds).and_then(|(s, ns)| UNIX_EPOCH.checked_add(Duration::new(s, ns)));
    (metadata.ino(), changed)
}

#[cfg(not(unix))]
fn identity(metadata: &std::fs::Metadata) -> (u64, Option<SystemTime>) {
    (0, metadata.modified().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<PathBuf> {
        let found = fs_err::read_dir(folder).map(|all| all.map(|entry| entry.unwrap().path()).collect());
        found.unwrap_or_default()
    }

    /// The clock of the file system has to go on, so this test waits.
    #[test]
    fn a_hash_is_kept_until_the_file_changes_and_a_lie_in_the_cache_is_for_that_file_alone() {
        let here = tempfile::tempdir().unwrap();
        let (path, small) = (here.path().join("weights"), here.path().join("small"));
        fs_err::write(&path, vec![1u8; LEAST_BYTES as usize]).unwrap();
        fs_err::write(&small, "small").unwrap();
        let cache = HashCache::new(here.path().join("hashes"));
        let first = cache.of_file(&path).unwrap();
        assert_eq!(first, Fingerprint::of_file(&path).unwrap());
        assert!(entries(&cache.folder).is_empty(), "a file that is being written is not remembered");
        std::thread::sleep(TICK + Duration::from_millis(200));
        assert_eq!(cache.of_file(&path).unwrap(), first);
        cache.of_file(&small).unwrap();
        let kept = entries(&cache.folder);
        assert_eq!(kept.len(), 1);
        // That the second look does not read the file shows when the cache holds something else.
        let lie = Fingerprint::of_bytes(b"a lie");
        let text = fs_err::read_to_string(&kept[0]).unwrap().replace(first.as_str(), lie.as_str());
        fs_err::write(&kept[0], text).unwrap();
        assert_eq!(cache.of_file(&path).unwrap(), lie);
        fs_err::write(&path, vec![2u8; LEAST_BYTES as usize]).unwrap();
        assert_eq!(cache.of_file(&path).unwrap(), Fingerprint::of_file(&path).unwrap());
        fs_err::write(&kept[0], "{\"sha256\": \"no\"}").unwrap();
        assert_eq!(cache.of_file(&path).unwrap(), Fingerprint::of_file(&path).unwrap());
        assert!(cache.of_file(&here.path().join("absent")).is_err());
    }
}
