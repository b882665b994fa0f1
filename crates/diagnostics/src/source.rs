//! Texts that lie in files of their own, or were made from another file.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A text to be read: a file on the disk, or a text made in memory from what stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSource {
    path: PathBuf,
    made: Option<Arc<str>>,
}

/// A text is longer than a reader takes. It is what is inside the [`io::Error`] of [`TextSource::read`].
#[derive(Debug, thiserror::Error)]
#[error("`{}` holds {bytes} bytes, the limit is {limit}", path.display())]
pub struct TooLong {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the text.
    pub bytes: u64,
    /// The most that is read.
    pub limit: u64,
}

impl TextSource {
    /// A file, which is read when it is asked for.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), made: None }
    }

    /// A text at hand that was made from what stands in the file `origin`.
    pub fn made(origin: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> Self {
        Self { path: origin.into(), made: Some(text.into()) }
    }

    /// The file: the text's own, or the one it was made from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes, at most `limit` of them.
    ///
    /// # Errors
    /// What the disk says, with the file's name; [`TooLong`] over the limit.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        let too_long = |bytes: u64| {
            let error = TooLong { path: self.path.clone(), bytes, limit };
            Err(io::Error::new(io::ErrorKind::FileTooLarge, error))
        };
        if let Some(text) = &self.made {
            let bytes = text.len() as u64;
            return if bytes > limit { too_long(bytes) } else { Ok(text.as_bytes().to_vec()) };
        }
        let file = fs_err::File::open(&self.path)?;
        let bytes = file.metadata()?.len();
        if bytes > limit {
            return too_long(bytes);
        }
        // The size on the disk may grow, or be unknown (a pipe): count again.
        let mut content = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return too_long(content.len() as u64);
        }
        Ok(content)
    }
}

impl From<PathBuf> for TextSource {
    fn from(path: PathBuf) -> Self {
        Self::file(path)
    }
}

impl From<&Path> for TextSource {
    fn from(path: &Path) -> Self {
        Self::file(path)
    }
}

impl From<&str> for TextSource {
    fn from(path: &str) -> Self {
        Self::file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_over_its_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.json");
        fs_err::write(&path, "0123456789").unwrap();
        for source in [TextSource::file(&path), TextSource::made(&path, "0123456789")] {
            assert_eq!(source.path(), path);
            assert_eq!(source.read(10).unwrap(), b"0123456789");
            let error = source.read(9).unwrap_err();
            assert!(error.to_string().ends_with("big.json` holds 10 bytes, the limit is 9"), "{error}");
            assert!(error.get_ref().unwrap().is::<TooLong>());
        }
    }
}
