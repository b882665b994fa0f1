//! Content hashes: which weights a run was made from.

use crate::{HashCache, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A SHA-256 as 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of bytes at hand.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// Of a file's content, as `sha256sum` prints it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut file = fs_err::File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Self::finish(hash)),
                n => hash.update(&buffer[..n]),
            }
        }
    }

    /// [`Self::of_file`], or the hash that is known from before.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file_with(path: &Path, cache: Option<&HashCache>) -> Result<Self> {
        match cache {
            Some(cache) => cache.of_file(path),
            None => Self::of_file(path),
        }
    }

    /// Of several files: the hash of the lines `<sha256>  <file name>\n`, sorted by name, so that neither their folder nor their order
    /// counts.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_files(paths: &[PathBuf]) -> Result<Self> {
        Self::of_files_with(paths, None)
    }

    /// [`Self::of_files`], with the hashes of files that are known from before.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_files_with(paths: &[PathBuf], cache: Option<&HashCache>) -> Result<Self> {
        let mut lines = Vec::with_capacity(paths.len());
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            lines.push((name, Self::of_file_with(path, cache)?));
        }
        lines.sort();
        let text: String = lines.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
        Ok(Self::of_bytes(text.as_bytes()))
    }

    /// Whether it is one: what was read from a file can be anything.
    pub fn is_sha256(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn finish(hash: Sha256) -> Self {
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_fingerprint_is_its_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs_err::write(&path, b"abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Fingerprint::of_file(&path).unwrap().as_str(), expected);
    }

    #[test]
    fn neither_folder_nor_order_counts_but_names_and_contents_do() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &[u8]| {
            let path = folder.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(&path, content).unwrap();
            path
        };
        let (a, b) = (write("x/a", b"1"), write("x/b", b"2"));
        let (a2, b2) = (write("y/a", b"1"), write("y/b", b"2"));
        let one = Fingerprint::of_files(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(one, Fingerprint::of_files(&[b2, a2]).unwrap());
        assert_ne!(one, Fingerprint::of_files(&[write("z/a", b"2"), write("z/b", b"1")]).unwrap());
    }
}
