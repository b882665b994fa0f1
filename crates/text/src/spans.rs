//! Which part of a rendered conversation the assistant says.
//!
//! A turn begins where the generation prompt ends, since from there on a model has to write for itself: what a template
//! puts between the prompt and the content (an empty think block, say) belongs to the turn. It ends with its stop
//! token, which a model must learn to say, and without the line break behind it.
//!
//! Where a template has `{% generation %}` tags, they decide. Else a turn's begin is, in this order:
//! 1. the length of `render(messages before it, add_generation_prompt)`, when the whole text begins with that;
//! 2. the end of what that rendering puts behind its last message, looked up behind the same message in the whole text:
//!    right for templates whose earlier turns change when later ones come (think blocks, system prompts that move);
//! 3. the begin of the content, when it was found by its mark.
//!
//! The end is the first stop token that the template, not a content, writes behind the content. When none of this is
//! certain, that is an error and no guess.

use crate::marks::{self, Marked};
use crate::{ChatTemplate, Error, Message, RenderOptions, Result, Tokenizer};
use std::ops::Range;

/// Tokens that end a turn in well-known chat formats; they count where the tokenizer has them as tokens of their own.
const KNOWN_STOPS: [&str; 13] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|eot|>",
    "<|return|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "</s>",
    "<eos>",
];

/// A token that can end a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) id: u32,
    pub(crate) text: String,
}

/// What the assistant says in one turn, in bytes of the rendered text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TurnSpan {
    /// Which message; `None` for a generation block that could not be told to one.
    pub(crate) message: Option<usize>,
    pub(crate) range: Range<usize>,
    pub(crate) stop: Option<Stop>,
    /// Whether the whole text begins with what inference would be given for this turn.
    pub(crate) prompt_is_prefix: Option<bool>,
}

/// The tokens that can end a turn, for [`TurnSpan`]s.
pub(crate) fn stops(tokenizer: &Tokenizer, turn_end: Option<&Stop>) -> Vec<Stop> {
    let mut stops: Vec<Stop> = turn_end.cloned().into_iter().collect();
    for (id, text) in tokenizer.added_tokens() {
        let ends = tokenizer.eos_ids().contains(&id) || KNOWN_STOPS.contains(&text);
        if ends && !text.is_empty() && stops.iter().all(|stop| stop.id != id) {
            stops.push(Stop { id, text: text.to_owned() });
        }
    }
    stops
}

/// The token behind the assistant's words in a conversation that ends with them: the first special one.
pub(crate) fn find_turn_end(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<Stop> {
    let user = Message::new("user", "Question");
    let reply = Message::new("assistant", "Answer");
    let system = Message::new("system", "Instruction");
    let probes = [vec![user.clone(), reply.clone()], vec![system, user, reply]];
    probes.iter().find_map(|messages| {
        let options = RenderOptions::default();
        let marked = vec![true; messages.len()];
        let rendered = marks::render_prefix(template, messages, messages.len(), &options, &marked).ok()?;
        let tail = &rendered.text[rendered.ends[messages.len() - 1]?..];
        let is_stop = |id: u32, text: &str| {
            let ends = tokenizer.eos_ids().contains(&id) || KNOWN_STOPS.contains(&text);
            ends || (tokenizer.is_special(id) && tokenizer.bos_id() != Some(id))
        };
        let candidates = tokenizer.added_tokens().filter(|(id, text)| !text.is_empty() && is_stop(*id, text));
        first_of(tail, candidates).map(|(_, id, text)| Stop { id, text: text.to_owned() })
    })
}

/// The spans of the assistant's turns, or of the last one only.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    found: &Marked,
    last_only: bool,
) -> Result<Vec<TurnSpan>> {
    let assistants: Vec<usize> = (0..messages.len()).filter(|i| messages[*i].is_assistant()).collect();
    let wanted = if last_only { &assistants[assistants.len().saturating_sub(1)..] } else { &assistants[..] };
    if template.has_generation_tags() {
        return tagged_spans(template, found, &assistants, last_only);
    }
    let mut spans: Vec<TurnSpan> = Vec::new();
    for &message in wanted {
        let span = one_span(template, messages, options, found, message)?;
        check_apart(&span.range, message, messages, found, spans.last())?;
        spans.push(span);
    }
    Ok(spans)
}

/// The spans that the template's own tags give.
fn tagged_spans(
    template: &ChatTemplate,
    found: &Marked,
    assistants: &[usize],
    last_only: bool,
) -> Result<Vec<TurnSpan>> {
    let one_each = found.generated.len() == assistants.len();
    let owner = |order: usize, range: &Range<usize>| {
        let inside = |at: Option<usize>| at.is_some_and(|at| range.contains(&at) || at == range.end);
        assistants
            .iter()
            .copied()
            .find(|i| inside(found.starts[*i]) || inside(found.ends[*i]))
            .or_else(|| if one_each { assistants.get(order).copied() } else { None })
    };
    let mut spans = Vec::new();
    for (order, range) in found.generated.iter().enumerate() {
        let message = owner(order, range);
        if last_only && message.is_none() {
            return Err(Error::UncertainSpan {
                message: assistants.last().copied().unwrap_or_default(),
                reason: "it cannot be told which of the template's generation blocks is the last message's"
                    .into(),
            });
        }
        let said = &found.text[range.clone()];
        let stop = template.stops().iter().find(|stop| said.trim_end().ends_with(&stop.text)).cloned();
        spans.push(TurnSpan { message, range: range.clone(), stop, prompt_is_prefix: None });
    }
    if last_only {
        let last = assistants.last().copied();
        spans.retain(|span| span.message == last);
    }
    Ok(spans)
}

fn one_span(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    found: &Marked,
    message: usize,
) -> Result<TurnSpan> {
    let (start, prompt_is_prefix) = turn_start(template, messages, options, found, message)?;
    let content_end = found.ends[message].filter(|end| *end >= start);
    let content_start = found.starts[message].filter(|at| *at >= start);
    let search_from = content_end.or(content_start).unwrap_or(start);
    let limit = (message + 1..messages.len())
        .filter_map(|later| found.starts[later])
        .find(|at| *at >= search_from)
        .unwrap_or(found.text.len());
    let stops = template.stops().iter().map(|stop| (stop.id, stop.text.as_str()));
    let first = first_of(&found.text[search_from..limit], stops);
    check_no_stop_within(template, &messages[message], message, content_end.is_some())?;
    if let Some((at, id, text)) = first {
        let end = search_from + at + text.len();
        let stop = Some(Stop { id, text: text.to_owned() });
        return Ok(TurnSpan { message: Some(message), range: start..end, stop, prompt_is_prefix });
    }
    match content_end {
        Some(end) if !messages[message].has_tool_calls() => {
            Ok(TurnSpan { message: Some(message), range: start..end, stop: None, prompt_is_prefix })
        }
        _ => Err(uncertain(message, "no stop token stands behind it, and its end cannot be seen otherwise")),
    }
}

/// Where the generation prompt before `message` ends, and whether the whole text begins with that prompt.
fn turn_start(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    found: &Marked,
    message: usize,
) -> Result<(usize, Option<bool>)> {
    let prompted = RenderOptions { add_generation_prompt: true, ..options.clone() };
    // Many templates cannot render nothing, or not this beginning: then the content's mark has to do.
    let prompt = marks::render_prefix(template, messages, message, &prompted, &found.marked).ok();
    let Some(prompt) = prompt else {
        let start = found.starts[message];
        return start.map(|at| (at, None)).ok_or_else(|| {
            uncertain(
                message,
                "the messages before it cannot be rendered alone, and the template changes its content",
            )
        });
    };
    if found.text.starts_with(&prompt.text) {
        return Ok((prompt.text.len(), Some(true)));
    }
    let before = message.checked_sub(1);
    if let Some((there, here)) = before.and_then(|b| Some((prompt.ends[b]?, found.ends[b]?))) {
        let tail = &prompt.text[there..];
        if found.text[here..].starts_with(tail) {
            return Ok((here + tail.len(), Some(false)));
        }
    }
    found.starts[message].map(|at| (at, Some(false))).ok_or_else(|| {
        uncertain(
            message,
            "what the template writes before it changes with later messages, and it changes its content",
        )
    })
}

/// The first stop token found must be the template's: neither the content, where its end is not known, nor a tool call
/// behind it may have one.
fn check_no_stop_within(
    template: &ChatTemplate,
    message: &Message,
    index: usize,
    content_located: bool,
) -> Result<()> {
    let mut searched = String::new();
    if !content_located {
        searched.push_str(&message.text().unwrap_or_default());
    }
    if !content_located || message.has_tool_calls() {
        searched.push_str(&serde_json::Value::Object(message.extra.clone()).to_string());
    }
    match template.stops().iter().find(|stop| searched.contains(&stop.text)) {
        Some(stop) => Err(uncertain(index, &format!("it contains the stop token `{}`", stop.text))),
        None => Ok(()),
    }
}

/// A turn must not reach into another message.
fn check_apart(
    range: &Range<usize>,
    message: usize,
    messages: &[Message],
    found: &Marked,
    previous: Option<&TurnSpan>,
) -> Result<()> {
    let meets = |other: &Range<usize>| range.start < other.end && other.start < range.end;
    if previous.is_some_and(|previous| meets(&previous.range)) {
        return Err(uncertain(message, "it runs into the assistant's message before it"));
    }
    for (i, other) in messages.iter().enumerate().filter(|(_, other)| !other.is_assistant()) {
        if found.content(i).is_some_and(|content| meets(&content)) {
            return Err(uncertain(
                message,
                &format!("it runs into `messages[{i}]` of the role `{}`", other.role),
            ));
        }
    }
    Ok(())
}

/// The first of `tokens` in `text`; the longest, where several stand at the same place.
fn first_of<'a>(text: &str, tokens: impl Iterator<Item = (u32, &'a str)>) -> Option<(usize, u32, &'a str)> {
    tokens
        .filter_map(|(id, token)| Some((text.find(token)?, id, token)))
        .min_by_key(|(at, _, token)| (*at, std::cmp::Reverse(token.len())))
}

fn uncertain(message: usize, reason: &str) -> Error {
    Error::UncertainSpan { message, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_the_first_tokens_is_taken() {
        let tokens = [(1, "</s>"), (2, "<e>"), (3, "<e>x")];
        assert_eq!(first_of("ab<e>x</s>", tokens.into_iter()), Some((2, 3, "<e>x")));
        assert_eq!(first_of("ab", tokens.into_iter()), None);
    }
}
