//! Where words go: people's to stderr, one machine-readable object (with `--json`) or plain results to stdout.

use std::io::{IsTerminal, Write};

/// A line for people.
pub(crate) fn say(line: &str) {
    // A closed stderr is no reason to stop training.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A result on stdout.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()?;
    Ok(())
}

/// Part of a line on stdout, at once: a token as it is generated.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn print_piece(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Whether bars may be drawn: stderr is a terminal, and this is not CI.
pub(crate) fn interactive() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("CI").is_none_or(|v| v.is_empty() || v == "false")
}
