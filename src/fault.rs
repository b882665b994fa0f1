//! An error on its way out: what, where, what to do, and the exit code.

use crate::output::say;
use taper_diagnostics::{Diagnose, ExitCode, Problem};

/// An error of one of our crates, with what it knows beyond its text.
#[derive(Debug)]
pub(crate) struct Fault {
    problem: String,
    code: ExitCode,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Fault {}

/// Turn errors that can tell more than their text into ones that do.
pub(crate) trait OrFault<T> {
    /// The value, or the error with its place and its remedy.
    fn or_fault(self) -> anyhow::Result<T>;
}

impl<T, E: Diagnose + Send + Sync + 'static> OrFault<T> for Result<T, E> {
    fn or_fault(self) -> anyhow::Result<T> {
        self.map_err(|error| {
            let code = error.exit_code();
            let text = error.to_string();
            // A list of problems is already laid out; anything else is one problem.
            let problem = if text.starts_with("error[") || text.starts_with("warning[") {
                text
            } else {
                laid_out(&error)
            };
            anyhow::Error::new(Fault { problem, code })
        })
    }
}

fn laid_out(error: &dyn Diagnose) -> String {
    let text = Problem::from_error("", error).to_string();
    text.replacen("error[]: ", "error: ", 1)
}

/// Tell a person what went wrong; the exit code that goes with it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Fault>() {
        Some(fault) => {
            say(&fault.problem);
            fault.code
        }
        // Whoever reads our output has enough of it, as `head` does.
        None if disk_error(error) == Some(std::io::ErrorKind::BrokenPipe) => ExitCode::Passed,
        None => {
            say(&format!("error: {error:#}"));
            if disk_error(error).is_some() { ExitCode::UserError } else { ExitCode::Fault }
        }
    }
}

/// The exit code that goes with an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    error.downcast_ref::<Fault>().map_or(ExitCode::Fault, |fault| fault.code)
}

/// What the disk or a pipe said, when it was one of them.
fn disk_error(error: &anyhow::Error) -> Option<std::io::ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

/// An error of the user's doing that has no crate of its own.
pub(crate) fn user_error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    let (message, hint) = (message.into(), hint.into());
    anyhow::Error::new(Fault {
        problem: format!("error: {message}\n  help: {hint}"),
        code: ExitCode::UserError,
    })
}
