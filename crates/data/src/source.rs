//! The bytes of a data file: what kind of file it is, and its rows cut out with bounded memory.

use crate::error::{Error, Result};
use crate::fault::RowFault;
use fs_err as fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Enough to recognise every kind of file below.
const SNIFF_BYTES: usize = 4096;

/// One row as it stands in the file.
#[derive(Debug)]
pub(crate) struct RawRow {
    /// Line where it begins, from 1.
    pub(crate) line: usize,
    /// Offset in the file where it begins.
    pub(crate) offset: u64,
    /// Its bytes without the line end, or the fault that it is too long.
    pub(crate) bytes: Result<Vec<u8>, RowFault>,
}

/// A reader that counts lines and bytes.
pub(crate) struct Source {
    input: Box<dyn BufRead + Send>,
    pub(crate) line: usize,
    pub(crate) offset: u64,
    pub(crate) cap: usize,
    pub(crate) crlf_lines: usize,
    pub(crate) blank_lines: usize,
    pub(crate) had_bom: bool,
}

impl Source {
    /// Open the file and refuse what is no JSON text, by its name.
    pub(crate) fn open(path: &Path, cap: usize) -> Result<Self> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let refuse =
            |(code, what, remedy): Refusal| Error::File { path: path.to_owned(), code, what, remedy };
        if fs::metadata(path).map_err(read)?.is_dir() {
            return Err(refuse(("not-a-file", "this is a folder".into(), "name the .jsonl files inside it")));
        }
        if let Some(refusal) = refused_extension(path) {
            return Err(refuse(refusal));
        }
        let mut file = fs::File::open(path).map_err(read)?;
        let mut head = Vec::with_capacity(SNIFF_BYTES);
        file.by_ref().take(SNIFF_BYTES as u64).read_to_end(&mut head).map_err(read)?;
        if let Some(refusal) = refused_content(&head) {
            return Err(refuse(refusal));
        }
        let had_bom = head.starts_with(b"\xEF\xBB\xBF");
        let offset = if had_bom { 3 } else { 0 };
        let rest = io::Cursor::new(head.split_off(offset));
        let input = Box::new(BufReader::with_capacity(1 << 16, rest.chain(file)));
        let offset = offset as u64;
        Ok(Self { input, line: 1, offset, cap, crlf_lines: 0, blank_lines: 0, had_bom })
    }

    /// Source over bytes at hand, for tests.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: Vec<u8>, cap: usize) -> Self {
        let input = Box::new(BufReader::with_capacity(16, io::Cursor::new(bytes)));
        Self { input, line: 1, offset: 0, cap, crlf_lines: 0, blank_lines: 0, had_bom: false }
    }

    /// Whether the first line holds an opening bracket alone, as the first line of a JSON array over many lines does.
    pub(crate) fn begins_with_lone_bracket(&mut self) -> io::Result<bool> {
        let head = self.input.fill_buf()?.trim_ascii_start();
        let Some(rest) = head.strip_prefix(b"[") else { return Ok(false) };
        let next = rest.iter().find(|&&byte| byte != b' ' && byte != b'\t');
        Ok(matches!(next, Some(b'\n' | b'\r')))
    }

    /// The next line that is not blank.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<RawRow>> {
        loop {
            let (line, offset) = (self.line, self.offset);
            let mut row = Bounded::new(self.cap);
            if !self.read_line(&mut row)? {
                return Ok(None);
            }
            self.line += 1;
            if row.kept.last() == Some(&b'\r') && row.is_whole() {
                row.kept.pop();
                self.crlf_lines += 1;
            }
            if row.is_whole() && row.kept.trim_ascii().is_empty() {
                self.blank_lines += 1;
                continue;
            }
            return Ok(Some(RawRow { line, offset, bytes: row.finish() }));
        }
    }

    /// Read up to and without the next line feed; false at the end of the file.
    fn read_line(&mut self, row: &mut Bounded) -> io::Result<bool> {
        let mut any = false;
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            row.extend(&chunk[..end.unwrap_or(chunk.len())]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.input.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    /// The next byte, left in place.
    pub(crate) fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// Take the byte that [`Source::peek`] showed.
    pub(crate) fn bump(&mut self, byte: u8) {
        self.input.consume(1);
        self.offset += 1;
        self.line += usize::from(byte == b'\n');
    }
}

/// Bytes up to a cap; what is over it is counted and forgotten.
pub(crate) struct Bounded {
    pub(crate) kept: Vec<u8>,
    seen: u64,
    cap: usize,
}

impl Bounded {
    pub(crate) fn new(cap: usize) -> Self {
        Self { kept: Vec::new(), seen: 0, cap }
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        if self.is_whole() {
            self.kept.extend_from_slice(bytes);
        } else {
            self.kept = Vec::new();
        }
    }

    fn is_whole(&self) -> bool {
        self.seen <= self.cap as u64
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>, RowFault> {
        if self.is_whole() {
            Ok(self.kept)
        } else {
            Err(RowFault::TooLong { bytes: self.seen, cap: self.cap })
        }
    }
}

type Refusal = (&'static str, String, &'static str);

fn refused_extension(path: &Path) -> Option<Refusal> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    let kind = match extension.as_str() {
        "csv" | "tsv" | "parquet" | "arrow" | "xlsx" => extension,
        _ => return None,
    };
    let remedy = "convert it to JSONL: one JSON object per line";
    Some(("not-jsonl", format!("`.{kind}` files are not read"), remedy))
}

fn refused_content(head: &[u8]) -> Option<Refusal> {
    let utf8 = "convert it to UTF-8, for example `iconv -f UTF-16 -t UTF-8`";
    let unpack = "unpack it first";
    let (code, what, remedy) = match head {
        [] => ("empty-file", "the file is empty", "was it written to the end?"),
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => ("utf32", "the file is UTF-32", utf8),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => ("utf16", "the file is UTF-16", utf8),
        [0, 1..=0x7F, ..] | [1..=0x7F, 0, ..] => {
            ("utf16", "the file is UTF-16 without a byte order mark", utf8)
        }
        [0x1F, 0x8B, ..] => ("compressed-file", "the file is gzip", unpack),
        [b'P', b'K', 3, 4, ..] => ("compressed-file", "the file is a zip archive", unpack),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => ("compressed-file", "the file is zstd", unpack),
        [b'P', b'A', b'R', b'1', ..] => ("not-jsonl", "the file is Parquet", "convert it to JSONL"),
        _ if head.starts_with(b"version https://git-lfs.github.com/spec/") => (
            "lfs-pointer",
            "the file is a git LFS pointer, not the data",
            "fetch the data with `git lfs pull`",
        ),
        _ if looks_like_html(head) => {
            ("not-jsonl", "the file is a web page", "download the file itself, not the page about it")
        }
        _ => return None,
    };
    Some((code, what.to_owned(), remedy))
}

fn looks_like_html(head: &[u8]) -> bool {
    let start = head.trim_ascii_start().to_ascii_lowercase();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}
