//! Folders that are whole or absent (invariant 9).

use crate::{Error, Result};
use std::path::{Path, PathBuf};
use taper_diagnostics::sync_files;

/// A folder that is being filled under a temporary name beside its place.
///
/// [`NewFolder::place`] flushes it and renames it into its place; dropped before, it leaves nothing behind.
pub(crate) struct NewFolder {
    temporary: tempfile::TempDir,
    target: PathBuf,
}

impl NewFolder {
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let named = |source| Error::Write { path: target.to_owned(), source };
        fs_err::create_dir_all(parent).map_err(named)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".taper-").suffix(".tmp");
        let temporary = like_ordinary_folders(&mut builder).tempdir_in(parent).map_err(named)?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Put the folder in its place. A folder that is there already is set aside first and removed last: at each instant the place
    /// holds the old one, nothing, or the new one, never a part of one.
    pub(crate) fn place(self) -> Result<PathBuf> {
        let named = |source| Error::Write { path: self.target.clone(), source };
        sync_files(self.temporary.path()).map_err(named)?;
        let aside = self.temporary.path().with_extension("old");
        let replaces = self.target.exists();
        if replaces {
            fs_err::rename(&self.target, &aside).map_err(named)?;
        }
        if let Err(error) = fs_err::rename(self.temporary.path(), &self.target) {
            if replaces {
                fs_err::rename(&aside, &self.target).map_err(named)?;
            }
            return Err(named(error));
        }
        if replaces {
            fs_err::remove_dir_all(&aside).map_err(named)?;
        }
        Ok(self.target)
    }
}

/// Temporary folders are made for their owner alone; what a run leaves is an ordinary folder, as private as the umask asks.
#[cfg(unix)]
fn like_ordinary_folders<'a, 'b, 'c>(
    builder: &'a mut tempfile::Builder<'b, 'c>,
) -> &'a mut tempfile::Builder<'b, 'c> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(std::fs::Permissions::from_mode(0o777))
}

#[cfg(not(unix))]
fn like_ordinary_folders<'a, 'b, 'c>(
    builder: &'a mut tempfile::Builder<'b, 'c>,
) -> &'a mut tempfile::Builder<'b, 'c> {
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_replaces_the_old_one_as_a_whole() {
        let here = tempfile::tempdir().unwrap();
        let target = here.path().join("runs").join("merged");
        for content in ["one", "two"] {
            let folder = NewFolder::new(&target).unwrap();
            fs_err::write(folder.path().join(content), content).unwrap();
            assert_eq!(folder.place().unwrap(), target);
            assert_eq!(names(&target), [content]);
        }
        assert_eq!(names(&here.path().join("runs")), ["merged"]);
    }

    /// As for files: the umask of the process holds, also a strict one; a child has it.
    #[cfg(unix)]
    #[test]
    fn a_folder_is_as_private_as_the_umask_asks() {
        const CHILD: &str = "TAPER_TEST_UMASK_CHILD";
        const NAME: &str = "folder::tests::a_folder_is_as_private_as_the_umask_asks";
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
        let here = tempfile::tempdir().unwrap();
        let ordinary = here.path().join("ordinary");
        fs_err::create_dir(&ordinary).unwrap();
        let placed = NewFolder::new(&here.path().join("placed")).unwrap().place().unwrap();
        let mode = |path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&placed), mode(&ordinary));
    }

    #[test]
    fn a_folder_that_is_not_placed_leaves_nothing() {
        let here = tempfile::tempdir().unwrap();
        let folder = NewFolder::new(&here.path().join("merged")).unwrap();
        fs_err::write(folder.path().join("half"), "x").unwrap();
        drop(folder);
        assert!(names(here.path()).is_empty());
    }
}
