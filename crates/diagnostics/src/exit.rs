//! The exit codes of the command line: scripts and CI depend on them.

/// How a verb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// All that was asked for was done, every gate passed.
    Passed = 0,
    /// A fault of taper itself.
    Fault = 1,
    /// What the user gave is wrong: a recipe, a file, a flag.
    UserError = 2,
    /// An evaluation was asked for and nothing was evaluated.
    NothingEvaluated = 4,
    /// There is not enough data to say.
    Inconclusive = 5,
    /// A gate failed.
    GateFailed = 100,
    /// Interrupted; a checkpoint was written.
    Interrupted = 130,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
