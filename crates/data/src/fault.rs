//! What can be wrong with one row, each with its stable code and its remedy.

use taper_diagnostics::{did_you_mean, list_names};

/// Roles that a message may have.
pub const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Names that a ShareGPT turn may have in `from`.
pub const SHAREGPT_ROLES: [&str; 9] =
    ["human", "user", "gpt", "assistant", "chatgpt", "system", "function_call", "observation", "tool"];

/// What is wrong with a row. The text names what was found; [`RowFault::hint`] says what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowFault {
    /// More bytes than the reader takes for one row.
    #[error("the row has {bytes} bytes, at most {cap} are read")]
    TooLong {
        /// Bytes of the row.
        bytes: u64,
        /// The reader's limit.
        cap: usize,
    },
    /// Bytes that are not UTF-8.
    #[error("byte {byte:#04x} at offset {offset} of the file is not UTF-8")]
    InvalidUtf8 {
        /// Offset in the file, from 0.
        offset: u64,
        /// The byte there.
        byte: u8,
    },
    /// `NaN`, `Infinity` or `-Infinity`, which Python writes and JSON does not know.
    #[error("`{literal}` is not JSON")]
    NotANumber {
        /// As written.
        literal: &'static str,
    },
    /// Half of a surrogate pair.
    #[error("`{escape}` is half of a surrogate pair: it stands for no character")]
    LoneSurrogate {
        /// As written.
        escape: String,
    },
    /// The same key twice in one object.
    #[error("the key `{key}` stands twice in one object")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Deeper than the reader follows.
    #[error("values are nested more than {cap} deep")]
    TooDeep {
        /// The reader's limit.
        cap: usize,
    },
    /// Any other fault of JSON syntax.
    #[error("not JSON: {message}")]
    Syntax {
        /// What the parser said.
        message: String,
        /// What to do, where the reader knows.
        remedy: Option<&'static str>,
    },
    /// The whole-file array breaks off or is malformed between elements.
    #[error("the array of rows {message}")]
    BrokenArray {
        /// How.
        message: String,
    },
    /// A row that is no object.
    #[error("the row is {found}, expected an object")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// Needed columns are not there.
    #[error(
        "a `{format}` row needs {}, and {} missing; the row has {}",
        list_names(needed, 8),
        are(missing),
        keys(present)
    )]
    MissingColumns {
        /// The format.
        format: &'static str,
        /// All columns that it needs, by their names in the file.
        needed: Vec<String>,
        /// Those that are not there.
        missing: Vec<String>,
        /// The columns that are.
        present: Vec<String>,
    },
    /// No format fits.
    #[error("no known format has these columns: {}", keys(present))]
    UnknownFormat {
        /// The columns of the row.
        present: Vec<String>,
    },
    /// Another format than the file began with.
    #[error("the row is `{found}`, but the file is `{expected}` since line {first_line}")]
    MixedFormats {
        /// What this row is.
        found: &'static str,
        /// What the file is.
        expected: &'static str,
        /// Where that was seen.
        first_line: usize,
    },
    /// A value of the wrong type.
    #[error("{found} where {expected} belongs")]
    WrongType {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A list or a text that must not be empty.
    #[error("{what} is empty")]
    Empty {
        /// What.
        what: &'static str,
    },
    /// A role that no template knows.
    #[error("unknown role `{role}`, allowed are {}", list_names(*allowed, 12))]
    UnknownRole {
        /// As written.
        role: String,
        /// What is allowed.
        allowed: &'static [&'static str],
    },
    /// A system message that is not the first.
    #[error("a system message stands at place {place}, only the first message may be one")]
    LateSystem {
        /// Its place among the messages, from 1.
        place: usize,
    },
    /// A conversation that ends before the answer.
    #[error("the last message is from `{role}`: there is no answer to learn from")]
    NoFinalAnswer {
        /// The role of the last message.
        role: String,
    },
    /// A content part that is not text.
    #[error("a content part of type `{kind}`: only text can be trained on")]
    NotText {
        /// The type as written.
        kind: String,
    },
    /// Arguments of a tool call that are not a JSON object.
    #[error("arguments of a tool call are {found}, expected a JSON object or a string that holds one")]
    ToolArguments {
        /// What they are.
        found: String,
    },
    /// Weights on messages that this tool cannot honour.
    #[error(
        "`{key}` is {weight}: weights other than 0 and 1 in the pattern of `data.supervise` are not supported"
    )]
    MessageWeight {
        /// `weight` or `loss_weight`.
        key: &'static str,
        /// As written.
        weight: String,
    },
    /// Something that only a chat template can render, where the recipe forbids one.
    #[error("{what} can only be rendered by a chat template, and `apply_chat_template` is false")]
    NeedsTemplate {
        /// What.
        what: &'static str,
    },
    /// A system prompt in the recipe for rows that are plain text.
    #[error("`data.system_prompt` has no place in a row of plain text")]
    NoPlaceForSystemPrompt,
}

impl RowFault {
    /// The stable name for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "row-too-long",
            Self::InvalidUtf8 { .. } => "invalid-utf8",
            Self::NotANumber { .. } => "nan-literal",
            Self::LoneSurrogate { .. } => "lone-surrogate",
            Self::DuplicateKey { .. } => "duplicate-key",
            Self::TooDeep { .. } => "nested-too-deep",
            Self::Syntax { .. } | Self::BrokenArray { .. } => "json-syntax",
            Self::NotAnObject { .. } => "row-not-object",
            Self::MissingColumns { .. } => "missing-column",
            Self::UnknownFormat { .. } => "unknown-format",
            Self::MixedFormats { .. } => "mixed-formats",
            Self::WrongType { .. } => "wrong-type",
            Self::Empty { .. } => "empty-content",
            Self::UnknownRole { .. } => "unknown-role",
            Self::LateSystem { .. } => "late-system",
            Self::NoFinalAnswer { .. } => "no-final-answer",
            Self::NotText { .. } => "not-text",
            Self::ToolArguments { .. } => "tool-arguments",
            Self::MessageWeight { .. } => "message-weight",
            Self::NeedsTemplate { .. } => "needs-chat-template",
            Self::NoPlaceForSystemPrompt => "unused-key",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::TooLong { .. } => "split the row, or take it out: no context window holds it".into(),
            Self::InvalidUtf8 { .. } => "convert the file to UTF-8, for example `iconv -f LATIN1 -t UTF-8`".into(),
            Self::NotANumber { .. } => "write `null`, or leave the key out".into(),
            Self::LoneSurrogate { .. } => {
                "the character was cut in two; write the pair `\\ud8xx\\udcxx`, the character itself, or take it out".into()
            }
            Self::DuplicateKey { .. } => "readers differ on which one counts; keep one".into(),
            Self::TooDeep { .. } => "is this the intended file?".into(),
            Self::Syntax { remedy, .. } => return remedy.map(Into::into),
            Self::BrokenArray { .. } => "was the file cut off while it was copied?".into(),
            Self::NotAnObject { found } if *found == "an array" => {
                "put one JSON object on each line; a file that is one array of objects must be named `.json`".into()
            }
            Self::NotAnObject { .. } => "put one JSON object on each line".into(),
            Self::MissingColumns { missing, present, .. } => return missing_hint(missing, present),
            Self::UnknownFormat { present } => unknown_format_hint(present),
            Self::MixedFormats { .. } => "put the rows of each format into their own file".into(),
            Self::WrongType { .. } => return None,
            Self::Empty { .. } => "fill it or take the row out".into(),
            Self::UnknownRole { role, allowed } => return role_hint(role, allowed),
            Self::LateSystem { .. } => "chat templates drop or refuse it; merge it into the first message".into(),
            Self::NoFinalAnswer { .. } => "end the row with the assistant's answer, or take it out".into(),
            Self::NotText { .. } => "take the part out, or use a text-only data set".into(),
            Self::ToolArguments { .. } => {
                "write the arguments as an object, encoded at most once: {\"city\": \"Bern\"}".into()
            }
            Self::MessageWeight { .. } => {
                "leave the weights out and set `data.supervise` to \"assistant\" or \"last_assistant\"".into()
            }
            Self::NeedsTemplate { .. } => "remove `apply_chat_template = false`".into(),
            Self::NoPlaceForSystemPrompt => "remove `system_prompt`, or use prompt and completion".into(),
        })
    }
}

fn are(missing: &[String]) -> String {
    format!("{} {}", list_names(missing, 8), if missing.len() == 1 { "is" } else { "are" })
}

fn keys(present: &[String]) -> String {
    if present.is_empty() { "no columns".into() } else { list_names(present, 12) }
}

fn missing_hint(missing: &[String], present: &[String]) -> Option<String> {
    let first = missing.first()?;
    Some(match did_you_mean(first, present) {
        Some(near) => format!("if `{near}` is that column: `columns = {{ {first} = \"{near}\" }}`"),
        None => format!("if it has another name in the file: `columns = {{ {first} = \"...\" }}`"),
    })
}

fn unknown_format_hint(present: &[String]) -> String {
    let has = |name: &str| present.iter().any(|key| key == name);
    if has("chosen") || has("rejected") {
        return "this looks like preference data (chosen, rejected); train on prompt and completion".into();
    }
    if let Some((prompt, completion)) = guess_columns(present) {
        return format!("name them: `columns = {{ prompt = \"{prompt}\", completion = \"{completion}\" }}`");
    }
    "the formats are: `messages`; `prompt` and `completion`; `instruction` and `output`; `conversations`; `text`. \
     Other names can be mapped with `data.columns`"
        .into()
}

/// Two columns that are a question and its answer by their names.
fn guess_columns(present: &[String]) -> Option<(&str, &str)> {
    let find = |names: &[&'static str]| present.iter().find(|key| names.contains(&key.as_str()));
    let prompt = find(&["question", "prompt", "query", "input", "instruction", "source"])?;
    let completion = find(&["answer", "completion", "response", "output", "target", "label", "ideal"])?;
    Some((prompt, completion))
}

fn role_hint(role: &str, allowed: &'static [&'static str]) -> Option<String> {
    let alike = match role.to_lowercase().as_str() {
        "customer" | "human" | "client" | "question" | "prompter" => "user",
        "gpt" | "bot" | "chatbot" | "model" | "ai" | "agent" | "answer" | "chatgpt" => "assistant",
        "function" | "observation" | "ipython" | "function_response" => "tool",
        other => did_you_mean(other, allowed.iter().copied())?,
    };
    Some(format!("did you mean `{alike}`?"))
}
