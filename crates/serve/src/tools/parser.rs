//! Tool calls in a text that comes piece by piece.
//!
//! Text goes on at once but for what may turn out to be a call: that is held back until it is one or is none. What looks like a
//! call and is no JSON, or names a tool that was not offered, is text.

use super::ToolFormat;
use serde_json::{Map, Value};

/// A call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: Map<String, Value>,
}

/// What a piece of text turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Text(String),
    Call(ToolCall),
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const PYTHON: &str = "<|python_tag|>";
const CALLS: &str = "[TOOL_CALLS]";

/// Reads one text.
#[derive(Debug)]
pub(crate) struct ToolParser {
    format: ToolFormat,
    names: Vec<String>,
    /// Whether a second call is one.
    parallel: bool,
    calls: usize,
    held: String,
    /// Llama and Mistral: the text began as no call does.
    is_text: bool,
}

impl ToolParser {
    /// For a text in which these tools may be called.
    pub(crate) fn new(format: ToolFormat, names: Vec<String>, parallel: bool) -> Self {
        Self { format, names, parallel, calls: 0, held: String::new(), is_text: false }
    }

    /// For a text whose call was opened by the prompt.
    pub(crate) fn opened(mut self) -> Self {
        self.held.push_str(self.format.opening());
        self
    }

    /// Whether there was a call.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// What is certain with this piece.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Said> {
        self.held.push_str(piece);
        let mut said = Vec::new();
        match self.format {
            ToolFormat::Hermes => self.tagged(&mut said),
            ToolFormat::Llama | ToolFormat::Mistral => self.whole(&mut said),
        }
        said
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let rest = std::mem::take(&mut self.held);
        let calls = match self.format {
            // A stop token may have come in place of the closing tag.
            ToolFormat::Hermes => rest.trim_start().strip_prefix(OPEN).and_then(|inner| {
                let call = self.call(serde_json::from_str(inner.trim()).ok()?)?;
                Some(vec![call])
            }),
            _ if self.is_text => None,
            ToolFormat::Llama => self.listed(rest.trim().trim_start_matches(PYTHON)),
            ToolFormat::Mistral => self.array(rest.trim().trim_start_matches(CALLS)),
        };
        match calls {
            Some(calls) => {
                let mut said = Vec::new();
                calls.into_iter().for_each(|call| self.say(call, &mut said));
                said
            }
            None if rest.is_empty() || (self.calls > 0 && rest.trim().is_empty()) => Vec::new(),
            None => vec![Said::Text(rest)],
        }
    }

    /// Calls between tags, text around them.
    fn tagged(&mut self, said: &mut Vec<Said>) {
        while let Some(at) = self.held.find(OPEN) {
            let inner = at + OPEN.len();
            let Some(length) = self.held[inner..].find(CLOSE) else {
                // The text before it is certain, but for the space between it and the call.
                let text = self.held[..at].trim_end().to_owned();
                self.held.drain(..text.len());
                return push_text(said, text);
            };
            let end = inner + length + CLOSE.len();
            let parsed = serde_json::from_str(self.held[inner..inner + length].trim()).ok();
            match parsed.and_then(|value| self.call(value)) {
                Some(call) => {
                    push_text(said, self.held[..at].trim_end().to_owned());
                    self.say(call, said);
                }
                None => push_text(said, self.held[..end].to_owned()),
            }
            self.held.drain(..end);
        }
        if self.calls > 0 && self.held.trim().is_empty() {
            // Between two calls there is nothing but space.
            return;
        }
        let certain = self.held.len() - held_back(&self.held, OPEN);
        let certain = self.held[..certain].trim_end().len();
        push_text(said, self.held.drain(..certain).collect());
    }

    /// The whole text is calls or none of it is.
    fn whole(&mut self, said: &mut Vec<Said>) {
        if !self.is_text && self.may_be_calls() {
            return;
        }
        self.is_text = true;
        push_text(said, std::mem::take(&mut self.held));
    }

    fn may_be_calls(&self) -> bool {
        let start = self.held.trim_start();
        let (mark, opens) = match self.format {
            ToolFormat::Mistral => (CALLS, '['),
            _ => (PYTHON, '{'),
        };
        start.is_empty() || start.starts_with(opens) || mark.starts_with(start) || start.starts_with(mark)
    }

    /// `{...}; {...}`.
    fn listed(&self, text: &str) -> Option<Vec<ToolCall>> {
        let mut calls = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            calls.push(self.call(values.next()?.ok()?)?);
            rest = rest[values.byte_offset()..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        }
        (!calls.is_empty()).then_some(calls)
    }

    /// `[{...}, {...}]`.
    fn array(&self, text: &str) -> Option<Vec<ToolCall>> {
        let values: Vec<Value> = serde_json::from_str(text.trim()).ok()?;
        let calls: Option<Vec<ToolCall>> = values.into_iter().map(|value| self.call(value)).collect();
        calls.filter(|calls| !calls.is_empty())
    }

    /// A call of one of the tools.
    fn call(&self, value: Value) -> Option<ToolCall> {
        let Value::Object(mut object) = value else { return None };
        let name = object.get("name")?.as_str()?.to_owned();
        let given = object.shift_remove("arguments").or_else(|| object.shift_remove("parameters"));
        let arguments = match given {
            Some(Value::Object(arguments)) => arguments,
            // Some models write it as OpenAI's clients are given it.
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return None,
        };
        self.names.contains(&name).then(|| ToolCall { id: self.format.call_id(), name, arguments })
    }

    fn say(&mut self, call: ToolCall, said: &mut Vec<Said>) {
        if self.parallel || self.calls == 0 {
            said.push(Said::Call(call));
        }
        self.calls += 1;
    }
}

fn push_text(said: &mut Vec<Said>, text: String) {
    if text.is_empty() {
        return;
    }
    match said.last_mut() {
        Some(Said::Text(before)) => before.push_str(&text),
        _ => said.push(Said::Text(text)),
    }
}

/// The length of the longest end of `text` that `mark` begins with.
fn held_back(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&n| mark.is_char_boundary(n) && text.ends_with(&mark[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(format: ToolFormat, pieces: &[&str], parallel: bool) -> Vec<Said> {
        let names = vec!["get_weather".to_owned(), "add".to_owned()];
        let mut parser = ToolParser::new(format, names, parallel);
        let mut said: Vec<Said> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        said.extend(parser.finish());
        // What is said in pieces is one text.
        let mut joined = Vec::new();
        for one in said {
            match one {
                Said::Text(text) => push_text(&mut joined, text),
                call => joined.push(call),
            }
        }
        joined
    }

    fn plain(said: &[Said]) -> Value {
        said.iter()
            .map(|one| match one {
                Said::Text(text) => json!(text),
                Said::Call(call) => json!([call.name, call.arguments]),
            })
            .collect::<Vec<_>>()
            .into()
    }

    const WEATHER: &str = r#"{"name": "get_weather", "arguments": {"city": "Bern"}}"#;

    /// Each text as a whole, a character at a time, and cut in two at every place.
    fn holds(format: ToolFormat, text: &str, expected: &Value) {
        let mut ways: Vec<Vec<&str>> = vec![vec![text]];
        ways.push(text.char_indices().map(|(i, c)| &text[i..i + c.len_utf8()]).collect());
        ways.extend(
            (1..text.len()).filter(|&i| text.is_char_boundary(i)).map(|i| vec![&text[..i], &text[i..]]),
        );
        for pieces in ways {
            assert_eq!(plain(&read(format, &pieces, true)), *expected, "{pieces:?}");
        }
    }

    #[test]
    fn calls_between_tags_are_found_wherever_they_stand() {
        let call = json!(["get_weather", { "city": "Bern" }]);
        let tagged = format!("<tool_call>\n{WEATHER}\n</tool_call>");
        holds(ToolFormat::Hermes, &tagged, &json!([call]));
        holds(
            ToolFormat::Hermes,
            &format!("Let me see.\n{tagged}\n{tagged}"),
            &json!(["Let me see.", call, call]),
        );
        holds(ToolFormat::Hermes, &format!("{tagged}\n"), &json!([call]));
        // A stop token came in place of the closing tag.
        holds(ToolFormat::Hermes, &format!("<tool_call>\n{WEATHER}\n"), &json!([call]));
    }

    #[test]
    fn what_is_no_call_stays_text_to_the_letter() {
        for text in [
            "a < b, <tool> and <tool_call",
            "<tool_call>\nnot json\n</tool_call> end",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"add\", \"arguments\": 3}</tool_call>",
            "ends with space \n",
            "é<tool_callé",
        ] {
            holds(ToolFormat::Hermes, text, &json!([text]));
        }
        for text in
            ["{\"name\": \"unknown\", \"parameters\": {}}", "{\"a\": 1}", "hello {", "{\"name\"", "<|pyth"]
        {
            holds(ToolFormat::Llama, text, &json!([text]));
        }
        for text in ["[1, 2]", "[]", "see [TOOL_CALLS] [{}]", "[TOOL_CALLS] none"] {
            holds(ToolFormat::Mistral, text, &json!([text]));
        }
        assert_eq!(plain(&read(ToolFormat::Llama, &[""], true)), json!([]));
    }

    #[test]
    fn a_whole_text_of_calls_is_found_with_its_mark_and_without() {
        let call = json!(["get_weather", { "city": "Bern" }]);
        let llama = r#"{"name": "get_weather", "parameters": {"city": "Bern"}}"#;
        for mark in ["", "<|python_tag|>", "\n"] {
            holds(ToolFormat::Llama, &format!("{mark}{llama}"), &json!([call]));
            holds(ToolFormat::Llama, &format!("{mark}{llama}; {llama}\n"), &json!([call, call]));
        }
        for mark in ["", "[TOOL_CALLS]", "[TOOL_CALLS] "] {
            holds(ToolFormat::Mistral, &format!("{mark}[{WEATHER}, {WEATHER}]"), &json!([call, call]));
        }
    }

    #[test]
    fn one_call_where_several_may_not_be() {
        let tagged = format!("<tool_call>{WEATHER}</tool_call>");
        let said = read(ToolFormat::Hermes, &[&tagged, &tagged], false);
        assert_eq!(said.len(), 1);
    }

    #[test]
    fn a_call_that_the_prompt_opened_needs_no_tag() {
        let mut parser = ToolParser::new(ToolFormat::Hermes, vec!["add".into()], true).opened();
        assert!(parser.push(r#"{"name": "add", "arguments": "{\"a\": 1}"}"#).is_empty());
        assert_eq!(plain(&parser.finish()), json!([["add", { "a": 1 }]]));
        assert!(parser.has_calls());
    }
}
