//! Prompts with the answers that base and adapter gave when the contract was made.

use super::{BaseInUse, Contract};
use crate::error::doing;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use taper_models::{CausalLm, forward_hidden};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32, with_f32_activations};
use taper_text::{Message, RenderOptions, Tokenizer, encode_prompt};

/// What is asked; in a chat format each is the user's message.
const QUESTIONS: [&str; 3] =
    ["Say hello in one word.", "What is the capital of France?", "List three numbers: 1, 2,"];
/// Logits of a prompt that are kept.
const TOP: usize = 5;
/// The longest prompt that is computed again, in tokens: who wrote the file must not choose the work.
const MOST_TOKENS: usize = 4096;

/// A prompt and the likeliest next tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenPrompt {
    /// The text as the model sees it, rendered where there is a template.
    pub text: String,
    /// Whether a template made it, special tokens and all.
    pub rendered: bool,
    /// Its tokens.
    pub input_ids: Vec<u32>,
    /// The likeliest next tokens, likeliest first, with their logits in f32.
    pub top: Vec<TopLogit>,
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopLogit {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

/// What came of computing the golden prompts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct GoldenOutcome {
    /// Prompts.
    pub prompts: usize,
    /// Those whose text became the same tokens.
    pub same_tokens: usize,
    /// Those whose likeliest next token is the same.
    pub same_top1: usize,
    /// The largest difference of a kept logit.
    pub max_abs_diff: f64,
}

impl GoldenOutcome {
    /// Whether tokens are the same and logits differ by no more than `tolerance`. Over the same base 0.01 leaves room for another
    /// machine's order of sums; over one that is quantised otherwise than in training the logits are others, and the likeliest token
    /// ([`Self::same_top1`]) is what can be asked of it.
    pub fn passed(&self, tolerance: f64) -> bool {
        self.same_tokens == self.prompts && self.max_abs_diff <= tolerance
    }
}

impl GoldenPrompt {
    /// Ask the model, base with adapter, our questions in the base's chat format.
    ///
    /// # Errors
    /// When the tokenizer or the arithmetic fails. A template that refuses a question is passed over for plain text.
    pub fn ask(model: &dyn CausalLm, base: &BaseInUse<'_>) -> Result<Vec<Self>> {
        QUESTIONS.iter().map(|question| Self::of(model, base, question)).collect()
    }

    fn of(model: &dyn CausalLm, base: &BaseInUse<'_>, question: &str) -> Result<Self> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let render = |template: &taper_text::ChatTemplate| {
            template.render(&[Message::new("user", question)], &options).ok()
        };
        let chat = base.template.and_then(render);
        let rendered = chat.is_some();
        let text = chat.unwrap_or_else(|| question.to_owned());
        let input_ids = encode(base.tokenizer, &text, rendered)?;
        let logits = last_logits(model, &input_ids)?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let top = order.into_iter().take(TOP).map(|id| TopLogit { id: id as u32, logit: logits[id] });
        Ok(Self { text, rendered, input_ids, top: top.collect() })
    }
}

impl Contract {
    /// Compute the golden prompts again with base and adapter as they are loaded here. Some dozen tokens each: a fraction of a second for a
    /// small model.
    ///
    /// # Errors
    /// When a prompt is empty, longer than 4096 tokens or names a token that the model does not have, and when the tokenizer or the arithmetic
    /// fails.
    pub fn verify(&self, model: &dyn CausalLm, tokenizer: &Tokenizer) -> Result<GoldenOutcome> {
        let mut outcome = GoldenOutcome { prompts: self.golden.len(), ..GoldenOutcome::default() };
        let v = model.config().vocab_size;
        for prompt in &self.golden {
            let ids = &prompt.input_ids;
            if ids.is_empty() || ids.len() > MOST_TOKENS || ids.iter().any(|&id| id as usize >= v) {
                return Err(Error::GoldenPrompt { tokens: ids.len(), vocab_size: v });
            }
            outcome.same_tokens += usize::from(encode(tokenizer, &prompt.text, prompt.rendered)? == *ids);
            let logits = last_logits(model, ids)?;
            for kept in &prompt.top {
                // A token that the model does not have differs by all there is.
                let here = logits.get(kept.id as usize).copied().unwrap_or(f32::INFINITY);
                let difference = f64::from((here - kept.logit).abs());
                let worst = outcome.max_abs_diff;
                outcome.max_abs_diff =
                    if difference.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(difference) };
            }
            let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            outcome.same_top1 += usize::from(prompt.top.first().is_some_and(|top| top.id as usize == best));
        }
        Ok(outcome)
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, rendered: bool) -> Result<Vec<u32>> {
    let ids = if rendered { tokenizer.encode(text, false) } else { encode_prompt(tokenizer, text) };
    ids.map_err(Error::Text)
}

/// Logits `[V]` behind the last token, in f32 whatever the model computes in.
fn last_logits(model: &dyn CausalLm, ids: &[u32]) -> Result<Vec<f32>> {
    let layout = SequenceLayout::single(ids.len());
    let mut ctx = ForwardContext::new(&layout);
    let run = || -> taper_nn::Result<Vec<f32>> {
        let hidden = forward_hidden(model, ids, &mut ctx)?.detach();
        let last = hidden.narrow(0, ids.len() - 1, 1)?;
        to_vec_f32(&model.lm_head(&last, &ctx)?.detach().flatten_all()?)
    };
    with_f32_activations(run).map_err(doing("run the model over a golden prompt"))
}
