//! Files to examples: all faults at once, or skipped and listed.

use crate::error::{Error, Result};
use crate::example::Example;
use crate::fault::RowFault;
use crate::fields;
use crate::format::{DatasetFormat, name_in_file};
use crate::jsonl::{JsonlReader, Row};
use crate::section::{DataSection, OnError};
use std::fmt;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Location, Problem, Problems, did_you_mean, list_names};

/// With `on_error = "stop"`, reading ends after this many faulty rows.
pub const MOST_PROBLEMS: usize = 20;

/// Examples of one or several files, in the order of the files.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// The examples.
    pub examples: Vec<Example>,
    /// How they were read.
    pub report: LoadReport,
}

/// What was read, what was left out, and what is odd.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Each file with what was found in it.
    pub files: Vec<FileReport>,
    /// Rows that were left out because of `on_error = "skip"`, each with its place.
    pub skipped: Problems,
    /// What a person should know; none of it stops a run.
    pub notes: Problems,
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Its format; `None` when no row could be read.
    pub format: Option<DatasetFormat>,
    /// Whether the format was recognised (true) or named in the recipe.
    pub recognised: bool,
    /// Rows, faulty ones included, blank lines not.
    pub rows: usize,
    /// Rows that became examples.
    pub kept: usize,
}

impl LoadReport {
    /// Rows of all files.
    pub fn rows(&self) -> usize {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Rows that became examples.
    pub fn kept(&self) -> usize {
        self.files.iter().map(|file| file.kept).sum()
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = self.format.map_or("unknown", DatasetFormat::name);
        let how = if self.recognised { "recognised" } else { "as named" };
        write!(f, "{}: {} of {} rows, format `{format}` ({how})", self.path.display(), self.kept, self.rows)
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{file}")?;
        }
        if !self.skipped.is_empty() {
            writeln!(f, "skipped {}:", self.skipped.len())?;
        }
        for problem in self.skipped.iter() {
            let location = problem.location.as_ref().map(ToString::to_string).unwrap_or_default();
            writeln!(f, "  {location}: {} [{}]", problem.message, problem.code)?;
        }
        Ok(())
    }
}

/// Read the files.
///
/// # Errors
/// [`Error::Problems`]: with `on_error = "stop"` up to [`MOST_PROBLEMS`] faulty rows; in either case files that cannot be
/// read or hold no example.
pub fn load(paths: &[PathBuf], section: &DataSection) -> Result<Dataset> {
    load_with_fields(paths, section, &[])
}

/// [`load`], and of each row the values that `fields` name, as [`Example::fields`].
///
/// A name is a column's; `meta.kind` is `kind` in the object `meta`, unless the row has a column of that very name. A value is
/// kept as the row has it, `null` included; a row without the field has no entry. Columns that were asked for are not told as
/// unread.
///
/// # Errors
/// As for [`load`].
pub fn load_with_fields(paths: &[PathBuf], section: &DataSection, fields: &[String]) -> Result<Dataset> {
    let mut examples = Vec::new();
    let report = read(paths, section, fields, &mut |example| examples.push(example))?;
    Ok(Dataset { examples, report })
}

/// Read the files, giving each example with its `fields` to `take` as it comes; none after the first fault that stops a run.
///
/// # Errors
/// As for [`load`].
pub(crate) fn read(
    paths: &[PathBuf],
    section: &DataSection,
    fields: &[String],
    take: &mut dyn FnMut(Example),
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut problems = Problems::new();
    for path in paths {
        let mut file = FileLoad::new(path, (section, fields), MOST_PROBLEMS.saturating_sub(problems.len()));
        let nothing_wrong = problems.is_empty();
        file.read(&mut report, &mut |example| {
            if nothing_wrong {
                take(example);
            }
        });
        problems.extend(file.problems);
        if problems.len() >= MOST_PROBLEMS {
            break;
        }
    }
    if problems.is_empty() { Ok(report) } else { Err(Error::Problems(problems)) }
}

struct FileLoad<'a> {
    path: &'a Path,
    section: &'a DataSection,
    /// Names of what is asked for beside the format's columns.
    fields: &'a [String],
    /// The format and the line where it was first seen.
    format: Option<(DatasetFormat, usize)>,
    unused: Vec<String>,
    rows: usize,
    problems: Problems,
    most: usize,
    /// The columns are not those of the format: the other rows are read for faults of syntax alone.
    unusable: bool,
}

impl<'a> FileLoad<'a> {
    fn new(path: &'a Path, (section, fields): (&'a DataSection, &'a [String]), most: usize) -> Self {
        Self {
            path,
            section,
            fields,
            format: None,
            unused: Vec::new(),
            rows: 0,
            problems: Problems::new(),
            most,
            unusable: false,
        }
    }

    fn read(&mut self, report: &mut LoadReport, take: &mut dyn FnMut(Example)) {
        let mut reader = match JsonlReader::open(self.path) {
            Ok(reader) => reader,
            Err(error) => return self.problems.push(error.to_problem()),
        };
        let mut kept = 0;
        for row in reader.by_ref() {
            self.rows += 1;
            let row = match row {
                Ok(_) if self.unusable => continue,
                row => row,
            };
            match row.and_then(|row| self.example(&row)) {
                Ok(example) => {
                    kept += 1;
                    if self.problems.is_empty() {
                        take(example);
                    }
                }
                Err(error) if self.section.on_error == OnError::Skip && error.is_about_one_row() => {
                    report.skipped.push(error.to_problem());
                }
                Err(error) => {
                    self.unusable |= self.is_about_every_row(&error);
                    self.problems.push(error.to_problem());
                    if self.problems.len() >= self.most {
                        break;
                    }
                }
            }
        }
        report.notes.extend(reader.notes());
        self.finish(kept, report);
    }

    fn example(&mut self, row: &Row) -> Result<Example> {
        let section = self.section;
        let detected = DatasetFormat::detect(&row.columns, section);
        let fault = |fault: RowFault| {
            Err(Error::Row { place: row.place.clone(), column: None, key: None, fault: fault.into() })
        };
        let format = match (DatasetFormat::chosen(section.format), self.format, detected) {
            (Some(chosen), _, _) => chosen,
            (None, Some((known, first_line)), Some(found)) if found != known => {
                let (found, expected) = (found.name(), known.name());
                return fault(RowFault::MixedFormats { found, expected, first_line });
            }
            (None, Some((known, _)), _) => known,
            (None, None, Some(found)) => found,
            (None, None, None) => {
                return fault(RowFault::UnknownFormat { present: row.columns.keys().cloned().collect() });
            }
        };
        self.format.get_or_insert((format, row.place.line));
        let mut example = format.example(row, section)?;
        example.fields = fields::values(&row.columns, self.fields);
        for name in format.unused(&row.columns, section) {
            if !fields::is_asked(self.fields, name) && !self.unused.iter().any(|known| known == name) {
                self.unused.push(name.to_owned());
            }
        }
        Ok(example)
    }

    /// A first row without the columns means that every row is without them.
    fn is_about_every_row(&self, error: &Error) -> bool {
        let Error::Row { fault, .. } = error else { return false };
        let columns = matches!(
            **fault,
            RowFault::UnknownFormat { .. }
                | RowFault::MissingColumns { .. }
                | RowFault::NeedsTemplate { .. }
                | RowFault::NoPlaceForSystemPrompt
        );
        columns && self.rows == 1
    }

    fn finish(&mut self, kept: usize, report: &mut LoadReport) {
        let recognised = DatasetFormat::chosen(self.section.format).is_none();
        let format = self.format.map(|(format, _)| format);
        report.files.push(FileReport {
            path: self.path.to_owned(),
            format,
            recognised,
            rows: self.rows,
            kept,
        });
        if let (Some(format), false) = (format, self.unused.is_empty()) {
            report.notes.push(self.unused_columns(format));
        }
        if kept == 0 && self.problems.is_empty() {
            let message = match self.rows {
                0 => "the file has no rows".to_owned(),
                rows => format!("none of the {rows} rows can be used"),
            };
            let first = report.skipped.iter().find(|p| self.is_here(p)).map(|p| {
                let line = p.location.as_ref().and_then(|at| at.line).unwrap_or_default();
                format!("the first fault is on line {line}: {}", p.message)
            });
            let mut problem = Problem::error("no-examples", message).at(Location::file(self.path));
            problem.hint = first;
            self.problems.push(problem);
        }
    }

    fn is_here(&self, problem: &Problem) -> bool {
        problem.location.as_ref().is_some_and(|at| at.file.as_deref() == Some(self.path))
    }

    fn unused_columns(&self, format: DatasetFormat) -> Problem {
        let verb = if self.unused.len() == 1 { "column is" } else { "columns are" };
        let message = format!("{verb} not read: {}", list_names(&self.unused, 12));
        let problem = Problem::warning("unused-column", message).at(Location::file(self.path));
        let near = format.optional().iter().find_map(|column| {
            let is_absent = !self.section.columns.contains_key(*column);
            let near = did_you_mean(name_in_file(self.section, column), &self.unused)?;
            is_absent.then(|| format!("if `{near}` is `{column}`: `columns = {{ {column} = \"{near}\" }}`"))
        });
        match near {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    fn load_text(text: &str, section: &DataSection) -> Result<Dataset, Problems> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, text).unwrap();
        load(&[path], section).map_err(|error| match error {
            Error::Problems(problems) => problems,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn fields_that_are_asked_for_come_with_the_example_and_are_not_told_as_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let rows = [
            r#"{"prompt": "q", "completion": "a", "site": "north", "meta": {"kind": {"of": [1]}, "by": 3}, "id": 1}"#,
            r#"{"prompt": "q", "completion": "a", "meta.kind": "own", "meta": {"kind": "nested"}, "site": null}"#,
            r#"{"prompt": "q", "completion": "a", "meta": "no object", "sites": 1}"#,
        ];
        fs::write(&path, rows.join("\n")).unwrap();
        let asked = ["site", "meta.kind", "prompt"].map(String::from);
        let dataset = load_with_fields(std::slice::from_ref(&path), &DataSection::default(), &asked).unwrap();
        let fields: Vec<String> =
            dataset.examples.iter().map(|e| serde_json::to_string(&e.fields).unwrap()).collect();
        assert_eq!(
            fields,
            [
                r#"{"meta.kind":{"of":[1]},"prompt":"q","site":"north"}"#,
                r#"{"meta.kind":"own","prompt":"q","site":null}"#,
                r#"{"prompt":"q"}"#
            ]
        );
        let note = dataset.report.notes.iter().next().unwrap();
        assert_eq!(note.message, "columns are not read: `id`, `sites`");
        let plain = load(&[path], &DataSection::default()).unwrap();
        assert!(plain.examples.iter().all(|example| example.fields.is_empty()));
        assert!(plain.report.notes.to_string().contains("`site`, `meta`, `id`"));
    }

    fn skipping() -> DataSection {
        DataSection { on_error: OnError::Skip, ..DataSection::default() }
    }

    const MIXED: &str = "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"text\": \"t\"}\nnot json\n{\"prompt\": \"q\", \"completion\": \"\"}\n";

    #[test]
    fn stopping_lists_all_faulty_rows_at_once() {
        let problems = load_text(MIXED, &DataSection::default()).unwrap_err();
        let found: Vec<(&str, usize)> =
            problems.iter().map(|p| (p.code, p.location.as_ref().unwrap().line.unwrap())).collect();
        assert_eq!(found, [("mixed-formats", 2), ("json-syntax", 3), ("empty-content", 4)]);
        let first = problems.iter().next().unwrap();
        assert_eq!(first.message, "the row is `text`, but the file is `prompt_completion` since line 1");
    }

    #[test]
    fn skipping_counts_and_lists_what_it_left_out() {
        let dataset = load_text(MIXED, &skipping()).unwrap();
        assert_eq!((dataset.examples.len(), dataset.report.rows(), dataset.report.kept()), (1, 4, 1));
        assert_eq!(dataset.report.skipped.len(), 3);
        let text = dataset.report.to_string();
        assert!(
            text.contains("1 of 4 rows") && text.contains("skipped 3:") && text.contains("a.jsonl:3:2"),
            "{text}"
        );
    }

    #[test]
    fn stopping_ends_after_twenty_faults() {
        let text = "{\"text\": \"t\"}\n".to_owned() + &"{\"text\": 1}\n".repeat(50);
        assert_eq!(load_text(&text, &DataSection::default()).unwrap_err().len(), MOST_PROBLEMS);
        assert_eq!(load_text(&text, &skipping()).unwrap().report.skipped.len(), 50);
    }

    #[test]
    fn an_unknown_format_is_told_once_with_the_columns() {
        let problems =
            load_text(&"{\"question\": 1, \"answer\": 2}\n".repeat(30), &DataSection::default()).unwrap_err();
        assert_eq!(problems.len(), 1);
        let text = problems.to_string();
        assert!(text.contains("`question`, `answer`"), "{text}");
        assert!(text.contains("columns = { prompt = \"question\", completion = \"answer\" }"), "{text}");
    }

    #[test]
    fn a_file_without_a_usable_row_is_an_error_even_when_skipping() {
        let none = load_text("[1]\n[2]\n", &skipping()).unwrap_err().to_string();
        assert!(none.contains("none of the 2 rows") && none.contains("line 1"), "{none}");
        assert!(load_text("\n\n", &skipping()).unwrap_err().to_string().contains("no rows"));
    }

    #[test]
    fn columns_that_are_not_read_are_told_with_the_nearest_that_would_be() {
        let dataset = load_text(
            "{\"instruction\": \"i\", \"inputs\": \"x\", \"output\": \"o\", \"id\": 1}\n",
            &skipping(),
        )
        .unwrap();
        let note = dataset.report.notes.iter().next().unwrap();
        assert_eq!(
            (note.code, note.message.as_str()),
            ("unused-column", "columns are not read: `inputs`, `id`")
        );
        assert_eq!(note.hint.as_deref(), Some("if `inputs` is `input`: `columns = { input = \"inputs\" }`"));
    }
}
