//! From an example to token ids and the loss mask.

use crate::error::{Error, Result};
use crate::example::{Example, ExampleKind, Prompt};
use crate::explain::ExplainedToken;
use crate::section::Supervision;
use serde_json::Value;
use taper_diagnostics::Diagnose;
use taper_text::{ChatTemplate, ContentHash, RenderOptions, Rendered, Supervise, Tokenizer, Turn};

/// An example as the model will see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids, beginning of sequence included.
    pub input_ids: Vec<u32>,
    /// Which of them are learned.
    pub loss_mask: Vec<bool>,
    /// What else `taper check` wants to know.
    pub facts: EncodedFacts,
}

/// What is seen while an example is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodedFacts {
    /// Answers of which at least one token is learned.
    pub answers: usize,
    /// Those of them that do not end with a learned stop token.
    pub answers_without_stop: usize,
    /// Those of them before which generation would see another text than training does.
    pub unstable_prompts: usize,
    /// Those of them whose first token begins in the prompt, which generation therefore cannot produce.
    pub straddling_answers: usize,
    /// Special tokens that stand in the words of a message.
    pub specials_in_content: usize,
}

/// Turns examples into tokens: the checkpoint's tokenizer and chat template, or a small stand-in for tests.
pub trait Encode: Sync {
    /// The example's token ids and loss mask.
    ///
    /// # Errors
    /// What the template or the tokenizer says, with the example's place.
    fn encode(&self, example: &Example) -> Result<Encoded>;

    /// The text that is tokenised, and its tokens with their roles.
    ///
    /// # Errors
    /// As for [`Encode::encode`].
    fn explain(&self, example: &Example) -> Result<(String, Vec<ExplainedToken>)>;

    /// A token as it stands in the vocabulary.
    fn token(&self, id: u32) -> String;

    /// The token that begins every sequence, if there is one.
    fn bos_id(&self) -> Option<u32>;

    /// The tokens that end an answer.
    fn stop_ids(&self) -> Vec<u32>;

    /// Whether conversations can be rendered.
    fn has_chat_template(&self) -> bool;

    /// A hash of everything but the example that its tokens depend on: with equal ones equal examples have equal tokens.
    /// `None` where they depend on more, such as today's date, and must not be kept.
    fn fingerprint(&self) -> Option<[u8; 32]> {
        None
    }
}

/// [`Encode`] by a checkpoint's own tokenizer and chat template.
#[derive(Debug, Clone, Copy)]
pub struct TextEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    supervise: Supervision,
}

impl<'a> TextEncoder<'a> {
    /// An encoder; `supervise` is the recipe's.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, supervise: Supervision) -> Self {
        Self { tokenizer, template, supervise }
    }

    /// The ids that generation is given to answer the example. `None` for plain text, which has no answer.
    ///
    /// # Errors
    /// What the template or the tokenizer says, with the example's place.
    pub fn encode_prompt(&self, example: &Example) -> Result<Option<Vec<u32>>> {
        let ids = match example.prompt() {
            None => return Ok(None),
            Some(Prompt::Text(prompt)) => taper_text::encode_prompt(self.tokenizer, prompt),
            Some(Prompt::Chat { messages, tools }) => self.template().and_then(|template| {
                taper_text::encode_prompt_chat(self.tokenizer, template, messages, &render_options(tools))
            }),
        };
        ids.map(Some).map_err(|error| failed(example, &error))
    }

    fn template(&self) -> taper_text::Result<&'a ChatTemplate> {
        self.template.ok_or(taper_text::Error::NoTemplate)
    }

    fn render(&self, example: &Example) -> Result<Rendered> {
        let rendered = match &example.kind {
            ExampleKind::Chat { messages, tools, last_turn_only } => self.template().and_then(|template| {
                let supervise = match (self.supervise, last_turn_only) {
                    (Supervision::All, _) => Supervise::All,
                    (Supervision::LastAssistant, _) | (_, true) => Supervise::LastAssistantTurn,
                    (Supervision::Assistant, false) => Supervise::AssistantTurns,
                };
                taper_text::render_chat(self.tokenizer, template, messages, supervise, &render_options(tools))
            }),
            ExampleKind::Completion { prompt, completion } => {
                taper_text::render_completion(self.tokenizer, prompt, completion)
            }
            ExampleKind::Text(text) => taper_text::render_text(self.tokenizer, text),
        };
        let mut rendered = rendered.map_err(|error| failed(example, &error))?;
        if self.supervise == Supervision::All {
            rendered.loss_mask.iter_mut().skip(1).for_each(|learned| *learned = true);
        }
        Ok(rendered)
    }

    fn facts(&self, rendered: &Rendered) -> EncodedFacts {
        let found = rendered.facts(self.tokenizer);
        let is_learned = |turn: &Turn| rendered.loss_mask[turn.tokens.clone()].contains(&true);
        let count = |turns: &[usize]| turns.iter().filter(|&&turn| is_learned(&rendered.turns[turn])).count();
        EncodedFacts {
            answers: rendered.turns.iter().filter(|turn| is_learned(turn)).count(),
            answers_without_stop: count(&found.unsupervised_stops),
            unstable_prompts: count(&found.unstable_prompts),
            straddling_answers: count(&found.straddling_turns),
            specials_in_content: found.specials_in_content.len(),
        }
    }
}

impl Encode for TextEncoder<'_> {
    fn encode(&self, example: &Example) -> Result<Encoded> {
        let rendered = self.render(example)?;
        let facts = self.facts(&rendered);
        Ok(Encoded { input_ids: rendered.input_ids, loss_mask: rendered.loss_mask, facts })
    }

    fn explain(&self, example: &Example) -> Result<(String, Vec<ExplainedToken>)> {
        let rendered = self.render(example)?;
        let tokens = rendered.explain(self.tokenizer).into_iter().map(|info| ExplainedToken {
            id: info.id,
            token: if info.text.is_empty() { info.token } else { info.text },
            role: info.role.unwrap_or_else(|| "template".into()),
            supervised: info.supervised,
        });
        let tokens = tokens.collect();
        Ok((rendered.text, tokens))
    }

    fn token(&self, id: u32) -> String {
        self.tokenizer.token(id).unwrap_or_else(|| format!("[{id}]"))
    }

    fn bos_id(&self) -> Option<u32> {
        self.tokenizer.bos_id()
    }

    fn stop_ids(&self) -> Vec<u32> {
        match self.template {
            Some(template) => template.stop_ids(self.tokenizer),
            None => self.tokenizer.eos_ids().to_vec(),
        }
    }

    fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    fn fingerprint(&self) -> Option<[u8; 32]> {
        let mut hash = ContentHash::new("text encoder");
        hash.add(&self.tokenizer.fingerprint());
        if let Some(template) = self.template {
            hash.add(&template.fingerprint()?);
        }
        hash.add_number(match self.supervise {
            Supervision::Assistant => 0,
            Supervision::LastAssistant => 1,
            Supervision::All => 2,
        });
        Some(hash.finish())
    }
}

fn render_options(tools: &[Value]) -> RenderOptions {
    let tools = (!tools.is_empty()).then(|| Value::Array(tools.to_vec()));
    RenderOptions { tools, ..RenderOptions::default() }
}

fn failed(example: &Example, error: &taper_text::Error) -> Error {
    Error::Encode { place: example.place.clone(), message: error.to_string(), remedy: error.hint() }
}
