//! Files that are whole or absent (invariant 9).

use fs_err as fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Write `path` so that a reader sees the old file or the new one, never half of it.
///
/// The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is renamed. Missing parent
/// folders are made.
///
/// # Errors
/// What the disk or `fill` says; the temporary file is then removed and `path` is untouched.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("failed to write `{}`: {error}", path.display()))
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".taper-").suffix(".tmp");
    let temporary = like_ordinary_files(&mut builder).tempfile_in(folder).map_err(named)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary);
    fill(&mut writer).map_err(named)?;
    let temporary = writer.into_inner().map_err(|e| named(e.into_error()))?;
    temporary.as_file().sync_all().map_err(named)?;
    temporary.persist(path).map_err(|e| named(e.error))?;
    sync_folder(folder)
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
