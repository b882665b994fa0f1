//! From rows to examples: which format a row has, and what each format means.

use crate::error::{Error, Result};
use crate::example::{Example, ExampleKind};
use crate::fault::RowFault;
use crate::jsonl::Row;
use crate::messages::{self, KeyedFault, Turns};
use crate::section::{DataSection, FormatChoice};
use crate::strict::type_name;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taper_text::Message;

/// The format of a file's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// `messages`: a list of `{role, content}`.
    Messages,
    /// `conversations`: a list of `{from, value}`.
    Sharegpt,
    /// `prompt` and `completion`: strings; or a list of messages and its answer, as a list of one or a string.
    PromptCompletion,
    /// `instruction`, `output`, and perhaps `input`, `system`, `history`.
    Alpaca,
    /// `text`.
    Text,
}

/// In the order in which a row is tried: the more particular format first.
const ALL: [DatasetFormat; 5] = [
    DatasetFormat::Messages,
    DatasetFormat::Sharegpt,
    DatasetFormat::PromptCompletion,
    DatasetFormat::Alpaca,
    DatasetFormat::Text,
];

impl DatasetFormat {
    /// The name as recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::Text => "text",
        }
    }

    /// Columns that every row must have.
    pub fn needed(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Sharegpt => &["conversations"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Alpaca => &["instruction", "output"],
            Self::Text => &["text"],
        }
    }

    /// Columns that are read where a row has them.
    pub fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Messages | Self::PromptCompletion => &["tools"],
            Self::Sharegpt => &["system", "tools"],
            Self::Alpaca => &["input", "system", "history"],
            Self::Text => &[],
        }
    }

    /// The format that a recipe names, if it names one.
    pub fn chosen(choice: FormatChoice) -> Option<Self> {
        match choice {
            FormatChoice::Auto => None,
            FormatChoice::Messages => Some(Self::Messages),
            FormatChoice::PromptCompletion => Some(Self::PromptCompletion),
            FormatChoice::Alpaca => Some(Self::Alpaca),
            FormatChoice::Sharegpt => Some(Self::Sharegpt),
            FormatChoice::Text => Some(Self::Text),
        }
    }

    /// The format whose columns the row has; of several the first of: messages, sharegpt, prompt_completion, alpaca, text.
    pub fn detect(columns: &Map<String, Value>, section: &DataSection) -> Option<Self> {
        let has = |column: &&str| columns.contains_key(name_in_file(section, column));
        ALL.into_iter().find(|format| format.needed().iter().all(&has))
    }

    /// Columns of a row that this format does not read.
    pub(crate) fn unused<'a>(self, columns: &'a Map<String, Value>, section: &DataSection) -> Vec<&'a str> {
        let used = |name: &str| {
            self.needed().iter().chain(self.optional()).any(|column| name_in_file(section, column) == name)
        };
        columns.keys().map(String::as_str).filter(|name| !used(name)).collect()
    }

    /// The row as an example.
    ///
    /// # Errors
    /// [`Error::Row`] with the key inside the row.
    pub fn example(self, row: &Row, section: &DataSection) -> Result<Example> {
        let read = RowReader { columns: &row.columns, section };
        let kind = read.has_needed(self).and_then(|()| match self {
            Self::Messages => read.messages(),
            Self::Sharegpt => read.sharegpt(),
            Self::PromptCompletion => read.prompt_completion(),
            Self::Alpaca => read.alpaca(),
            Self::Text => read.text(),
        });
        match kind {
            Ok(kind) => Ok(Example::new(row.place.clone(), kind)),
            Err((key, fault)) => {
                let key = Some(key).filter(|key| !key.is_empty());
                Err(Error::Row { place: row.place.clone(), column: None, key, fault: fault.into() })
            }
        }
    }
}

/// The name that a format's column has in the file.
pub(crate) fn name_in_file<'a>(section: &'a DataSection, column: &'a str) -> &'a str {
    section.columns.get(column).map_or(column, String::as_str)
}

struct RowReader<'a> {
    columns: &'a Map<String, Value>,
    section: &'a DataSection,
}

type KindResult = std::result::Result<ExampleKind, KeyedFault>;

impl<'a> RowReader<'a> {
    fn has_needed(&self, format: DatasetFormat) -> std::result::Result<(), KeyedFault> {
        let in_file = |column: &&str| name_in_file(self.section, column).to_owned();
        let needed: Vec<String> = format.needed().iter().map(in_file).collect();
        let is_missing = |name: &&String| !self.columns.contains_key(*name);
        let missing: Vec<String> = needed.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let present = self.columns.keys().cloned().collect();
        Err((String::new(), RowFault::MissingColumns { format: format.name(), needed, missing, present }))
    }

    fn get(&self, column: &'a str) -> (&'a str, Option<&'a Value>) {
        let name = name_in_file(self.section, column);
        (name, self.columns.get(name).filter(|value| !value.is_null()))
    }

    fn string(&self, column: &'a str) -> std::result::Result<&'a str, KeyedFault> {
        match self.get(column) {
            (_, Some(Value::String(text))) => Ok(text),
            (name, other) => {
                let found = other.map_or("null", type_name);
                Err((name.to_owned(), RowFault::WrongType { expected: "a string", found }))
            }
        }
    }

    fn filled(&self, column: &'a str) -> std::result::Result<&'a str, KeyedFault> {
        let text = self.string(column)?;
        if text.trim().is_empty() {
            let name = name_in_file(self.section, column).to_owned();
            return Err((name, RowFault::Empty { what: "the column" }));
        }
        Ok(text)
    }

    /// An optional string; empty is the same as absent.
    fn optional(&self, column: &'a str) -> std::result::Result<Option<&'a str>, KeyedFault> {
        match self.get(column).1 {
            None => Ok(None),
            Some(_) => Ok(Some(self.string(column)?).filter(|text| !text.is_empty())),
        }
    }

    fn tools(&self) -> std::result::Result<Vec<Value>, KeyedFault> {
        match self.get("tools") {
            (name, Some(value)) => messages::read_tools(name, value),
            _ => Ok(Vec::new()),
        }
    }

    fn messages(&self) -> KindResult {
        let (name, value) = self.get("messages");
        let turns = messages::read_messages(name, value.unwrap_or(&Value::Null), self.section.supervise)?;
        self.chat(name, None, turns, self.tools()?)
    }

    fn sharegpt(&self) -> KindResult {
        let (name, value) = self.get("conversations");
        let turns = messages::read_sharegpt(name, value.unwrap_or(&Value::Null))?;
        self.chat(name, self.optional("system")?, turns, self.tools()?)
    }

    fn prompt_completion(&self) -> KindResult {
        let ((prompt, prompt_value), (completion, completion_value)) =
            (self.get("prompt"), self.get("completion"));
        if let (Some(before @ Value::Array(_)), Some(after)) = (prompt_value, completion_value) {
            return self.conversational_pair((prompt, before), (completion, after));
        }
        let (prompt, completion) = (self.string("prompt")?, self.filled("completion")?);
        if self.section.apply_chat_template {
            self.filled("prompt")?;
            let messages = vec![Message::new("user", prompt), Message::new("assistant", completion)];
            return self.chat("", None, Turns { messages, last_turn_only: false }, self.tools()?);
        }
        if !self.tools()?.is_empty() {
            return Err((String::new(), RowFault::NeedsTemplate { what: "a row with tools" }));
        }
        Ok(ExampleKind::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() })
    }

    /// The prompt is a list of messages; the completion, a list of one or a string, is the answer that is learned.
    fn conversational_pair(&self, prompt: (&str, &Value), completion: (&str, &Value)) -> KindResult {
        let supervise = self.section.supervise;
        let mut turns = messages::read_messages(prompt.0, prompt.1, supervise)?;
        let answer = match completion.1 {
            Value::String(text) => vec![Message::new("assistant", text.as_str())],
            list => messages::read_messages(completion.0, list, supervise)?.messages,
        };
        messages::check_turns(completion.0, &answer)?;
        if answer.len() != 1 {
            let fault = RowFault::WrongType { expected: "one assistant message", found: "several messages" };
            return Err((completion.0.to_owned(), fault));
        }
        turns.messages.extend(answer);
        turns.last_turn_only = true;
        self.chat(prompt.0, None, turns, self.tools()?)
    }

    /// `input`, where there is one, follows the instruction on its own line.
    fn alpaca(&self) -> KindResult {
        let (instruction, output) = (self.filled("instruction")?, self.filled("output")?);
        let user = match self.optional("input")? {
            Some(input) => format!("{instruction}\n{input}"),
            None => instruction.to_owned(),
        };
        let system = self.optional("system")?;
        let history = self.history()?;
        if self.section.apply_chat_template {
            let mut messages = history;
            messages.extend([Message::new("user", user), Message::new("assistant", output)]);
            return self.chat("", system, Turns { messages, last_turn_only: false }, Vec::new());
        }
        if system.is_some() || !history.is_empty() {
            return Err((
                String::new(),
                RowFault::NeedsTemplate { what: "a row with `system` or `history`" },
            ));
        }
        Ok(ExampleKind::Completion { prompt: user + "\n", completion: output.to_owned() })
    }

    /// `history`: a list of [instruction, answer] pairs that came before.
    fn history(&self) -> std::result::Result<Vec<Message>, KeyedFault> {
        let (name, value) = self.get("history");
        let Some(value) = value else { return Ok(Vec::new()) };
        let expected = "a list of [instruction, answer] pairs of strings";
        let fault = || (name.to_owned(), RowFault::WrongType { expected, found: type_name(value) });
        let mut messages = Vec::new();
        for pair in value.as_array().ok_or_else(fault)? {
            match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(user), Value::String(answer)]) => {
                    messages.push(Message::new("user", user.as_str()));
                    messages.push(Message::new("assistant", answer.as_str()));
                }
                _ => return Err(fault()),
            }
        }
        Ok(messages)
    }

    fn text(&self) -> KindResult {
        if self.section.system_prompt.is_some() {
            return Err((String::new(), RowFault::NoPlaceForSystemPrompt));
        }
        Ok(ExampleKind::Text(self.filled("text")?.to_owned()))
    }

    /// Put the system prompt first (the row's own before the recipe's) and check the whole.
    fn chat(&self, key: &str, system: Option<&str>, mut turns: Turns, tools: Vec<Value>) -> KindResult {
        if !self.section.apply_chat_template {
            return Err((key.to_owned(), RowFault::NeedsTemplate { what: "a conversation" }));
        }
        messages::check_turns(key, &turns.messages)?;
        let system = system.or(self.section.system_prompt.as_deref());
        let has_own = turns.messages.first().is_some_and(|first| first.role == "system");
        if let (Some(system), false) = (system, has_own) {
            turns.messages.insert(0, Message::new("system", system));
        }
        Ok(ExampleKind::Chat { messages: turns.messages, tools, last_turn_only: turns.last_turn_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::RowPlace;
    use serde_json::json;
    use std::path::Path;

    fn row(value: &Value) -> Row {
        let place = RowPlace { file: Path::new("a.jsonl").into(), line: 1, element: None };
        Row { place, columns: value.as_object().unwrap().clone() }
    }

    fn read(value: &Value, section: &DataSection) -> Result<Example> {
        let row = row(value);
        DatasetFormat::detect(&row.columns, section).unwrap().example(&row, section)
    }

    fn turns(value: &Value, section: &DataSection) -> Vec<(String, String)> {
        match read(value, section).unwrap().kind {
            ExampleKind::Chat { messages, .. } => {
                messages.iter().map(|m| (m.role.clone(), m.text().unwrap_or_default().into_owned())).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(role, text)| ((*role).into(), (*text).into())).collect()
    }

    #[test]
    fn every_format_is_recognised_by_its_columns_and_becomes_a_conversation() {
        let plain = DataSection::default();
        let expected = pairs(&[("user", "q"), ("assistant", "a")]);
        for value in [
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"prompt": "q", "completion": "a"}),
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": "a"}),
            json!({"instruction": "q", "input": "", "output": "a", "text": "ignored"}),
        ] {
            assert_eq!(turns(&value, &plain), expected, "{value}");
        }
        assert_eq!(read(&json!({"text": "t"}), &plain).unwrap().kind, ExampleKind::Text("t".into()));
        assert_eq!(DatasetFormat::detect(&row(&json!({"question": 1})).columns, &plain), None);
    }

    #[test]
    fn alpaca_puts_input_on_its_own_line_and_history_and_system_first() {
        let value = json!({"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q1", "a1"]]});
        let expected = pairs(&[
            ("system", "s"),
            ("user", "q1"),
            ("assistant", "a1"),
            ("user", "i\nx"),
            ("assistant", "o"),
        ]);
        assert_eq!(turns(&value, &DataSection::default()), expected);
    }

    #[test]
    fn the_recipes_system_prompt_gives_way_to_the_rows_own() {
        let section = DataSection { system_prompt: Some("recipe".into()), ..DataSection::default() };
        let own = json!({"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"}]});
        assert_eq!(turns(&own, &section)[0].1, "own");
        assert_eq!(turns(&json!({"prompt": "q", "completion": "a"}), &section)[0].1, "recipe");
        let error = read(&json!({"text": "t"}), &section).unwrap_err();
        assert_eq!(error.code(), "unused-key");
    }

    #[test]
    fn other_column_names_are_mapped() {
        let mut section = DataSection::default();
        section.columns.insert("prompt".into(), "question".into());
        section.columns.insert("completion".into(), "answer".into());
        let value = json!({"question": "q", "answer": "a", "id": 1});
        assert_eq!(turns(&value, &section), pairs(&[("user", "q"), ("assistant", "a")]));
        assert_eq!(DatasetFormat::PromptCompletion.unused(&row(&value).columns, &section), ["id"]);
    }

    #[test]
    fn without_a_chat_template_pairs_are_plain_text_and_conversations_are_refused() {
        let section = DataSection { apply_chat_template: false, ..DataSection::default() };
        let kind = |value: Value| read(&value, &section).map(|example| example.kind);
        let completion = |prompt: &str, completion: &str| ExampleKind::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        assert_eq!(kind(json!({"prompt": "q", "completion": " a"})).unwrap(), completion("q", " a"));
        assert_eq!(kind(json!({"prompt": "", "completion": "a"})).unwrap(), completion("", "a"));
        assert_eq!(
            kind(json!({"instruction": "i", "input": "x", "output": "o"})).unwrap(),
            completion("i\nx\n", "o")
        );
        for value in [
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"instruction": "i", "output": "o", "system": "s"}),
        ] {
            assert_eq!(kind(value).unwrap_err().code(), "needs-chat-template");
        }
    }

    #[test]
    fn a_row_that_lacks_a_column_lists_those_it_has() {
        let error = DatasetFormat::PromptCompletion
            .example(&row(&json!({"promt": "q", "id": 1})), &DataSection::default());
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            "a `prompt_completion` row needs `prompt`, `completion`, and `prompt`, `completion` are missing; the row has `promt`, `id`"
        );
        assert!(
            taper_diagnostics::Diagnose::hint(&error).unwrap().contains("columns = { prompt = \"promt\" }")
        );
    }
}
