//! Rows of a JSONL file, or of a `.json` file that is one array, one at a time.
//!
//! Memory is bounded by one row. Every fault names file, line and, for syntax, column; a fault in one row does not keep
//! the next from being read.

use crate::error::{Error, Result};
use crate::example::RowPlace;
use crate::fault::RowFault;
use crate::source::{Bounded, RawRow, Source};
use crate::strict;
use serde_json::{Map, Value};
use std::io;
use std::path::Path;
use std::sync::Arc;
use taper_diagnostics::{Location, Problem, Problems};

/// The longest row that is read: about two million tokens, over every context window.
pub const MAX_ROW_BYTES: usize = 8 << 20;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: RowPlace,
    /// Its columns, in the order of the file.
    pub columns: Map<String, Value>,
}

/// An iterator over the rows of a file.
///
/// A UTF-8 byte order mark, CRLF line ends, blank lines and a missing final line end are accepted, and told by
/// [`JsonlReader::notes`]. A `.json` file whose first character is `[` is read as one array; any other file is read line
/// by line.
pub struct JsonlReader {
    path: Arc<Path>,
    source: Source,
    layout: Layout,
    finished: bool,
}

enum Layout {
    Lines,
    Array { next: usize },
}

impl JsonlReader {
    /// Open a file.
    ///
    /// # Errors
    /// A file that cannot be read, is empty, a folder, a git LFS pointer, compressed, UTF-16 or UTF-32, or of a kind that
    /// is not read (CSV, Parquet).
    pub fn open(path: &Path) -> Result<Self> {
        Self::with_max_row_bytes(path, MAX_ROW_BYTES)
    }

    /// [`JsonlReader::open`] with another limit for one row.
    ///
    /// # Errors
    /// As for `open`.
    pub fn with_max_row_bytes(path: &Path, cap: usize) -> Result<Self> {
        let source = Source::open(path, cap)?;
        let mut reader = Self { path: path.into(), source, layout: Layout::Lines, finished: false };
        let may_be_array = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("json"));
        if may_be_array && reader.skip_space().map_err(|e| reader.unreadable(e))? == Some(b'[') {
            reader.source.bump(b'[');
            reader.layout = Layout::Array { next: 0 };
        } else if reader.source.begins_with_lone_bracket().map_err(|e| reader.unreadable(e))? {
            let what = "the file is one JSON array over many lines".to_owned();
            let remedy = "name it `.json`, or write one object per line with `jq -c '.[]'`";
            return Err(Error::File { path: path.to_owned(), code: "not-jsonl", what, remedy });
        }
        Ok(reader)
    }

    /// What was accepted although it is unusual. Complete once the last row was read.
    pub fn notes(&self) -> Problems {
        let mut notes = Problems::new();
        let mut note = |code, message: String| {
            notes.push(Problem::warning(code, message).at(Location::file(&*self.path)));
        };
        if self.source.had_bom {
            note("byte-order-mark", "the file begins with a UTF-8 byte order mark".into());
        }
        if self.source.crlf_lines > 0 {
            note("crlf", format!("{} lines end in CRLF", self.source.crlf_lines));
        }
        if self.source.blank_lines > 0 {
            note("blank-lines", format!("{} blank lines", self.source.blank_lines));
        }
        notes
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::Read { path: self.path.to_path_buf(), source }
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        let raw = match self.layout {
            Layout::Lines => self.source.next_line().map_err(|e| self.unreadable(e))?.map(|raw| (raw, None)),
            Layout::Array { next } => {
                let raw = self.next_element(next)?;
                self.layout = Layout::Array { next: next + 1 };
                raw.map(|raw| (raw, Some(next)))
            }
        };
        raw.map(|(raw, element)| self.parse(raw, element)).transpose()
    }

    fn parse(&self, raw: RawRow, element: Option<usize>) -> Result<Row> {
        let place = RowPlace { file: Arc::clone(&self.path), line: raw.line, element };
        let fault = |line, column, fault| {
            let place = RowPlace { line, ..place.clone() };
            Error::Row { place, column, key: None, fault: Box::new(fault) }
        };
        let bytes = raw.bytes.map_err(|e| fault(raw.line, None, e))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let at = error.valid_up_to();
            let (line, column) = line_and_column(&String::from_utf8_lossy(&bytes[..at]));
            let invalid = RowFault::InvalidUtf8 { offset: raw.offset + at as u64, byte: bytes[at] };
            fault(raw.line + line, Some(column), invalid)
        })?;
        match strict::parse(text) {
            Ok(Value::Object(columns)) => Ok(Row { place, columns }),
            Ok(other) => {
                Err(fault(raw.line, None, RowFault::NotAnObject { found: strict::type_name(&other) }))
            }
            Err((at, wrong)) => {
                let (line, column) = line_and_column(&text[..at]);
                Err(fault(raw.line + line, Some(column), wrong))
            }
        }
    }

    fn skip_space(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.source.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.source.bump(byte);
        }
        Ok(None)
    }

    /// Cut the next element out of the array. An element that is too long is skipped; a broken array ends the reading.
    fn next_element(&mut self, index: usize) -> Result<Option<RawRow>> {
        let mut first = self.skip_space().map_err(|e| self.unreadable(e))?;
        if first == Some(b']') {
            return self.end_of_array();
        }
        if index > 0 {
            if first != Some(b',') {
                return Err(self.broken(index, first, "has no comma"));
            }
            self.source.bump(b',');
            first = self.skip_space().map_err(|e| self.unreadable(e))?;
            if first == Some(b']') {
                return Err(self.broken(index, first, "ends in a comma"));
            }
        }
        let (line, offset) = (self.source.line, self.source.offset);
        let mut row = Bounded::new(self.source.cap);
        if !self.copy_element(&mut row).map_err(|e| self.unreadable(e))? {
            return Err(self.broken(index, None, ""));
        }
        Ok(Some(RawRow { line, offset, bytes: row.finish() }))
    }

    /// Copy up to the comma or bracket that ends the element; false when the file ends first.
    fn copy_element(&mut self, row: &mut Bounded) -> io::Result<bool> {
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        while let Some(byte) = self.source.peek()? {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b',' | b']' if depth == 0 => return Ok(true),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            row.extend(&[byte]);
            self.source.bump(byte);
        }
        Ok(false)
    }

    fn end_of_array(&mut self) -> Result<Option<RawRow>> {
        self.source.bump(b']');
        match self.skip_space().map_err(|e| self.unreadable(e))? {
            None => Ok(None),
            Some(_) => Err(self.broken_with("is followed by more text".into())),
        }
    }

    fn broken(&self, index: usize, found: Option<u8>, how: &str) -> Error {
        self.broken_with(match found {
            None => format!("is not closed: the file ends in or after element {index}"),
            Some(byte) => format!("{how} before element {index}: found `{}`", byte.escape_ascii()),
        })
    }

    fn broken_with(&self, message: String) -> Error {
        let place = RowPlace { file: Arc::clone(&self.path), line: self.source.line, element: None };
        Error::Row { place, column: None, key: None, fault: RowFault::BrokenArray { message }.into() }
    }
}

impl Iterator for JsonlReader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.finished {
            return None;
        }
        let next = self.next_row().transpose();
        self.finished = match &next {
            None => true,
            Some(Err(error)) => !error.is_about_one_row(),
            Some(Ok(_)) => false,
        };
        next
    }
}

/// Lines before the end of `text`, and the column (characters, from 1) of what follows it.
fn line_and_column(text: &str) -> (usize, usize) {
    let last = text.rsplit('\n').next().unwrap_or(text);
    (text.matches('\n').count(), last.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use proptest::prelude::*;
    use taper_diagnostics::Diagnose;

    fn read_as(name: &str, bytes: &[u8], cap: usize) -> (Vec<Result<Row>>, Problems) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut reader = match JsonlReader::with_max_row_bytes(&path, cap) {
            Ok(reader) => reader,
            Err(error) => return (vec![Err(error)], Problems::new()),
        };
        let rows = reader.by_ref().collect();
        (rows, reader.notes())
    }

    fn read(bytes: &[u8]) -> Vec<Result<Row>> {
        read_as("a.jsonl", bytes, MAX_ROW_BYTES).0
    }

    fn only_error(rows: &[Result<Row>]) -> &Error {
        match rows {
            [Err(error)] => error,
            other => panic!("expected one error, got {other:?}"),
        }
    }

    #[test]
    fn bom_crlf_blank_lines_and_no_final_line_end_are_accepted_and_noted() {
        let (rows, notes) = read_as("a.jsonl", b"\xEF\xBB\xBF{\"a\": 1}\r\n\r\n \n{\"a\": 2}", MAX_ROW_BYTES);
        let lines: Vec<usize> = rows.iter().map(|row| row.as_ref().unwrap().place.line).collect();
        assert_eq!(lines, [1, 4]);
        let codes: Vec<&str> = notes.iter().map(|note| note.code).collect();
        assert_eq!(codes, ["byte-order-mark", "crlf", "blank-lines"]);
        assert!(!notes.has_errors());
    }

    #[test]
    fn files_that_are_no_utf8_json_text_are_refused_by_name_with_a_remedy() {
        let utf16: Vec<u8> = "{\"a\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let with_bom = [b"\xFF\xFE".as_slice(), &utf16].concat();
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        for (name, bytes, code, says) in [
            ("a.jsonl", with_bom.as_slice(), "utf16", "UTF-16"),
            ("a.jsonl", &utf16, "utf16", "UTF-16"),
            ("a.jsonl", b"\xFE\xFF\0{", "utf16", "UTF-16"),
            ("a.jsonl", b"\xFF\xFE\0\0{\0\0\0", "utf32", "UTF-32"),
            ("a.jsonl", lfs, "lfs-pointer", "LFS"),
            ("a.jsonl", b"\x1F\x8B\x08\0", "compressed-file", "gzip"),
            ("a.jsonl", b"", "empty-file", "empty"),
            ("a.jsonl", b"<!DOCTYPE html><html>", "not-jsonl", "web page"),
            ("a.csv", b"a,b\n1,2\n", "not-jsonl", ".csv"),
            ("a.jsonl", b"[\n  {\"a\": 1}\n]\n", "not-jsonl", "one JSON array"),
        ] {
            let (rows, _) = read_as(name, bytes, MAX_ROW_BYTES);
            let error = only_error(&rows);
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().is_some() && error.location().unwrap().file.is_some());
        }
    }

    #[test]
    fn a_folder_and_an_absent_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let code = |path: &Path| JsonlReader::open(path).err().unwrap().code();
        assert_eq!(code(folder.path()), "not-a-file");
        assert_eq!(code(&folder.path().join("no.jsonl")), "unreadable-file");
    }

    #[test]
    fn a_faulty_row_is_told_with_line_and_column_and_the_next_is_read() {
        let rows = read(b"{\"a\": 1}\n{\"\xC3\xA9\": NaN}\n[1]\n{\"a\": \"\xE9\"}\n{\"a\": 3}\n");
        let at = |i: usize| {
            let error = rows[i].as_ref().unwrap_err();
            let location = error.location().unwrap();
            (error.code(), location.line.unwrap(), location.column)
        };
        assert_eq!(at(1), ("nan-literal", 2, Some(7)));
        assert_eq!(at(2), ("row-not-object", 3, None));
        assert_eq!(at(3), ("invalid-utf8", 4, Some(8)));
        assert!(rows[3].as_ref().unwrap_err().to_string().contains("0xe9 at offset 32"));
        assert_eq!(rows[4].as_ref().unwrap().columns["a"], 3);
    }

    #[test]
    fn a_row_over_the_cap_is_counted_without_being_kept() {
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(100_000));
        let bytes = format!("{long}\n{{\"a\": 1}}\n");
        let (rows, _) = read_as("a.jsonl", bytes.as_bytes(), 1000);
        let message = rows[0].as_ref().unwrap_err().to_string();
        assert_eq!(message, format!("the row has {} bytes, at most 1000 are read", long.len()));
        assert_eq!(rows[1].as_ref().unwrap().place.line, 2);
        let fifty_mb = format!("{{\"a\": \"{}\"}}\n{{\"a\": 1}}", "x".repeat(50 << 20));
        let rows = read(fifty_mb.as_bytes());
        let message = rows[0].as_ref().unwrap_err().to_string();
        assert_eq!(message, "the row has 52428809 bytes, at most 8388608 are read");
        assert!(rows[1].is_ok());
        let mut bounded = Bounded::new(10);
        for _ in 0..1000 {
            bounded.extend(&[b'x'; 100]);
            assert!(bounded.kept.capacity() <= 200);
        }
    }

    #[test]
    fn a_json_file_that_is_one_array_is_read_element_by_element() {
        let text = "\n[\n  {\"a\": \"],[{\\\"\"},\n  {\"a\":\n    [1, 2]}\n , 5,\n{\"a\":\n NaN}]\n";
        let (rows, _) = read_as("a.json", text.as_bytes(), MAX_ROW_BYTES);
        let place = |i: usize| {
            let place: &RowPlace = &rows[i].as_ref().unwrap().place;
            (place.line, place.element)
        };
        assert_eq!((place(0), place(1)), ((3, Some(0)), (4, Some(1))));
        assert_eq!(rows[0].as_ref().unwrap().columns["a"], "],[{\"");
        let at = |i: usize| rows[i].as_ref().unwrap_err().location().unwrap().to_string();
        assert!(at(2).ends_with("a.json:6 `[2]`"), "{}", at(2));
        assert!(at(3).ends_with("a.json:8:2 `[3]`"), "{}", at(3));
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn a_broken_array_ends_the_reading_with_its_place() {
        for (text, says) in [
            ("[{\"a\": 1}, {\"a\": ", "not closed"),
            ("[{\"a\": 1}", "not closed"),
            ("[{\"a\": 1},]", "ends in a comma"),
            ("[{\"a\": 1}] {}", "followed by more text"),
        ] {
            let (rows, _) = read_as("a.json", text.as_bytes(), MAX_ROW_BYTES);
            let message = rows.last().unwrap().as_ref().unwrap_err().to_string();
            assert!(message.contains(says), "{text}: {message}");
        }
        assert!(read_as("a.json", b"[]", MAX_ROW_BYTES).0.is_empty());
    }

    #[test]
    fn arrays_for_rows_are_told_apart_from_an_array_of_rows() {
        let rows = read(b"[\"--a\", \"b\"]\n[]\n");
        for row in &rows {
            let error = row.as_ref().unwrap_err();
            assert_eq!(error.to_string(), "the row is an array, expected an object");
            assert!(error.hint().unwrap().contains("`.json`"));
        }
        assert_eq!(rows.len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic_and_places_stay_in_the_file(
            bytes in prop::collection::vec(prop_oneof![
                prop::sample::select(b"{}[]\",:\\\n\r\t u1NaI".to_vec()), any::<u8>()
            ], 0..120),
            name in prop::sample::select(vec!["a.jsonl", "a.json"]),
        ) {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
            for row in read_as(name, &bytes, 60).0 {
                let place = match &row {
                    Ok(row) => row.place.location(),
                    Err(error) => error.location().unwrap(),
                };
                prop_assert!(place.line.unwrap_or(1) <= lines);
            }
        }

        #[test]
        fn rows_written_as_lines_and_as_an_array_are_read_back_alike(
            texts in prop::collection::vec(".{0,12}", 1..8), crlf: bool,
        ) {
            let rows: Vec<Value> = texts.iter().map(|text| serde_json::json!({ "t": text, "n": [1, {"}": "]"}] })).collect();
            let end = if crlf { "\r\n" } else { "\n" };
            let lines: String = rows.iter().map(|row| format!("{row}{end}")).collect();
            let array = serde_json::to_string_pretty(&rows).unwrap();
            let values = |name, text: String| -> Vec<Value> {
                read_as(name, text.as_bytes(), MAX_ROW_BYTES).0.into_iter()
                    .map(|row| Value::Object(row.unwrap().columns)).collect()
            };
            prop_assert_eq!(values("a.jsonl", lines), rows.clone());
            prop_assert_eq!(values("a.json", array), rows);
        }
    }

    #[test]
    fn reading_in_small_chunks_gives_the_same_lines() {
        let mut source = Source::from_bytes(b"{\"abcdefghijklmnop\": 1}\n\n{\"b\": 2}".to_vec(), 1000);
        let first = source.next_line().unwrap().unwrap();
        let second = source.next_line().unwrap().unwrap();
        assert_eq!((first.line, first.offset, first.bytes.unwrap().len()), (1, 0, 23));
        assert_eq!((second.line, second.offset), (3, 25));
        assert!(source.next_line().unwrap().is_none());
    }
}
