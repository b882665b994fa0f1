//! How often held-out data was looked at: who tries twenty adapters on one test set and keeps the best has chosen by the test set.
//!
//! For each test set there is a small file in the user's cache folder, under a hash of the set's name. It holds hashes of the candidates
//! that were measured, how many there were and when. It is a help and no proof: it knows of this user and this machine, and it
//! can be removed. What cannot be read begins anew, what cannot be written is told, and neither stops a run. Of two processes that write
//! at the same moment the last one counts.

use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use taper_diagnostics::{Location, Problem, write_bytes_atomically};
use taper_text::ContentHash;

/// Candidates that are remembered for a test set, the newest; a file is then some 100 KiB. One that comes back after so many others
/// counts as another.
const MOST_CANDIDATES: usize = 4096;
/// What is longer is none of ours.
const MOST_BYTES: u64 = 1 << 18;
/// Test sets that are remembered, those that were used last.
const MOST_FILES: usize = 1024;
/// Hexadecimal digits of a candidate's hash: two of thousands are the same once in a million billion times.
const CANDIDATE_DIGITS: usize = 20;

/// How often a test set was used, this time included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// Different candidates that were measured on it.
    pub distinct: u64,
    /// Measurements, repeated ones included.
    pub total: u64,
    /// When the first one was made: seconds since 1970.
    pub first: u64,
    /// When the last one was made, which is this one.
    pub last: u64,
}

/// The counters of the test sets.
#[derive(Debug, Clone)]
pub struct TestUses {
    folder: PathBuf,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    schema: u32,
    distinct: u64,
    total: u64,
    first: u64,
    last: u64,
    /// The newest at the end.
    candidates: Vec<String>,
}

impl TestUses {
    /// Counters in `folder`, which is theirs alone.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// `uses` in the folder that `TAPER_CACHE_DIR` names, else in `taper` in the user's cache folder. `None` for a user who has no home.
    pub fn from_env() -> Option<Self> {
        taper_diagnostics::cache_folder("uses").map(Self::new)
    }

    /// Note that `candidate` was measured on `data`, both named by a fingerprint of any form. The same candidate again is no
    /// further one. The problem is a warning with the code `test-uses`: the counter began anew, or is not kept.
    pub fn record(&self, data: &str, candidate: &str) -> (Uses, Option<Problem>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.record_at(data, candidate, now)
    }

    fn record_at(&self, data: &str, candidate: &str, now: u64) -> (Uses, Option<Problem>) {
        let path = self.folder.join(hash(data)).with_extension("json");
        let (known, broken) = match read(&path) {
            Ok(known) => (known, None),
            Err(what) => {
                let message =
                    format!("how often the test data was used is not known: {what}; counting begins anew");
                (None, Some(Problem::warning("test-uses", message).at(Location::file(&path))))
            }
        };
        let mut counter = known.unwrap_or(Counter {
            schema: 1,
            distinct: 0,
            total: 0,
            first: now,
            last: now,
            candidates: Vec::new(),
        });
        counter.note(&hash(candidate)[..CANDIDATE_DIGITS], now);
        let Counter { distinct, total, first, last, .. } = counter;
        let written = self.write(&path, &counter).err().map(|error| {
            let message = format!("how often the test data was used cannot be kept: {error}");
            let hint = "name another folder with `TAPER_CACHE_DIR`";
            Problem::warning("test-uses", message).hint(hint)
        });
        (Uses { distinct, total, first, last }, written.or(broken))
    }

    fn write(&self, path: &Path, counter: &Counter) -> io::Result<()> {
        let is_new = !path.exists();
        write_bytes_atomically(path, &serde_json::to_vec(counter)?)?;
        if is_new { self.sweep(MOST_FILES) } else { Ok(()) }
    }

    /// Remove the counters that were not written for the longest time, until `most` are left.
    fn sweep(&self, most: usize) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Another run may remove it meanwhile.
            let Ok(of_file) = fs::metadata(&path) else { continue };
            if path.extension().is_some_and(|extension| extension == "json") {
                files.push((of_file.modified()?, path));
            }
        }
        files.sort();
        for (_, path) in &files[..files.len().saturating_sub(most)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Counter {
    fn note(&mut self, candidate: &str, now: u64) {
        let known = self.candidates.iter().position(|known| known == candidate);
        self.distinct += u64::from(known.is_none());
        self.total += 1;
        self.last = now;
        let candidate = known.map_or_else(|| candidate.to_owned(), |at| self.candidates.remove(at));
        self.candidates.push(candidate);
        let excess = self.candidates.len().saturating_sub(MOST_CANDIDATES);
        self.candidates.drain(..excess);
    }

    /// Whether it can be one that was written here.
    fn is_sound(&self) -> bool {
        let is_hash = |name: &String| {
            name.len() == CANDIDATE_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        self.schema == 1
            && self.candidates.len() <= MOST_CANDIDATES
            && self.distinct >= self.candidates.len() as u64
            && (self.distinct..u64::MAX).contains(&self.total)
            && self.candidates.iter().all(is_hash)
    }
}

/// The counter in a file; `None` when there is no file.
fn read(path: &Path) -> Result<Option<Counter>, String> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err("its file is longer than any such file".into());
    }
    let counter: Option<Counter> = serde_json::from_slice(&bytes).ok();
    counter.filter(Counter::is_sound).map(Some).ok_or_else(|| "its file is broken".into())
}

/// A name as it may stand in a path, of any name.
fn hash(name: &str) -> String {
    let mut hash = ContentHash::new("taper uses");
    hash.add(name.as_bytes());
    hash.finish().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(uses: Uses) -> (u64, u64) {
        (uses.distinct, uses.total)
    }

    fn only_file(folder: &Path) -> PathBuf {
        let mut files = fs::read_dir(folder).unwrap();
        let path = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none());
        path
    }

    #[test]
    fn the_same_candidate_counts_once_and_every_test_set_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let uses = TestUses::new(folder.path().join("new/uses"));
        let record = |data, candidate, now| {
            let (uses, problem) = uses.record_at(data, candidate, now);
            assert_eq!(problem, None);
            uses
        };
        assert_eq!(record("d1", "a", 100), Uses { distinct: 1, total: 1, first: 100, last: 100 });
        assert_eq!(record("d1", "a", 200), Uses { distinct: 1, total: 2, first: 100, last: 200 });
        assert_eq!(record("d1", "b", 300), Uses { distinct: 2, total: 3, first: 100, last: 300 });
        assert_eq!(record("d1", "a", 400), Uses { distinct: 2, total: 4, first: 100, last: 400 });
        assert_eq!(counts(record("../d2", "a", 500)), (1, 1));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a name is no path");
    }

    #[test]
    fn a_broken_a_foreign_and_a_long_file_begin_anew_and_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let uses = TestUses::new(folder.path());
        uses.record_at("d", "a", 1);
        let path = only_file(folder.path());
        let sound = fs::read_to_string(&path).unwrap();
        let broken = [
            String::new(),
            sound[..sound.len() - 4].to_owned(),
            sound.replace("\"schema\":1", "\"schema\":2"),
            sound.replace("\"total\":1", "\"total\":0"),
            sound.replace("\"total\":1", "\"total\":18446744073709551615"),
            sound.replace("\"candidates\":[\"", "\"candidates\":[\"x"),
            sound + &" ".repeat(MOST_BYTES as usize),
        ];
        for text in broken {
            fs::write(&path, &text).unwrap();
            let (found, problem) = uses.record_at("d", "b", 2);
            assert_eq!(found, Uses { distinct: 1, total: 1, first: 2, last: 2 }, "{text:.80}");
            assert_eq!(problem.unwrap().code, "test-uses");
            assert_eq!(counts(uses.record_at("d", "b", 3).0), (1, 2));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_the_use_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "no folder").unwrap();
        let (found, problem) = TestUses::new(file.join("uses")).record("d", "a");
        assert_eq!(counts(found), (1, 1));
        let problem = problem.unwrap();
        assert!(problem.message.contains("cannot be kept") && problem.hint.is_some(), "{problem:?}");
    }

    #[test]
    fn a_file_and_their_number_are_bounded() {
        let mut counter =
            Counter { schema: 1, distinct: 0, total: 0, first: 0, last: 0, candidates: Vec::new() };
        (0..MOST_CANDIDATES + 10)
            .for_each(|candidate| counter.note(&hash(&candidate.to_string())[..CANDIDATE_DIGITS], 1));
        assert_eq!(counter.candidates.len(), MOST_CANDIDATES);
        assert_eq!(counter.distinct as usize, MOST_CANDIDATES + 10);
        assert!(counter.is_sound() && serde_json::to_vec(&counter).unwrap().len() < MOST_BYTES as usize);
        let folder = tempfile::tempdir().unwrap();
        let uses = TestUses::new(folder.path());
        for data in ["a", "b", "c"] {
            uses.record(data, "x");
        }
        uses.sweep(2).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
