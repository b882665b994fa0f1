//! Files that are whole or absent (invariant 9).

use fs_err as fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file that is being written under a temporary name beside its place, in any order.
///
/// [`AtomicFile::commit`] flushes it and renames it into its place; dropped before, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    temporary: tempfile::NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// An empty file that will be `path`. Missing parent folders are made.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let folder = folder_of(path);
        fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".taper-").suffix(".tmp");
        let temporary = like_ordinary_files(&mut builder).tempfile_in(folder);
        let temporary = temporary.map_err(|error| named(path, &error))?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// The file itself, to write and to seek in.
    pub fn file(&mut self) -> &mut std::fs::File {
        self.temporary.as_file_mut()
    }

    /// Where it lies until then: what was written can be read there.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// Flush the file to the disk and put it in its place.
    ///
    /// # Errors
    /// What the disk says; the place is then untouched.
    pub fn commit(self) -> io::Result<()> {
        self.temporary.as_file().sync_all().map_err(|error| named(&self.path, &error))?;
        self.temporary.persist(&self.path).map_err(|e| named(&self.path, &e.error))?;
        sync_folder(folder_of(&self.path))
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to write `{}`: {error}", path.display()))
}

/// Write `path` so that a reader sees the old file or the new one, never half of it.
///
/// The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is renamed. Missing parent
/// folders are made.
///
/// # Errors
/// What the disk or `fill` says; the temporary file is then removed and `path` is untouched.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut target = AtomicFile::create(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, target.file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(|error| named(path, &error))?;
    drop(writer);
    target.commit()
}

/// [`write_atomically`] for bytes that are at hand.
///
/// # Errors
/// What the disk says.
pub fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(path, |writer| writer.write_all(bytes))
}

/// Temporary files are made for their owner alone; what a run leaves is an ordinary file, as private as the umask asks.
#[cfg(unix)]
fn like_ordinary_files<'a, 'b, 'c>(
    builder: &'a mut tempfile::Builder<'b, 'c>,
) -> &'a mut tempfile::Builder<'b, 'c> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(std::fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn like_ordinary_files<'a, 'b, 'c>(
    builder: &'a mut tempfile::Builder<'b, 'c>,
) -> &'a mut tempfile::Builder<'b, 'c> {
    builder
}

/// The files of a folder, then the folder itself, onto the disk: before it is renamed into its place.
///
/// # Errors
/// What the disk says.
pub fn sync_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    sync_folder(folder)
}

/// The names in a folder onto the disk: a rename is durable once its folder is.
///
/// # Errors
/// What the disk says.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Other systems have no way to flush a folder, and need none.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mode of a written file is that of an ordinary one: this process's umask holds, also a strict one. The umask is
    /// the process's own, so the comparison is made in a child that has another.
    #[cfg(unix)]
    #[test]
    fn a_file_is_as_private_as_the_umask_asks() {
        const CHILD: &str = "TAPER_TEST_UMASK_CHILD";
        const NAME: &str = "atomic::tests::a_file_is_as_private_as_the_umask_asks";
        use std::os::unix::fs::PermissionsExt;
        if std::env::var_os(CHILD).is_none() {
            for umask in ["077", "022"] {
                let script = format!("umask {umask}; exec \"$0\" --exact {NAME}");
                let this = std::env::current_exe().unwrap();
                let mut child = std::process::Command::new("sh");
                let child = child.arg("-c").arg(script).arg(this).env(CHILD, "1");
                assert!(child.output().unwrap().status.success(), "umask {umask}");
            }
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (ordinary, written) = (folder.path().join("ordinary"), folder.path().join("written"));
        fs::write(&ordinary, b"x").unwrap();
        write_bytes_atomically(&written, b"x").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&written), mode(&ordinary));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("a.txt");
        write_bytes_atomically(&path, b"first").unwrap();
        let error = write_atomically(&path, |writer| {
            writer.write_all(b"half")?;
            Err(io::Error::other("disk on fire"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.txt") && error.to_string().contains("disk on fire"));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
