//! An encoder whose tokens are bytes, so that every number in a test can be counted by hand.

use std::path::Path;
use taper_data::{
    Encode, Encoded, EncodedFacts, Error, Example, ExampleKind, ExplainedToken, Result, RowPlace,
};

pub(crate) const BOS: u32 = 256;
pub(crate) const EOS: u32 = 257;
/// The token that opens a turn; the byte after it is the role's first letter.
pub(crate) const TURN: u32 = 258;

/// Faults that a real template can have.
#[derive(Default, Clone, Copy)]
pub(crate) struct FakeEncoder {
    pub(crate) writes_two_bos: bool,
    pub(crate) learns_no_stop: bool,
    pub(crate) learns_nothing: bool,
    pub(crate) changes_prefix: bool,
    pub(crate) raises_on_tools: bool,
    pub(crate) has_no_template: bool,
}

impl FakeEncoder {
    fn tokens(self, example: &Example) -> Result<Vec<ExplainedToken>> {
        let mut tokens = Vec::new();
        let mut push = |id: u32, role: &str, learned: bool| {
            let supervised = learned && !self.learns_nothing;
            tokens.push(ExplainedToken { id, token: self.token(id), role: role.to_owned(), supervised });
        };
        for _ in 0..=usize::from(self.writes_two_bos) {
            push(BOS, "template", false);
        }
        match &example.kind {
            ExampleKind::Text(text) => text.bytes().for_each(|byte| push(byte.into(), "text", true)),
            ExampleKind::Completion { prompt, completion } => {
                prompt.bytes().for_each(|byte| push(byte.into(), "prompt", false));
                completion.bytes().for_each(|byte| push(byte.into(), "completion", true));
                push(EOS, "completion", !self.learns_no_stop);
            }
            ExampleKind::Chat { tools, .. } if self.raises_on_tools && !tools.is_empty() => {
                let message = "chat template failed: no tools here".to_owned();
                return Err(Error::Encode { place: example.place.clone(), message, remedy: None });
            }
            ExampleKind::Chat { messages, .. } => {
                for message in messages {
                    let (role, learned) = (&message.role, message.is_assistant());
                    push(TURN, role, false);
                    push(role.as_bytes()[0].into(), role, false);
                    let text = message.text().unwrap_or_default().into_owned();
                    text.bytes().for_each(|byte| push(byte.into(), role, learned));
                    push(EOS, role, learned && !self.learns_no_stop);
                }
            }
        }
        Ok(tokens)
    }
}

impl Encode for FakeEncoder {
    fn encode(&self, example: &Example) -> Result<Encoded> {
        let tokens = self.tokens(example)?;
        let answers = match &example.kind {
            ExampleKind::Chat { messages, .. } => messages.iter().filter(|m| m.is_assistant()).count(),
            _ => 1,
        };
        let facts = EncodedFacts {
            answers,
            answers_without_stop: if self.learns_no_stop { answers } else { 0 },
            unstable_prompts: usize::from(self.changes_prefix),
            ..EncodedFacts::default()
        };
        let input_ids = tokens.iter().map(|token| token.id).collect();
        Ok(Encoded { input_ids, loss_mask: tokens.iter().map(|token| token.supervised).collect(), facts })
    }

    fn explain(&self, example: &Example) -> Result<(String, Vec<ExplainedToken>)> {
        let tokens = self.tokens(example)?;
        Ok((tokens.iter().map(|token| token.token.as_str()).collect(), tokens))
    }

    fn token(&self, id: u32) -> String {
        match id {
            BOS => "<s>".into(),
            EOS => "</s>".into(),
            TURN => "<turn>".into(),
            byte => char::from(byte as u8).to_string(),
        }
    }

    fn bos_id(&self) -> Option<u32> {
        Some(BOS)
    }

    fn stop_ids(&self) -> Vec<u32> {
        vec![EOS]
    }

    fn has_chat_template(&self) -> bool {
        !self.has_no_template
    }
}

pub(crate) fn place(line: usize) -> RowPlace {
    RowPlace { file: Path::new("a.jsonl").into(), line, element: None }
}
