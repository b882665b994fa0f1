//! One example, before it becomes tokens.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use taper_diagnostics::Location;
use taper_text::{Content, Message};

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace {
    /// The file.
    pub file: Arc<Path>,
    /// The line where the row begins, from 1.
    pub line: usize,
    /// Its index (from 0) when the file is one JSON array.
    pub element: Option<usize>,
}

impl RowPlace {
    /// The place as problems show it.
    pub fn location(&self) -> Location {
        let location = Location::line(&*self.file, self.line);
        match self.element {
            Some(index) => location.with_key(format!("[{index}]")),
            None => location,
        }
    }
}

impl fmt::Display for RowPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location().fmt(f)
    }
}

/// One example and the row it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The row.
    pub place: RowPlace,
    /// What it says.
    pub kind: ExampleKind,
    /// What else of its row a caller asked for, by the name it was asked for with: see [`crate::load_with_fields`]. The model
    /// never sees it.
    pub fields: BTreeMap<String, Value>,
}

/// What an example says.
#[derive(Debug, Clone, PartialEq)]
pub enum ExampleKind {
    /// A conversation that ends with the assistant, rendered by the checkpoint's chat template.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Tools offered to the model, in the OpenAI shape; empty when there are none.
        tools: Vec<Value>,
        /// The row itself says that only its last turn is to be learned.
        last_turn_only: bool,
    },
    /// A prompt that is read and a completion that is learned, as plain text.
    Completion {
        /// Read.
        prompt: String,
        /// Learned; follows the prompt with nothing between.
        completion: String,
    },
    /// Text that is learned as a whole.
    Text(String),
}

/// What a model is given to answer an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt<'a> {
    /// Turns up to the answer, to be rendered with the generation prompt.
    Chat {
        /// The turns.
        messages: &'a [Message],
        /// Tools offered.
        tools: &'a [Value],
    },
    /// Plain text to continue.
    Text(&'a str),
}

impl Example {
    /// An example of which nothing else was asked for.
    pub fn new(place: RowPlace, kind: ExampleKind) -> Self {
        Self { place, kind, fields: BTreeMap::new() }
    }

    /// The example without its answer. `None` for plain text, which has none.
    pub fn prompt(&self) -> Option<Prompt<'_>> {
        match &self.kind {
            ExampleKind::Chat { messages, tools, .. } => {
                let (_, before) = messages.split_last()?;
                Some(Prompt::Chat { messages: before, tools })
            }
            ExampleKind::Completion { prompt, .. } => Some(Prompt::Text(prompt)),
            ExampleKind::Text(_) => None,
        }
    }

    /// The answer that is to be learned last: the text of the last turn, or the completion. `None` for plain text, and
    /// empty for a turn that only calls tools.
    pub fn answer(&self) -> Option<String> {
        match &self.kind {
            ExampleKind::Chat { messages, .. } => {
                Some(messages.last()?.text().unwrap_or_default().into_owned())
            }
            ExampleKind::Completion { completion, .. } => Some(completion.clone()),
            ExampleKind::Text(_) => None,
        }
    }

    /// About how many bytes its words take in memory. Fields are not counted: they are kept only where all words of a set are,
    /// and chunks, whose borders name the kept tokens, are cut by this size.
    pub(crate) fn size_bytes(&self) -> u64 {
        let bytes = match &self.kind {
            ExampleKind::Chat { messages, tools, .. } => {
                messages.iter().map(message_bytes).sum::<usize>()
                    + tools.iter().map(value_bytes).sum::<usize>()
            }
            ExampleKind::Completion { prompt, completion } => prompt.len() + completion.len(),
            ExampleKind::Text(text) => text.len(),
        };
        (size_of::<Self>() + bytes) as u64
    }

    /// The input as one string, by which examples are compared: every turn but the answer, or the whole of a plain text.
    pub(crate) fn input_key(&self) -> String {
        match &self.kind {
            ExampleKind::Chat { messages, tools, .. } => {
                let before = messages.split_last().map_or(messages.as_slice(), |(_, before)| before);
                turns_key(before, tools)
            }
            ExampleKind::Completion { prompt, .. } => prompt.clone(),
            ExampleKind::Text(text) => text.clone(),
        }
    }

    /// The inputs of the answers that an example holds before its last one: what stands before each earlier turn of the
    /// assistant. One who was shown a conversation was shown these answers too.
    pub(crate) fn earlier_input_keys(&self) -> Vec<String> {
        let ExampleKind::Chat { messages, tools, .. } = &self.kind else { return Vec::new() };
        let turns = messages.iter().enumerate().take(messages.len().saturating_sub(1));
        let answers = turns.filter(|(index, message)| *index > 0 && message.is_assistant());
        answers.map(|(index, _)| turns_key(&messages[..index], tools)).collect()
    }

    /// The answer as one string, by which examples are compared.
    pub(crate) fn answer_key(&self) -> String {
        match &self.kind {
            ExampleKind::Chat { messages, .. } => messages.last().map(message_key).unwrap_or_default(),
            ExampleKind::Completion { completion, .. } => completion.clone(),
            ExampleKind::Text(_) => String::new(),
        }
    }
}

fn message_bytes(message: &Message) -> usize {
    let content = match &message.content {
        Content::Absent | Content::Null => 0,
        Content::Text(text) => text.len(),
        Content::Parts(parts) => parts.iter().map(value_bytes).sum(),
    };
    let extra = message.extra.iter().map(|(key, value)| key.len() + value_bytes(value));
    size_of::<Message>() + message.role.len() + content + extra.sum::<usize>()
}

fn value_bytes(value: &Value) -> usize {
    let inner = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + value_bytes(value)).sum(),
        _ => 0,
    };
    size_of::<Value>() + inner
}

fn turns_key(messages: &[Message], tools: &[Value]) -> String {
    let mut key: String = messages.iter().map(message_key).collect();
    key.extend(tools.iter().map(Value::to_string));
    key
}

fn message_key(message: &Message) -> String {
    let calls = message.extra.get("tool_calls").map(Value::to_string).unwrap_or_default();
    format!("{}: {}{calls}\n", message.role, message.text().unwrap_or_default())
}
