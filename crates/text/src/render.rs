//! Conversations, completions and plain text to token ids with their loss mask, from one walk.

use crate::spans::{self, TurnSpan};
use crate::{ChatTemplate, Message, RenderOptions, Result, Tokenizer, marks};
use std::ops::Range;

/// Which tokens of a conversation are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Supervise {
    /// What the assistant says, in every turn, each with its stop token.
    #[default]
    AssistantTurns,
    /// What the assistant says in its last turn.
    LastAssistantTurn,
    /// Every token.
    All,
}

/// What a stretch of the text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Byte range in [`Rendered::text`].
    pub range: Range<usize>,
    /// The message's role, or `prompt`, `completion`, `text`.
    pub role: String,
    /// Index of the message, in a conversation.
    pub message: Option<usize>,
}

/// One turn of the assistant, or a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Index of the message; `None` for a completion, or a generation block that could not be told to a message.
    pub message: Option<usize>,
    /// Byte range in [`Rendered::text`], stop token included.
    pub range: Range<usize>,
    /// Index range of its tokens.
    pub tokens: Range<usize>,
    /// The token that ends it, when there is one.
    pub stop: Option<u32>,
    /// Whether that token is a target.
    pub stop_supervised: bool,
    /// Whether the ids of the conversation begin with those that inference is given before this turn, as text. `None` when
    /// the template cannot render the messages before it, or has generation tags.
    pub prompt_is_prefix: Option<bool>,
}

/// Token ids with their loss mask, and what `taper explain` shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The ids, T of them.
    pub input_ids: Vec<u32>,
    /// Per token: whether it is a target. T booleans.
    pub loss_mask: Vec<bool>,
    /// Per token: its byte range in `text`; empty for a token that stands for no text (BOS, EOS put around it).
    pub offsets: Vec<Range<usize>>,
    /// The text.
    pub text: String,
    /// The contents of the messages and the turns, by place. What lies between is the template's own.
    pub segments: Vec<Segment>,
    /// The assistant's turns that could be located.
    pub turns: Vec<Turn>,
    /// Messages of which the template leaves out the content or the tool calls.
    pub unprinted: Vec<usize>,
}

/// A token as `taper explain` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Position in the sequence.
    pub index: usize,
    /// The id.
    pub id: u32,
    /// The token as it stands in the vocabulary.
    pub token: String,
    /// The text it stands for. Several tokens of one character show the whole character.
    pub text: String,
    /// Byte range in the text.
    pub range: Range<usize>,
    /// Whose words they are; `None` for the template's own.
    pub role: Option<String>,
    /// Index of the message.
    pub message: Option<usize>,
    /// Whether it is a target.
    pub supervised: bool,
}

impl Rendered {
    /// Number of targets.
    pub fn supervised_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|m| **m).count()
    }

    /// Each token with what is known of it.
    pub fn explain(&self, tokenizer: &Tokenizer) -> Vec<TokenInfo> {
        let of = |range: &Range<usize>| self.segments.iter().find(|segment| overlaps(range, &segment.range));
        (0..self.input_ids.len())
            .map(|index| {
                let (id, range) = (self.input_ids[index], self.offsets[index].clone());
                let segment = of(&range);
                TokenInfo {
                    index,
                    id,
                    token: tokenizer.token(id).unwrap_or_default(),
                    text: self.text.get(range.clone()).unwrap_or_default().to_owned(),
                    range,
                    role: segment.map(|s| s.role.clone()),
                    message: segment.and_then(|s| s.message),
                    supervised: self.loss_mask[index],
                }
            })
            .collect()
    }
}

/// A conversation as token ids, and which of them are targets.
///
/// The text is rendered once and tokenized once as a whole, without what the tokenizer itself would put around it (as
/// transformers does: the template says whether there is a BOS). The assistant's spans are found in that text
/// (see the `spans` module's rules in [`crate`]), and a token is a target when it lies in a span or reaches into one:
/// a token that straddles the border is a target, as in transformers' assistant mask, so that no part of an answer goes
/// untrained. Special tokens never straddle.
///
/// # Errors
/// When the template fails, a span is uncertain, or the tokenizer fails. With [`Supervise::All`], spans are not needed, and
/// those that are uncertain are left out.
pub fn render_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    supervise: Supervise,
    options: &RenderOptions,
) -> Result<Rendered> {
    let options =
        RenderOptions { add_generation_prompt: false, continue_final_message: false, ..options.clone() };
    let text = template.render(messages, &options)?;
    let located = marks::locate(template, messages, &options, &text).and_then(|found| {
        let last_only = supervise == Supervise::LastAssistantTurn;
        let spans = spans::assistant_spans(template, messages, &options, &found, last_only)?;
        Ok((found, spans))
    });
    let (found, spans) = match (located, supervise) {
        (Ok(located), _) => located,
        (Err(_), Supervise::All) => (marks::Marked::unlocated(messages.len()), Vec::new()),
        (Err(error), _) => return Err(error),
    };
    let encoded = tokenizer.encode_with_offsets(&text, false)?;
    let ranges: Vec<_> = spans.iter().map(|span| span.range.clone()).collect();
    let mut loss_mask = mask(&encoded.offsets, &ranges);
    if supervise == Supervise::All {
        loss_mask = all_targets(encoded.ids.len());
    }
    let mut rendered = Rendered {
        input_ids: encoded.ids,
        loss_mask,
        offsets: encoded.offsets,
        text,
        segments: segments(messages, &found, &spans),
        turns: Vec::new(),
        unprinted: found.unprinted(messages),
    };
    rendered
        .unprinted
        .extend(spans.iter().filter_map(|span| calls_not_printed(span, messages, &rendered.text)));
    rendered.turns = spans.into_iter().map(|span| turn(span, &rendered)).collect();
    Ok(rendered)
}

/// A prompt and what is to follow it: the completion and an EOS are targets.
///
/// BOS stands before the prompt when the tokenizer puts it there and the prompt does not begin with it; EOS stands behind
/// the completion when the tokenizer has one and the completion does not end with it.
///
/// Inference tokenizes the prompt alone, so the ids must begin with the prompt's own. Where prompt and completion as
/// one text give such ids, these are taken; where a token would reach over the border, each is tokenized by itself.
///
/// # Errors
/// When the tokenizer fails.
pub fn render_completion(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Rendered> {
    let text = format!("{prompt}{completion}");
    let head = tokenizer.encode_with_offsets(prompt, false)?;
    let whole = tokenizer.encode_with_offsets(&text, false)?;
    let n = head.ids.len();
    let (mut ids, mut offsets) = (head.ids, head.offsets);
    if whole.ids.starts_with(&ids) && whole.offsets[n..].iter().all(|r| r.start >= prompt.len()) {
        (ids, offsets) = (whole.ids, whole.offsets);
    } else {
        let tail = encode_continuation(tokenizer, completion)?;
        ids.extend(tail.0);
        offsets.extend(tail.1.into_iter().map(|r| r.start + prompt.len()..r.end + prompt.len()));
    }
    let mut loss_mask = vec![false; n];
    loss_mask.resize(ids.len(), true);
    let mut rendered = Rendered { input_ids: ids, loss_mask, offsets, ..Rendered::default() };
    rendered.segments = [("prompt", 0..prompt.len()), ("completion", prompt.len()..text.len())]
        .map(|(role, range)| Segment { range, role: role.into(), message: None })
        .into();
    rendered.text = text;
    put_around(tokenizer, &mut rendered);
    let start = rendered.loss_mask.iter().position(|m| *m).unwrap_or(rendered.loss_mask.len());
    rendered.turns = vec![whole_turn(tokenizer, &rendered, prompt.len(), start)];
    Ok(rendered)
}

/// A plain text: every token is a target but the first, which nothing stands before; BOS and EOS as in
/// [`render_completion`].
///
/// # Errors
/// When the tokenizer fails.
pub fn render_text(tokenizer: &Tokenizer, text: &str) -> Result<Rendered> {
    let encoded = tokenizer.encode_with_offsets(text, false)?;
    let mut rendered = Rendered {
        loss_mask: vec![true; encoded.ids.len()],
        input_ids: encoded.ids,
        offsets: encoded.offsets,
        text: text.to_owned(),
        segments: vec![Segment { range: 0..text.len(), role: "text".into(), message: None }],
        ..Rendered::default()
    };
    put_around(tokenizer, &mut rendered);
    rendered.loss_mask = all_targets(rendered.input_ids.len());
    rendered.turns = vec![whole_turn(tokenizer, &rendered, 0, 0)];
    Ok(rendered)
}

/// The ids that inference is given for a conversation: it ends with the words that open the assistant's turn.
///
/// With [`RenderOptions::continue_final_message`] it ends inside the last message instead.
///
/// # Errors
/// When the template or the tokenizer fails.
pub fn encode_prompt_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<u32>> {
    let add_generation_prompt = !options.continue_final_message;
    let options = RenderOptions { add_generation_prompt, ..options.clone() };
    tokenizer.encode(&template.render(messages, &options)?, false)
}

/// The ids that inference is given for a plain prompt: those that [`render_completion`]'s begin with.
///
/// # Errors
/// When the tokenizer fails.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(prompt, false)?;
    if let Some(bos) = tokenizer.bos_id().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// Whether a token with `range` lies in or reaches into `span`. A token without text counts where it stands.
pub(crate) fn overlaps(range: &Range<usize>, span: &Range<usize>) -> bool {
    if range.is_empty() {
        span.contains(&range.start)
    } else {
        range.start < span.end && range.end > span.start
    }
}

/// A turn whose tool calls the template left out.
fn calls_not_printed(span: &TurnSpan, messages: &[Message], text: &str) -> Option<usize> {
    let index = span.message?;
    let said = &text[span.range.clone()];
    messages[index].tool_names().any(|name| !said.contains(name)).then_some(index)
}

/// Per token: whether it reaches into one of the spans.
///
/// Some tokenizers leave a token's leading space out of its range, so a token is taken to begin where the one before it
/// ended.
pub(crate) fn mask(offsets: &[Range<usize>], spans: &[Range<usize>]) -> Vec<bool> {
    let mut reached = 0;
    offsets
        .iter()
        .map(|range| {
            let range = range.start.min(reached)..range.end;
            reached = reached.max(range.end);
            spans.iter().any(|span| overlaps(&range, span))
        })
        .collect()
}

fn all_targets(count: usize) -> Vec<bool> {
    (0..count).map(|i| i > 0).collect()
}

fn segments(messages: &[Message], found: &marks::Marked, spans: &[TurnSpan]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = spans
        .iter()
        .map(|span| Segment { range: span.range.clone(), role: "assistant".into(), message: span.message })
        .collect();
    for (i, message) in messages.iter().enumerate() {
        if let Some(range) = found.content(i)
            && !spans.iter().any(|span| overlaps(&range, &span.range))
        {
            segments.push(Segment { range, role: message.role.clone(), message: Some(i) });
        }
    }
    segments.sort_by_key(|segment| segment.range.start);
    segments
}

fn turn(span: TurnSpan, rendered: &Rendered) -> Turn {
    let inside = mask(&rendered.offsets, std::slice::from_ref(&span.range));
    let first = inside.iter().position(|m| *m).unwrap_or(inside.len());
    let last = inside.iter().rposition(|m| *m).map_or(first, |i| i + 1);
    // The stop token is the last of its id in the turn; behind it only whitespace can stand.
    let stop = span.stop.map(|stop| stop.id);
    let at = (first..last).rev().find(|i| Some(rendered.input_ids[*i]) == stop);
    Turn {
        message: span.message,
        range: span.range,
        tokens: first..last,
        stop,
        stop_supervised: at.is_some_and(|i| rendered.loss_mask[i]),
        prompt_is_prefix: span.prompt_is_prefix,
    }
}

/// The turn of a completion or a text, whose stop token is the EOS at its end.
fn whole_turn(tokenizer: &Tokenizer, rendered: &Rendered, start: usize, first: usize) -> Turn {
    let stop = rendered.input_ids.last().copied().filter(|id| tokenizer.eos_ids().contains(id));
    Turn {
        message: None,
        range: start..rendered.text.len(),
        tokens: first..rendered.input_ids.len(),
        stop,
        stop_supervised: stop.is_some() && rendered.loss_mask.last() == Some(&true),
        prompt_is_prefix: Some(true),
    }
}

/// One BOS, where the tokenizer wants it, and one EOS, where it has it.
fn put_around(tokenizer: &Tokenizer, rendered: &mut Rendered) {
    let first = rendered.input_ids.first().copied();
    if let Some(bos) = tokenizer.bos_id().filter(|bos| tokenizer.adds_bos() && first != Some(*bos)) {
        rendered.input_ids.insert(0, bos);
        rendered.loss_mask.insert(0, false);
        rendered.offsets.insert(0, 0..0);
    }
    let ended = rendered.input_ids.last().is_some_and(|id| tokenizer.eos_ids().contains(id));
    if let Some(eos) = tokenizer.eos_id().filter(|_| !ended) {
        let end = rendered.text.len();
        rendered.input_ids.push(eos);
        rendered.loss_mask.push(true);
        rendered.offsets.push(end..end);
    }
}

/// The ids of a text that continues another: without the space that a tokenizer puts before a text's first word.
fn encode_continuation(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
    let plain = tokenizer.encode_with_offsets(text, false)?;
    if tokenizer.adds_prefix_space() && !text.is_empty() {
        let before = tokenizer.encode("\n", false)?;
        let joined = tokenizer.encode_with_offsets(&format!("\n{text}"), false)?;
        let n = before.len();
        if joined.ids.starts_with(&before) && joined.offsets[n..].iter().all(|r| r.start >= 1) {
            let offsets = joined.offsets[n..].iter().map(|r| r.start - 1..r.end - 1).collect();
            return Ok((joined.ids[n..].to_vec(), offsets));
        }
    }
    Ok((plain.ids, plain.offsets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one span is what the mask is asked about")]
    fn a_token_counts_when_it_reaches_into_a_span() {
        let offsets = [0..3, 3..5, 5..5, 5..8, 9..10, 10..12];
        assert_eq!(mask(&offsets, &[4..6]), [false, true, true, true, false, false]);
        // 8..9 is the leading space of the fifth token.
        assert_eq!(mask(&offsets, &[8..9]), [false, false, false, false, true, false]);
        assert_eq!(mask(&offsets, &[]), [false; 6]);
    }
}
