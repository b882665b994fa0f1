//! What GitHub's runner, where there is one, is told for its pages.

use crate::output::say;
use std::io::Write;
use taper_eval::report::step_summary;

/// Show annotations, workflow commands each, beside the change.
pub(crate) fn annotate(commands: &[String]) {
    if std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        commands.iter().for_each(|line| say(line));
    }
}

/// Add Markdown to the page of the job.
pub(crate) fn add_to_step_summary(markdown: &str) {
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else { return };
    let summary = fs_err::OpenOptions::new().append(true).create(true).open(&path);
    let written = summary.and_then(|mut file| file.write_all(step_summary(markdown).as_bytes()));
    if let Err(error) = written {
        say(&format!("warning: the step summary cannot be written: {error}"));
    }
}
