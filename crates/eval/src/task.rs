//! Examples made ready: what a candidate is given, and what it should say.

use crate::metrics::json_fields::json_fields;
use crate::{Error, EvalSection, Metric, Result};
use taper_data::{Encode, Example, ExampleKind, Prompt, RowPlace};
use taper_diagnostics::{Problem, Problems};
use taper_kernels::rng::{shuffle, stream_of};
use taper_text::{ChatTemplate, RenderOptions, Tokenizer, encode_prompt, encode_prompt_chat};

/// Problems after which the reading of examples ends.
const MOST_PROBLEMS: usize = 20;

/// What turns examples into tokens; the same for all candidates.
#[derive(Clone, Copy)]
pub struct Renderer<'a> {
    /// The base's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template; `None` for a base without one, which can be given plain text only.
    pub template: Option<&'a ChatTemplate>,
    /// The encoder that training used; it says which tokens are supervised.
    pub encoder: &'a dyn Encode,
}

/// One evaluation, ready for any candidate.
#[derive(Debug, Clone)]
pub struct EvalTask {
    /// What is measured and how.
    pub section: EvalSection,
    /// The items, in the order of the files.
    pub items: Vec<EvalItem>,
    /// Tokens that end an answer, besides those that the tokenizer declares.
    pub stop_token_ids: Vec<u32>,
}

/// One example, ready.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalItem {
    /// `file:line`, the file without its folder.
    pub id: String,
    /// The row.
    pub place: RowPlace,
    /// What a person asked: the last turn before the answer, or the prompt.
    pub input: String,
    /// The whole prompt as the model sees it; empty for plain text.
    pub prompt: String,
    /// Its ids; empty for plain text.
    pub prompt_ids: Vec<u32>,
    /// The answer; `None` for plain text.
    pub expected: Option<String>,
    /// Ids of the whole example.
    pub input_ids: Vec<u32>,
    /// Which of them are supervised.
    pub loss_mask: Vec<bool>,
}

impl EvalTask {
    /// Make the examples of an evaluation ready: a draw of `limit` of them, prompts rendered with the generation prompt.
    ///
    /// # Errors
    /// When there is no example, a conversation has no template, or up to 20 examples cannot be rendered or cannot be measured
    /// as asked, each with its place.
    pub fn prepare(section: &EvalSection, examples: &[Example], renderer: &Renderer<'_>) -> Result<Self> {
        let chosen = choose(examples.len(), section);
        if chosen.is_empty() {
            return Err(Error::NoExamples { eval: section.name.clone() });
        }
        let mut problems = Problems::new();
        let mut items = Vec::with_capacity(chosen.len());
        for index in chosen {
            match prepare_item(section, &examples[index], renderer)? {
                Ok(item) => items.push(item),
                Err(problem) => problems.push(problem),
            }
            if problems.len() >= MOST_PROBLEMS {
                break;
            }
        }
        if !problems.is_empty() {
            return Err(Error::Problems(problems));
        }
        let stop_token_ids = renderer.encoder.stop_ids();
        Ok(Self { section: section.clone(), items, stop_token_ids })
    }
}

impl EvalTask {
    /// The items that a model of at most `limit` tokens cannot be measured on, up to 20 of them: what is scored must fit as a
    /// whole, a prompt with at least one token behind it.
    pub fn check_length(&self, limit: usize) -> Problems {
        let mut problems = Problems::new();
        for item in &self.items {
            let scored = self.section.metrics.contains(&Metric::Perplexity).then_some(item.input_ids.len());
            let prompted = self.section.generates().then_some(item.prompt_ids.len() + 1);
            let Some(tokens) = scored.max(prompted).filter(|tokens| *tokens > limit) else { continue };
            let message =
                format!("the example takes {tokens} tokens, the model's longest sequence is {limit}");
            let hint =
                "shorten the row or take it out, or take a base with a longer `max_position_embeddings`";
            problems.push(Problem::error("too-long", message).at(item.place.location()).hint(hint));
            if problems.len() >= MOST_PROBLEMS {
                break;
            }
        }
        problems
    }
}

/// `limit` indices drawn by the seed, in rising order; all when there are not more.
fn choose(examples: usize, section: &EvalSection) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..examples).collect();
    if let Some(limit) = section.limit.filter(|&limit| limit < examples) {
        shuffle(section.seed, stream_of("eval.limit"), &mut indices);
        indices.truncate(limit);
        indices.sort_unstable();
    }
    indices
}

/// The outer error ends the reading, the inner one is about this example.
fn prepare_item(
    section: &EvalSection,
    example: &Example,
    renderer: &Renderer<'_>,
) -> Result<Result<EvalItem, Problem>> {
    if matches!(example.kind, ExampleKind::Chat { .. }) && renderer.template.is_none() {
        return Err(Error::NoTemplate { eval: section.name.clone() });
    }
    let encoded = match renderer.encoder.encode(example) {
        Ok(encoded) => encoded,
        Err(error) => return Ok(Err(error.to_problem())),
    };
    let expected = example.answer();
    if let Some(problem) = unmeasurable(section, example, expected.as_deref()) {
        return Ok(Err(problem));
    }
    let (prompt, prompt_ids) = match prompt_of(example, renderer) {
        Ok(prompt) => prompt,
        Err(error) => {
            let problem = Problem::from_error("cannot-render", &error);
            return Ok(Err(problem.at(example.place.location())));
        }
    };
    Ok(Ok(EvalItem {
        id: id_of(&example.place),
        place: example.place.clone(),
        input: input_of(example),
        prompt,
        prompt_ids,
        expected,
        input_ids: encoded.input_ids,
        loss_mask: encoded.loss_mask,
    }))
}

fn unmeasurable(section: &EvalSection, example: &Example, expected: Option<&str>) -> Option<Problem> {
    let generated = section.metrics.iter().find(|metric| **metric != Metric::Perplexity)?;
    let at = example.place.location();
    let Some(expected) = expected else {
        let message = format!("`{generated}` needs a prompt and an answer, the row is plain text");
        let hint = "measure `perplexity` alone, or evaluate on rows with an answer";
        return Some(Problem::error("no-answer", message).at(at).hint(hint));
    };
    if expected.trim().is_empty() {
        let message = format!("`{generated}` compares texts, and the expected answer has none");
        let hint = "an answer that only calls tools can be measured by `perplexity`; give such rows an `[[eval]]` of their own";
        return Some(Problem::error("no-answer", message).at(at).hint(hint));
    }
    if section.metrics.contains(&Metric::JsonFields)
        && json_fields(expected, expected, section.normalize).is_none()
    {
        let message = "`json_fields` is measured, but the expected answer is not a JSON object or list";
        let hint = "take `json_fields` out of `metrics`, or put it into an `[[eval]]` of its own";
        return Some(Problem::error("not-json", message).at(at).hint(hint));
    }
    None
}

/// The prompt and its ids, as at inference.
fn prompt_of(example: &Example, renderer: &Renderer<'_>) -> taper_text::Result<(String, Vec<u32>)> {
    match (example.prompt(), renderer.template) {
        (Some(Prompt::Chat { messages, tools }), Some(template)) => {
            let tools = (!tools.is_empty()).then(|| serde_json::Value::Array(tools.to_vec()));
            let options = RenderOptions { add_generation_prompt: true, tools, ..RenderOptions::default() };
            let text = template.render(messages, &options)?;
            Ok((text, encode_prompt_chat(renderer.tokenizer, template, messages, &options)?))
        }
        (Some(Prompt::Text(text)), _) => Ok((text.to_owned(), encode_prompt(renderer.tokenizer, text)?)),
        _ => Ok((String::new(), Vec::new())),
    }
}

fn input_of(example: &Example) -> String {
    match &example.kind {
        ExampleKind::Chat { messages, .. } => {
            let before = messages.len().saturating_sub(1);
            let last = messages[..before].last();
            last.and_then(|message| message.text()).unwrap_or_default().into_owned()
        }
        ExampleKind::Completion { prompt, .. } => prompt.clone(),
        ExampleKind::Text(text) => text.clone(),
    }
}

/// Without the folder: results of the same data are then equal wherever it lies.
fn id_of(place: &RowPlace) -> String {
    let file = place.file.file_name().unwrap_or(place.file.as_os_str()).to_string_lossy();
    match place.element {
        Some(element) => format!("{file}:{}[{element}]", place.line),
        None => format!("{file}:{}", place.line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_draws_by_the_seed_and_keeps_the_order_of_the_file() {
        let of = |limit, seed| choose(100, &EvalSection { limit, seed, ..EvalSection::default() });
        assert_eq!(of(None, 0).len(), 100);
        assert_eq!(of(Some(100), 0), (0..100).collect::<Vec<_>>());
        let drawn = of(Some(10), 3);
        assert!(drawn.len() == 10 && drawn.is_sorted());
        assert_eq!(drawn, of(Some(10), 3));
        assert_ne!(drawn, of(Some(10), 4));
    }
}
