//! A folder of files that an earlier run kept, named by what they were made from. It is the user's alone and bounded in bytes.

use crate::{cache_folder, write_bytes_atomically};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFiles {
    folder: PathBuf,
    extension: &'static str,
    /// The longest file that is read.
    most_file_bytes: u64,
}

impl KeptFiles {
    /// Files in `folder`, which is theirs alone: old files in it are removed.
    pub fn new(folder: impl Into<PathBuf>, extension: &'static str, most_file_bytes: u64) -> Self {
        Self { folder: folder.into(), extension, most_file_bytes }
    }

    /// Files in `part` of the user's cache folder, see [`cache_folder`]; `None` for a user who has none.
    pub fn from_env(part: &str, extension: &'static str, most_file_bytes: u64) -> Option<Self> {
        cache_folder(part).map(|folder| Self::new(folder, extension, most_file_bytes))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the file of that name lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension(self.extension)
    }

    /// A file's bytes; `None` when it is not there.
    ///
    /// # Errors
    /// What the disk says, or that the file is longer than any such file.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match fs_err::File::open(self.path(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(self.most_file_bytes + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.most_file_bytes {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "it is longer than any such file"));
        }
        Ok(Some(bytes))
    }

    /// Note that a file was used: it is new again. In a folder that may only be read, nothing is noted and nothing is removed.
    pub fn touch(&self, name: &str) {
        let file = fs_err::OpenOptions::new().append(true).open(self.path(name));
        let _ = file.and_then(|file| file.file().set_modified(SystemTime::now()));
    }

    /// Write a file, whole or not at all.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        make_private(&self.folder)?;
        write_bytes_atomically(&self.path(name), bytes)
    }

    /// Remove what was not used for the longest time, until at most `most` bytes are left.
    ///
    /// # Errors
    /// What the disk says.
    pub fn sweep(&self, most: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            let entry = entry?;
            // Another run may remove it meanwhile.
            let Ok(of_file) = entry.metadata() else { continue };
            if of_file.is_file() {
                files.push((of_file.modified()?, of_file.len(), entry.path()));
            }
        }
        files.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut bytes = 0u64;
        for (_, length, path) in files {
            bytes = bytes.saturating_add(length);
            if bytes > most {
                match fs_err::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// What is kept is as confidential as the text it was made from.
#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        io::Error::new(error.kind(), format!("failed to make `{}`: {error}", folder.display()))
    })
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs_err::create_dir_all(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn kept(folder: &Path) -> KeptFiles {
        KeptFiles::new(folder.join("new/kept"), "kept", 200)
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_is_removed_first() {
        let folder = tempfile::tempdir().unwrap();
        let files = kept(folder.path());
        for key in 0..4u8 {
            let name = key.to_string();
            files.write(&name, &[key; 100]).unwrap();
            let file = fs_err::OpenOptions::new().append(true).open(files.path(&name)).unwrap();
            let hours = Duration::from_secs(3600 * (9 - u64::from(key)));
            file.file().set_modified(SystemTime::now() - hours).unwrap();
        }
        files.touch("0");
        files.sweep(250).unwrap();
        let left: Vec<u8> = (0..4).filter(|key| files.read(&key.to_string()).unwrap().is_some()).collect();
        assert_eq!(left, [0, 3]);
        files.sweep(0).unwrap();
        assert_eq!(files.read("0").unwrap(), None);
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let files = kept(folder.path());
        files.write("a", &[0; 201]).unwrap();
        assert_eq!(files.read("a").unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let files = kept(folder.path());
        files.write("a", b"x").unwrap();
        assert_eq!(fs_err::metadata(files.folder()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
