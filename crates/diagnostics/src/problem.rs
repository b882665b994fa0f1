//! A fault with its place and its remedy.

use crate::ExitCode;
use std::fmt;
use std::path::PathBuf;

/// A place in something the user gave. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Location {
    /// The file, when there is one.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Column in the line (characters), from 1.
    pub column: Option<usize>,
    /// Key, field or tensor name inside the file, for example `train.learning_rate`.
    pub key: Option<String>,
}

impl Location {
    /// A whole file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { file: Some(path.into()), ..Self::default() }
    }

    /// A line of a file.
    pub fn line(path: impl Into<PathBuf>, line: usize) -> Self {
        Self { file: Some(path.into()), line: Some(line), ..Self::default() }
    }

    /// The same place, naming a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wrote = false;
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            wrote = true;
        }
        if let Some(line) = self.line {
            write!(f, "{}{line}", if wrote { ":" } else { "line " })?;
            wrote = true;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        if let Some(key) = &self.key {
            write!(f, "{}`{key}`", if wrote { " " } else { "" })?;
        }
        Ok(())
    }
}

/// A value and the place it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stood.
    pub location: Location,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run may go on; a person should know.
    Warning,
    /// The run must not start.
    Error,
}

/// One fault: what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the run may go on.
    pub severity: Severity,
    /// A stable name for scripts, in kebab case, for example `unknown-key`.
    pub code: &'static str,
    /// What is wrong, a lowercase fragment with literals in backticks.
    pub message: String,
    /// Where.
    pub location: Option<Location>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A fault that stops the run.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), location: None, hint: None }
    }

    /// Something a person should know.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same problem with its place.
    #[must_use]
    pub fn at(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }

    /// The same problem with its remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of any crate as a problem.
    pub fn from_error(code: &'static str, error: &dyn Diagnose) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: chain(error),
            location: error.location(),
            hint: error.hint(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{word}[{}]: {}", self.code, self.message)?;
        if let Some(location) = &self.location {
            write!(f, "\n  --> {location}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  help: {hint}")?;
        }
        Ok(())
    }
}

/// What a crate's error knows beyond its text.
pub trait Diagnose: std::error::Error {
    /// What to do about it.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Where it is.
    fn location(&self) -> Option<Location> {
        None
    }

    /// How the process ends when this error stops it.
    fn exit_code(&self) -> ExitCode {
        ExitCode::UserError
    }
}

/// Many problems, in the order they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// No problem yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Add all of `other`.
    pub fn extend(&mut self, other: Problems) {
        self.0.extend(other.0);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them stops the run.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }

    /// `Err(self)` when one of them stops the run, else the warnings.
    pub fn into_result(self) -> Result<Problems, Problems> {
        if self.has_errors() { Err(self) } else { Ok(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Diagnose for Problems {}

/// The text of an error with the texts of what caused it.
fn chain(error: &dyn Diagnose) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = with_cause(text, cause);
        source = cause.source();
    }
    text
}

/// `text: cause`, without what is told already: many an error ends with its cause's words, and an error of the disk names the
/// file (``failed to open file `a.txt`: permission denied``) that `text` may have named.
pub fn with_cause(text: String, cause: &dyn std::error::Error) -> String {
    let words = cause.to_string();
    let told = |path: &str| !path.is_empty() && text.contains(&format!("`{path}`"));
    let words = match words.split_once("`: ") {
        Some((what, why)) if what.rsplit('`').next().is_some_and(told) => why,
        _ => &words,
    };
    if text.ends_with(words) { text } else { format!("{text}: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_where_and_what_to_do() {
        let problem = Problem::error("unknown-key", "unknown key `lerning_rate`")
            .at(Location::line("r.toml", 7).with_key("optimizer.lerning_rate"))
            .hint("did you mean `learning_rate`?");
        assert_eq!(
            problem.to_string(),
            "error[unknown-key]: unknown key `lerning_rate`\n  --> r.toml:7 `optimizer.lerning_rate`\n  help: did you mean `learning_rate`?"
        );
    }

    #[test]
    fn a_file_that_was_named_is_not_named_again_by_its_cause() {
        let cause = std::io::Error::other("failed to open file `a.txt`: permission denied");
        assert_eq!(
            with_cause("cannot read `a.txt`".into(), &cause),
            "cannot read `a.txt`: permission denied"
        );
        let other = "cannot read `b.txt`: failed to open file `a.txt`: permission denied";
        assert_eq!(with_cause("cannot read `b.txt`".into(), &cause), other);
    }

    /// An error whose text already ends with that of its cause, as `{source}` in a message makes it.
    #[derive(Debug)]
    struct Wrapped(std::io::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "failed to read `a.json`: {}", self.0)
        }
    }

    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    impl Diagnose for Wrapped {}

    #[test]
    fn a_cause_that_the_error_has_told_is_not_told_again() {
        let problem = Problem::from_error("read", &Wrapped(std::io::Error::other("disk on fire")));
        assert_eq!(problem.message, "failed to read `a.json`: disk on fire");
    }

    #[test]
    fn warnings_alone_do_not_stop_a_run() {
        let mut problems = Problems::new();
        problems.push(Problem::warning("w", "odd"));
        assert!(problems.clone().into_result().is_ok());
        problems.push(Problem::error("e", "wrong"));
        assert_eq!(problems.into_result().unwrap_err().len(), 2);
    }
}
