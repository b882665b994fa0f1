//! What can go wrong between files, messages and token ids.

use std::path::PathBuf;
use taper_diagnostics::{Diagnose, Location, list_names};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault in a tokenizer folder, a chat template, or a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk said no; the text names the file.
    #[error("{0}")]
    Io(#[from] std::io::Error),

    /// A file is larger than any honest one of its kind.
    #[error("`{}` holds {bytes} bytes, the limit is {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size read.
        limit: u64,
    },

    /// A file is not JSON.
    #[error("`{}` is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },

    /// A value in a JSON file has the wrong type or is not known to the tokenizer.
    #[error("`{key}` in `{}` must be {expected}, not {given}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },

    /// The model folder has no tokenizer.json.
    #[error("the model has no `tokenizer.json`")]
    NoTokenizer,

    /// tokenizer.json is JSON, but not a tokenizer.
    #[error("`{}` is not a tokenizer: {message}", path.display())]
    BadTokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library says.
        message: String,
    },

    /// The tokenizer refused a text.
    #[error("failed to tokenize a text of {bytes} bytes: {message}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizers library says.
        message: String,
    },

    /// Tokens have no bytes of their own.
    #[error("what a token adds to a text cannot be told with this tokenizer's decoder ({decoder})")]
    TokenBytes {
        /// The kind of its decoder.
        decoder: &'static str,
    },

    /// The tokenizer refused ids.
    #[error("failed to decode {tokens} token ids: {message}")]
    Decode {
        /// Number of ids.
        tokens: usize,
        /// What the tokenizers library says.
        message: String,
    },

    /// The model has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,

    /// A list of templates has none of the name asked for.
    #[error("there is no chat template named `{name}`, only {}", list_names(available, 10))]
    NoTemplateNamed {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },

    /// The template is not valid Jinja.
    #[error("chat template {origin} does not parse: {message}")]
    TemplateSyntax {
        /// The file or key it comes from.
        origin: String,
        /// The file, when it has one of its own.
        path: Option<PathBuf>,
        /// Line in the template, from 1.
        line: Option<usize>,
        /// What the parser says.
        message: String,
    },

    /// The template refused the conversation, or failed over it.
    #[error("chat template {origin} failed: {message}")]
    Render {
        /// The file or key it comes from.
        origin: String,
        /// The file, when it has one of its own.
        path: Option<PathBuf>,
        /// Line in the template, from 1.
        line: Option<usize>,
        /// What it said.
        message: String,
        /// It called `raise_exception`: the conversation is at fault, not the template.
        raised: bool,
    },

    /// The final message cannot be continued.
    #[error("the final message cannot be continued: {reason}")]
    ContinueFinalMessage {
        /// Why.
        reason: &'static str,
    },

    /// It cannot be said for certain which part of the text an assistant turn is.
    #[error("cannot locate the assistant's part of `messages[{message}]` in the rendered chat: {reason}")]
    UncertainSpan {
        /// Index of the message.
        message: usize,
        /// What made it uncertain.
        reason: String,
    },

    /// The conversation contains characters that this crate uses as marks.
    #[error("the conversation contains U+{code:X}, a private-use character of plane 16")]
    ReservedCharacter {
        /// The character.
        code: u32,
    },

    /// A message is not an object with a role.
    #[error("a message must be {expected}, not {given}")]
    BadMessage {
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoTokenizer => {
                "a model folder needs tokenizer.json; a sentencepiece tokenizer.model has to be converted first".into()
            }
            Self::NoTemplate => {
                "use prompt/completion or text data, or give a template with `model.chat_template`".into()
            }
            Self::TooLarge { .. } => "is it the right file?".into(),
            Self::Render { raised: true, .. } => {
                "the checkpoint's template does not accept this conversation: change the roles or their order, or give another template with `model.chat_template`".into()
            }
            Self::Render { .. } => {
                "a template reads fields of a message without asking whether they are there: compare the message with what the template expects".into()
            }
            Self::UncertainSpan { .. } => {
                "put {% generation %} and {% endgeneration %} around what the assistant says, stop token included, in a copy of the template and give it with `model.chat_template`".into()
            }
            Self::ReservedCharacter { .. } => "remove the character from the data".into(),
            _ => return None,
        })
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::TooLarge { path, .. } | Self::BadTokenizer { path, .. } => Some(Location::file(path)),
            Self::Json { path, source } => {
                let mut at = Location::line(path, source.line());
                at.column = Some(source.column());
                Some(at)
            }
            Self::Field { path, key, .. } => Some(Location::file(path).with_key(key)),
            Self::TemplateSyntax { path: Some(path), line, .. }
            | Self::Render { path: Some(path), line, .. } => {
                Some(Location { line: *line, ..Location::file(path) })
            }
            Self::UncertainSpan { message, .. } => {
                Some(Location { key: Some(format!("messages[{message}]")), ..Location::default() })
            }
            _ => None,
        }
    }
}
