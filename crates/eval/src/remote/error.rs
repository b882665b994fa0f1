//! What can go wrong between us and a server.

use taper_diagnostics::{Diagnose, ExitCode, Problems};

/// The errors of a remote model. None of them has the key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The section cannot be used.
    #[error("{0}")]
    Section(Problems),
    /// The variable with the key is not there.
    #[error("the environment variable `{variable}`, which should hold the API key, is {what}")]
    Key {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The client could not be made.
    #[error("the address of {endpoint} cannot be asked: {reason}")]
    Address {
        /// The model and its address.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The server does not let us in: 401 or 403.
    #[error("{endpoint} refused access (status {status}): {message}")]
    Access {
        /// The model and its address.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What the server says.
        message: String,
        /// The variable of the key, where one was sent.
        variable: Option<String>,
    },
    /// The server says no.
    #[error("{endpoint} answered with status {status}{}: {message}", times(*attempts))]
    Status {
        /// The model and its address.
        endpoint: String,
        /// The status.
        status: u16,
        /// What the server says.
        message: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// There was no answer.
    #[error("{endpoint} could not be asked{}: {reason}", times(*attempts))]
    Unreachable {
        /// The model and its address.
        endpoint: String,
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The server sends us elsewhere.
    #[error("{endpoint} answered with a redirect to `{to}`, which is not followed")]
    Redirect {
        /// The model and its address.
        endpoint: String,
        /// Where to.
        to: String,
    },
    /// The answer is too long.
    #[error("the answer of {endpoint} is longer than {limit} bytes")]
    TooLarge {
        /// The model and its address.
        endpoint: String,
        /// The most that is read.
        limit: u64,
    },
    /// The answer is not what the interface says.
    #[error("the answer of {endpoint} cannot be read: {what}")]
    Unreadable {
        /// The model and its address.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// The server does not tell the log-probabilities of a prompt.
    #[error("{endpoint} does not give the log-probabilities of a text: {reason}")]
    NoLogProbabilities {
        /// The model and its address.
        endpoint: String,
        /// Why it is thought so.
        reason: String,
    },
    /// It was given up while waiting.
    #[error("the request to {endpoint} was given up")]
    GivenUp {
        /// The model and its address.
        endpoint: String,
    },
}

/// The result of asking a remote model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether further requests of other items will end in the same way, so that there is no use in sending them.
    pub fn is_for_all_items(&self) -> bool {
        match self {
            Self::Section(_)
            | Self::Key { .. }
            | Self::Address { .. }
            | Self::Access { .. }
            | Self::Redirect { .. }
            | Self::NoLogProbabilities { .. } => true,
            Self::Status { status, .. } => matches!(status, 402 | 404 | 405),
            _ => false,
        }
    }

    pub(super) fn after(self, tries: u32) -> Self {
        match self {
            Self::Status { endpoint, status, message, .. } => {
                Self::Status { endpoint, status, message, attempts: tries }
            }
            Self::Unreachable { endpoint, reason, .. } => {
                Self::Unreachable { endpoint, reason, attempts: tries }
            }
            other => other,
        }
    }
}

fn times(attempts: u32) -> String {
    if attempts > 1 { format!(" ({attempts} times)") } else { String::new() }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Key { variable, .. } => Some(format!("set it before the run: `export {variable}=...`")),
            Self::Access { variable: Some(variable), .. } => {
                Some(format!("look at the key in the environment variable `{variable}`"))
            }
            Self::Access { variable: None, .. } => {
                Some("name the environment variable with the key in `api_key_env`".into())
            }
            Self::Status { status: 404, .. } => {
                Some("look at `url`, which mostly ends with `/v1`, and at `model`".into())
            }
            Self::Status { status: 429, .. } => {
                Some("set `requests_per_minute`, or lower `concurrency`".into())
            }
            Self::Redirect { .. } => Some("set `url` to the address of the server itself".into()),
            Self::NoLogProbabilities { .. } => {
                Some("vLLM and `taper serve` give them; else ask for metrics of written answers".into())
            }
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::UserError
    }
}
