//! Marks in the messages, to find in the rendered text where each of them went.
//!
//! A mark is one private-use character of plane 16, which no honest text has. It stands directly before the first and
//! directly behind the last character of a message's content that is no whitespace, so that a template which trims
//! still trims. A rendering with marks counts only when it equals the unmarked one after the marks are taken out:
//! a template that measures or compares contents is thereby found out, and such messages stay unmarked.

use crate::jinja::{GENERATION_END, GENERATION_START, is_space};
use crate::message::Content;
use crate::{ChatTemplate, Error, Message, RenderOptions, Result};
use serde_json::Value;
use std::ops::Range;

const FIRST: u32 = 0x10_0000;
/// So many messages can be marked; further ones are not.
const MOST: usize = 30_000;

/// A rendering without its marks, and where they stood, in bytes of that text.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub(crate) text: String,
    /// Per message: where its content begins. `None`: not marked, swallowed by the template, or printed twice.
    pub(crate) starts: Vec<Option<usize>>,
    /// Per message: where its content ends.
    pub(crate) ends: Vec<Option<usize>>,
    /// What stood inside `{% generation %}`.
    pub(crate) generated: Vec<Range<usize>>,
    /// Which messages were marked.
    pub(crate) marked: Vec<bool>,
}

impl Marked {
    /// Nothing found.
    pub(crate) fn unlocated(messages: usize) -> Self {
        let none = vec![None; messages];
        Self { starts: none.clone(), ends: none, marked: vec![false; messages], ..Self::default() }
    }

    /// Messages that were marked, of which neither a mark nor the words came out.
    pub(crate) fn unprinted(&self, messages: &[Message]) -> Vec<usize> {
        let gone = |i: &usize| {
            let lost = self.marked[*i] && self.starts[*i].is_none() && self.ends[*i].is_none();
            lost && !messages[*i].text().is_some_and(|text| self.text.contains(text.trim()))
        };
        (0..messages.len()).filter(gone).collect()
    }

    /// The place of a mark: even ones are starts, odd ones ends.
    fn place(&mut self, slot: usize) -> &mut Option<usize> {
        if slot.is_multiple_of(2) { &mut self.starts[slot / 2] } else { &mut self.ends[slot / 2] }
    }

    /// Where the content of a message stands, when both of its ends are known.
    pub(crate) fn content(&self, message: usize) -> Option<Range<usize>> {
        let (start, end) = (self.starts[message]?, self.ends[message]?);
        (start <= end).then_some(start..end)
    }
}

/// Find the contents of all messages in `full`, their unmarked rendering.
pub(crate) fn locate(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    full: &str,
) -> Result<Marked> {
    if let Some(c) = full.chars().find(|c| *c as u32 >= FIRST) {
        return Err(Error::ReservedCharacter { code: c as u32 });
    }
    let markable: Vec<bool> = (0..messages.len()).map(|i| mark_message(&messages[i], i).is_some()).collect();
    if let Some(found) = try_marks(template, messages, options, full, &markable)? {
        return Ok(found);
    }
    // Some message must not be marked: add one after the other, the assistant's first.
    let mut chosen = vec![false; messages.len()];
    let mut best = try_marks(template, messages, options, full, &chosen)?;
    let assistants_first =
        |wanted: bool| (0..messages.len()).filter(move |i| messages[*i].is_assistant() == wanted);
    for i in assistants_first(true).chain(assistants_first(false)).filter(|i| markable[*i]) {
        chosen[i] = true;
        match try_marks(template, messages, options, full, &chosen)? {
            Some(found) => best = Some(found),
            None => chosen[i] = false,
        }
    }
    // A template whose output changes from one rendering to the next cannot be measured at all.
    best.ok_or_else(|| Error::UncertainSpan {
        message: 0,
        reason: "the template renders the same conversation differently each time".into(),
    })
}

/// Render the first `count` messages with the marks that were found harmless.
pub(crate) fn render_prefix(
    template: &ChatTemplate,
    messages: &[Message],
    count: usize,
    options: &RenderOptions,
    marked: &[bool],
) -> Result<Marked> {
    let rendered = template.render_tracked(&apply(&messages[..count], &marked[..count]), options)?;
    read(&rendered, &marked[..count])
}

fn try_marks(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    full: &str,
    marked: &[bool],
) -> Result<Option<Marked>> {
    let Ok(rendered) = template.render_tracked(&apply(messages, marked), options) else {
        return Ok(None);
    };
    Ok(Some(read(&rendered, marked)?).filter(|found| found.text == full))
}

fn apply(messages: &[Message], marked: &[bool]) -> Vec<Message> {
    messages
        .iter()
        .zip(marked)
        .enumerate()
        .map(|(i, (message, marked))| {
            let with_marks = if *marked { mark_message(message, i) } else { None };
            with_marks.unwrap_or_else(|| message.clone())
        })
        .collect()
}

/// The message with marks, or `None` when there is nothing to mark.
fn mark_message(message: &Message, index: usize) -> Option<Message> {
    let (start, end) = marks_of(index)?;
    let mut message = message.clone();
    match &mut message.content {
        Content::Absent | Content::Null => return None,
        Content::Text(text) => *text = surround(text, Some(start), Some(end))?,
        Content::Parts(parts) => {
            let says = |part: &Value| {
                part.get("text").and_then(Value::as_str).is_some_and(|t| !t.trim_matches(is_space).is_empty())
            };
            let first = parts.iter().position(says)?;
            let last = parts.iter().rposition(says)?;
            for (i, start, end) in [(first, Some(start), None), (last, None, Some(end))] {
                if let Some(Value::String(text)) = parts[i].get_mut("text") {
                    *text = surround(text, start, end)?;
                }
            }
        }
    }
    Some(message)
}

fn marks_of(index: usize) -> Option<(char, char)> {
    if index >= MOST {
        return None;
    }
    let first = FIRST + 2 * u32::try_from(index).ok()?;
    Some((char::from_u32(first)?, char::from_u32(first + 1)?))
}

fn surround(text: &str, start: Option<char>, end: Option<char>) -> Option<String> {
    let core = text.trim_matches(is_space);
    if core.is_empty() {
        return None;
    }
    let lead = text.len() - text.trim_start_matches(is_space).len();
    let tail = lead + core.len();
    let mut out = String::with_capacity(text.len() + 8);
    out.push_str(&text[..lead]);
    out.extend(start);
    out.push_str(core);
    out.extend(end);
    out.push_str(&text[tail..]);
    Some(out)
}

/// Take the marks out of a rendering.
fn read(rendered: &str, marked: &[bool]) -> Result<Marked> {
    let count = marked.len();
    let mut found = Marked {
        text: String::with_capacity(rendered.len()),
        starts: vec![None; count],
        ends: vec![None; count],
        generated: Vec::new(),
        marked: marked.to_vec(),
    };
    let mut seen = vec![0_u8; 2 * count];
    let mut open = Vec::new();
    for c in rendered.chars() {
        let at = found.text.len();
        match c {
            GENERATION_START => open.push(at),
            GENERATION_END => {
                let start = open.pop().unwrap_or(at);
                found.generated.push(start..at);
            }
            c if (c as u32) < FIRST => found.text.push(c),
            c => {
                let slot = (c as u32 - FIRST) as usize;
                if slot >= 2 * count {
                    return Err(Error::ReservedCharacter { code: c as u32 });
                }
                seen[slot] = seen[slot].saturating_add(1);
                *found.place(slot) = Some(at);
            }
        }
    }
    for slot in (0..seen.len()).filter(|slot| seen[*slot] > 1) {
        *found.place(slot) = None;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_inside_the_whitespace_and_come_out_again() {
        let message = Message::new("user", " \n hé \t");
        let marked = mark_message(&message, 1).unwrap();
        assert_eq!(marked.text().unwrap(), " \n \u{100002}hé\u{100003} \t");
        let found = read(&marked.text().unwrap(), &[false, true]).unwrap();
        assert_eq!(found.text, " \n hé \t");
        assert_eq!((found.content(0), found.content(1)), (None, Some(3..6)));
    }

    #[test]
    fn what_is_printed_twice_is_not_located() {
        let found = read("\u{100000}a\u{100001}\u{100000}a\u{100001}", &[true]).unwrap();
        assert_eq!((found.text.as_str(), found.content(0)), ("aa", None));
    }

    #[test]
    fn blank_content_is_left_alone() {
        assert!(mark_message(&Message::new("user", " \n"), 0).is_none());
        assert!(mark_message(&Message::default(), 0).is_none());
    }
}
