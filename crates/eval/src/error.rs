//! What can go wrong in an evaluation.

use taper_diagnostics::{Diagnose, ExitCode, Location, Problems};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to evaluate.
    #[error("evaluation `{eval}` has no example")]
    NoExamples {
        /// Its name.
        eval: String,
    },
    /// Examples that cannot be evaluated.
    #[error("{0}")]
    Problems(Problems),
    /// A conversation, but nothing to render it with.
    #[error("evaluation `{eval}` has conversations, but the model has no chat template")]
    NoTemplate {
        /// Its name.
        eval: String,
    },
    /// Responses that are not one an item.
    #[error("`{candidate}` has {responses} responses for the {items} items of `{eval}`")]
    NotPaired {
        /// The evaluation.
        eval: String,
        /// The candidate.
        candidate: String,
        /// Its responses.
        responses: usize,
        /// The items.
        items: usize,
    },
    /// A value of the section that cannot be used.
    #[error("`{key}` of the evaluation `{eval}` cannot be used: {reason}")]
    Unusable {
        /// The evaluation.
        eval: String,
        /// The key.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// Generating or scoring failed.
    #[error("failed to evaluate `{candidate}` on `{eval}`")]
    Infer {
        /// The candidate.
        candidate: String,
        /// The evaluation.
        eval: String,
        /// The example, when it is about one.
        place: Option<Box<Location>>,
        /// Why.
        source: Box<taper_infer::Error>,
    },
    /// An endpoint cannot be asked.
    #[error("`{candidate}` cannot be asked for `{eval}`: {source}")]
    Remote {
        /// The candidate.
        candidate: String,
        /// The evaluation.
        eval: String,
        /// Why.
        source: Box<crate::remote::Error>,
    },
    /// A line of `samples.jsonl` that is no sample.
    #[error("line {line} of the samples is no sample")]
    Sample {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A report could not be written.
    #[error("failed to write the report")]
    Write(#[source] std::io::Error),
    /// A report could not be put into JSON.
    #[error("failed to write `{file}` as JSON")]
    Json {
        /// The file.
        file: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoExamples { .. } => {
                Some("name a file with examples in `data` of the `[[eval]]`, or in `data.test`".into())
            }
            Self::NoTemplate { .. } => Some("set `model.chat_template` to a Jinja file".into()),
            Self::Infer { source, .. } => source.hint(),
            Self::Remote { source, .. } => source.hint(),
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Infer { place, .. } => place.as_deref().cloned(),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoExamples { .. } => ExitCode::NothingEvaluated,
            Self::NotPaired { .. } | Self::Json { .. } => ExitCode::Fault,
            Self::Infer { source, .. } => source.exit_code(),
            _ => ExitCode::UserError,
        }
    }
}
