//! What `taper check` wants to know before step 1: about a template, and about a rendered example.

use crate::{ChatTemplate, Message, RenderOptions, Rendered, Result, Tokenizer};

/// What short conversations show of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFacts {
    /// A system message is accepted and printed.
    pub supports_system: bool,
    /// The template says itself what the assistant generates.
    pub has_generation_tags: bool,
    /// How many BOS tokens a rendered conversation begins with. More than one is a fault of the template.
    pub leading_bos: usize,
    /// The tokenizer would put a BOS before a text; a chat gets the template's alone, as in transformers.
    pub tokenizer_adds_bos: bool,
    /// The token that ends the assistant's turn. `None`: a model trained on it never learns to stop.
    pub turn_end: Option<u32>,
    /// That token is among the tokenizer's EOS ids. When not, inference must be told to stop there.
    pub turn_end_is_eos: bool,
    /// The rendering of a conversation's beginning is the beginning of its rendering, in a conversation of two turns.
    pub prefix_preserving: bool,
}

/// What one rendered example shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenderFacts {
    /// Number of targets. None is a worthless example.
    pub supervised_tokens: usize,
    /// How many BOS tokens it begins with.
    pub leading_bos: usize,
    /// Turns (as indices into [`Rendered::turns`]) without a stop token, or whose stop token is no target.
    pub unsupervised_stops: Vec<usize>,
    /// Turns whose text before them is not what inference would be given.
    pub unstable_prompts: Vec<usize>,
    /// Turns whose first token reaches back into the prompt, so that the prompt's ids are not what inference would have.
    pub straddling_turns: Vec<usize>,
    /// Messages of which the template leaves out the content (a system prompt it has no place for) or the tool calls.
    pub unprinted: Vec<usize>,
    /// Special tokens inside a message's own words: message index and token.
    pub specials_in_content: Vec<(usize, String)>,
}

impl ChatTemplate {
    /// What short conversations show of this template.
    pub fn facts(&self, tokenizer: &Tokenizer) -> TemplateFacts {
        let options = RenderOptions::default();
        let turns = |n: usize| -> Vec<Message> {
            let roles = ["user", "assistant"].into_iter().cycle();
            roles.take(n).enumerate().map(|(i, role)| Message::new(role, format!("words{i}"))).collect()
        };
        let with_system = [vec![Message::new("system", "rule0")], turns(1)].concat();
        let system = self.render(&with_system, &options).is_ok_and(|text| text.contains("rule0"));
        let leading_bos = self
            .render(&turns(1), &options)
            .and_then(|text| tokenizer.encode(&text, false))
            .map_or(0, |ids| leading_bos(&ids, tokenizer));
        TemplateFacts {
            supports_system: system,
            has_generation_tags: self.has_generation_tags(),
            leading_bos,
            tokenizer_adds_bos: tokenizer.adds_bos(),
            turn_end: self.turn_end_id(),
            turn_end_is_eos: self.turn_end_id().is_some_and(|id| tokenizer.eos_ids().contains(&id)),
            prefix_preserving: matches!(first_unstable_prefix(self, &turns(4), &options), Ok(None)),
        }
    }
}

impl Rendered {
    /// What this example shows.
    pub fn facts(&self, tokenizer: &Tokenizer) -> RenderFacts {
        let turns = |keep: &dyn Fn(&crate::Turn) -> bool| -> Vec<usize> {
            (0..self.turns.len()).filter(|i| keep(&self.turns[*i])).collect()
        };
        RenderFacts {
            supervised_tokens: self.supervised_tokens(),
            leading_bos: leading_bos(&self.input_ids, tokenizer),
            unsupervised_stops: turns(&|turn| !turn.stop_supervised),
            unstable_prompts: turns(&|turn| turn.prompt_is_prefix == Some(false)),
            straddling_turns: turns(&|turn| {
                let first = self.offsets.get(turn.tokens.start);
                !turn.tokens.is_empty() && first.is_some_and(|r| r.start < turn.range.start)
            }),
            unprinted: self.unprinted.clone(),
            specials_in_content: self.specials_in_content(tokenizer),
        }
    }

    fn specials_in_content(&self, tokenizer: &Tokenizer) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (id, range) in
            self.input_ids.iter().zip(&self.offsets).filter(|(id, _)| tokenizer.is_special(**id))
        {
            let inside = |s: &&crate::Segment| range.start >= s.range.start && range.end <= s.range.end;
            let Some(segment) = self.segments.iter().find(inside) else { continue };
            // A turn's own stop token is inside its segment, and belongs there.
            let closes = self.turns.iter().any(|turn| turn.stop == Some(*id) && range.end >= turn.range.end);
            if let (Some(message), false, false) = (segment.message, closes, range.is_empty()) {
                found.push((message, tokenizer.token(*id).unwrap_or_default()));
            }
        }
        found
    }
}

/// The number of messages after which the rendering is no beginning of the whole rendering, if there is one.
///
/// Beginnings that the template refuses to render are passed over.
///
/// # Errors
/// When the template fails over the whole conversation.
pub fn first_unstable_prefix(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Option<usize>> {
    let full = template.render(messages, options)?;
    Ok((1..messages.len()).find(|count| {
        template.render(&messages[..*count], options).is_ok_and(|prefix| !full.starts_with(&prefix))
    }))
}

fn leading_bos(ids: &[u32], tokenizer: &Tokenizer) -> usize {
    let Some(bos) = tokenizer.bos_id() else {
        return 0;
    };
    ids.iter().take_while(|id| **id == bos).count()
}
