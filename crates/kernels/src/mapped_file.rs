//! A file as read-only memory.

#![expect(unsafe_code, reason = "maps a file into memory")]

use std::io;
use std::path::Path;

/// A regular, non-empty file mapped read-only: pages are read when they are first touched and can be dropped again by the system.
///
/// The mapping shows the file as it is, not a copy. Whoever writes the files in place while they are mapped changes what is read
/// here, and a file that another process *truncates* makes the next access past its new end a fault signal of the operating system
/// (SIGBUS on Linux), which ends the process; no check here can prevent that. Model files are replaced by renaming, which leaves the
/// mapped file intact.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, is not a regular file (a folder, a device, a pipe), or is empty. The error names the path.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let refuse =
            |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` {why}", path.display()));
        // Asked before opening: opening a pipe would wait for its writer.
        if !fs_err::metadata(path)?.is_file() {
            return Err(refuse("is not a regular file"));
        }
        let file = fs_err::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(refuse("is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(refuse("is empty"));
        }
        // SAFETY: the mapping is read-only and private to this value; that the file may change under it is stated above, and bytes have
        // no invalid values.
        let map = unsafe { memmap2::Mmap::map(file.file()) }
            .map_err(|e| io::Error::new(e.kind(), format!("cannot map `{}`: {e}", path.display())))?;
        Ok(Self { map })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Give the memory of the pages that lie within `range` back to the system: what was copied out of them need not stay twice. They are
    /// read from the file again when somebody asks. Does nothing where the system has no such call.
    pub fn release(&self, range: core::ops::Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            // Whole pages inside the range; a page size that is a multiple of the real one is right too.
            const PAGE: usize = 64 * 1024;
            let first = range.start.next_multiple_of(PAGE);
            let end = range.end.min(self.map.len()) / PAGE * PAGE;
            if first < end {
                // SAFETY: the pages are a clean view of a file that is mapped read-only and shared: dropping them changes no content, and
                // slices of them that are alive read the same bytes of the file again.
                let _ = unsafe {
                    self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first)
                };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        fs_err::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        assert!(map.bytes() == content);
        for range in [0..content.len(), 70_000..200_000, 5..6, 0..usize::MAX, 9..9] {
            map.release(range);
            assert!(map.bytes() == content);
        }
    }

    #[test]
    fn bytes_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let content: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        fs_err::write(&path, &content).unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), content);
    }

    #[test]
    fn a_replaced_file_keeps_its_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        fs_err::write(&path, b"old").unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        fs_err::write(dir.path().join("new"), b"new content").unwrap();
        fs_err::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(mapped.bytes(), b"old");
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        fs_err::write(&empty, b"").unwrap();
        for (path, why) in [(empty.as_path(), "is empty"), (dir.path(), "is not a regular file")] {
            let error = MappedFile::open(path).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
        }
        let missing = dir.path().join("missing");
        assert_eq!(MappedFile::open(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
