//! Examples made ready: what a candidate is given, and what it should say.

use crate::item::{ItemFacts, id_of};
use crate::prompting::{Prompting, as_messages, with_answer};
use crate::score::{Scorer, Scoring};
use crate::{Error, EvalSection, Metric, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_data::{Encode, Example, ExampleKind, Prompt, RowPlace, TouchKind};
use taper_diagnostics::{Problem, Problems, did_you_mean};
use taper_kernels::rng::{shuffle, stream_of};
use taper_text::{ChatTemplate, Message, RenderOptions, Tokenizer, encode_prompt, encode_prompt_chat};

/// Problems after which the reading of examples ends.
const MOST_PROBLEMS: usize = 20;

/// What turns examples into tokens.
#[derive(Clone, Copy)]
pub struct Renderer<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template; `None` for a base without one, which can be given plain text only.
    pub template: Option<&'a ChatTemplate>,
    /// The encoder that training used; it says which tokens are supervised.
    pub encoder: &'a dyn Encode,
}

/// One evaluation, ready for the candidates that read text by the same renderer.
#[derive(Debug, Clone)]
pub struct EvalTask {
    /// What is measured and how.
    pub section: EvalSection,
    /// Answered examples shown before each question.
    pub few_shot: usize,
    /// The items, in the order of the files.
    pub items: Vec<EvalItem>,
    /// Tokens that end an answer, besides those that the tokenizer declares.
    pub stop_token_ids: Vec<u32>,
    /// What scores the answers.
    pub scorer: Arc<Scorer>,
}

/// One example, ready.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalItem {
    /// What those who score it need.
    pub facts: ItemFacts,
    /// The row.
    pub place: RowPlace,
    /// The ids of the prompt; empty for plain text.
    pub prompt_ids: Vec<u32>,
    /// The prompt as turns, for an endpoint; empty for plain text.
    pub messages: Vec<Message>,
    /// Tools offered.
    pub tools: Vec<Value>,
    /// The whole example.
    pub whole: ScoredIds,
    /// Each choice as the answer.
    pub choices: Vec<ScoredIds>,
}

/// A text and which of its tokens are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredIds {
    /// Its ids.
    pub input_ids: Vec<u32>,
    /// Which of them are scored.
    pub mask: Vec<bool>,
    /// Bytes of the text that these stand for; special tokens stand for none.
    pub bytes: usize,
}

impl EvalTask {
    /// Make the examples of an evaluation ready: a draw of `limit` of them, prompts rendered with the generation prompt. `touched` says
    /// by index how an example stands among those trained on.
    ///
    /// # Errors
    /// When there is no example, a conversation has no template, or up to 20 examples cannot be rendered or cannot be measured
    /// as asked, each with its place.
    pub fn prepare(
        section: &EvalSection,
        examples: &[Example],
        prompting: &Prompting<'_>,
        renderer: &Renderer<'_>,
        touched: &BTreeMap<usize, TouchKind>,
    ) -> Result<Self> {
        let chosen = choose(examples.len(), section);
        if chosen.is_empty() {
            return Err(Error::NoExamples { eval: section.name.clone() });
        }
        let facts: Vec<ItemFacts> = chosen
            .iter()
            .map(|index| facts(section, &examples[*index], touched.get(index).copied()))
            .collect();
        check_fields(section, chosen.iter().map(|index| &examples[*index]))?;
        let scorer = Scorer::new(Scoring::new(section, prompting.schema.cloned(), facts.iter()))?;
        let mut problems = Problems::new();
        let mut items = Vec::with_capacity(chosen.len());
        for (index, facts) in chosen.into_iter().zip(facts) {
            let example = &examples[index];
            let item = match scorer.unmeasurable(&facts) {
                Some((metric, why)) => Err(Box::new(unmeasurable(metric, why).at(example.place.location()))),
                None => prepare_item(section, &facts, example, prompting, renderer)?,
            };
            match item {
                Ok(item) => items.push(item),
                Err(problem) => problems.push(*problem),
            }
            if problems.len() >= MOST_PROBLEMS {
                break;
            }
        }
        if !problems.is_empty() {
            return Err(Error::Problems(problems));
        }
        let stop_token_ids = renderer.encoder.stop_ids();
        let (section, few_shot) = (section.clone(), prompting.shots.len());
        Ok(Self { section, few_shot, items, stop_token_ids, scorer: Arc::new(scorer) })
    }

    /// The items that a model of at most `limit` tokens cannot be measured on, up to 20 of them: what is scored must fit as a
    /// whole, a prompt with at least one token behind it.
    pub fn check_length(&self, limit: usize) -> Problems {
        let mut problems = Problems::new();
        for item in &self.items {
            let scored = self.section.needs_losses().then_some(item.whole.input_ids.len());
            let prompted = self.section.generates().then_some(item.prompt_ids.len() + 1);
            let choices = item.choices.iter().map(|choice| choice.input_ids.len()).max();
            let longest = scored.max(prompted).max(choices);
            let Some(tokens) = longest.filter(|tokens| *tokens > limit) else { continue };
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

    /// What those who score the items need.
    pub fn facts(&self) -> Vec<ItemFacts> {
        self.items.iter().map(|item| item.facts.clone()).collect()
    }
}

/// `limit` indices drawn by the seed, in rising order; all when there are not more.
pub(crate) fn choose(examples: usize, section: &EvalSection) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..examples).collect();
    if let Some(limit) = section.limit.filter(|&limit| limit < examples) {
        shuffle(section.seed, stream_of("eval.limit"), &mut indices);
        indices.truncate(limit);
        indices.sort_unstable();
    }
    indices
}

fn facts(section: &EvalSection, example: &Example, touched: Option<TouchKind>) -> ItemFacts {
    let text = |field: &String| example.fields.get(field).filter(|value| !value.is_null()).map(as_text);
    let choices = example.fields.get(&section.choices).filter(|_| section.needs_choices());
    let choices = choices.and_then(Value::as_array).map(|list| list.iter().map(as_text).collect());
    ItemFacts {
        id: id_of(&example.place),
        input: input_of(example),
        prompt: String::new(),
        expected: example.answer(),
        choices: choices.unwrap_or_default(),
        slices: section.slices.iter().filter_map(|field| Some((field.clone(), text(field)?))).collect(),
        cluster: section.cluster_by.as_ref().and_then(text),
        touched,
    }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A field by which scores are told apart must be in some row, one by which items belong together in each.
fn check_fields<'a>(
    section: &EvalSection,
    examples: impl Iterator<Item = &'a Example> + Clone,
) -> Result<()> {
    let mut problems = Problems::new();
    for field in &section.slices {
        if !examples.clone().any(|example| example.fields.contains_key(field)) {
            let message = format!("no row of the evaluation `{}` has the field `{field}`", section.name);
            problems.push(Problem::error("unknown-field", message).hint(near(field, examples.clone())));
        }
    }
    if let Some(field) = &section.cluster_by {
        for example in examples.filter(|example| !example.fields.contains_key(field)).take(MOST_PROBLEMS) {
            let message = format!("the row has no field `{field}`, by which items belong together");
            problems.push(Problem::error("unknown-field", message).at(example.place.location()));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Problems(problems)) }
}

fn near<'a>(field: &str, mut examples: impl Iterator<Item = &'a Example>) -> String {
    let known: Vec<&str> = examples
        .next()
        .map(|example| example.fields.keys().map(String::as_str).collect())
        .unwrap_or_default();
    match did_you_mean(field, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "a field within another is named with a point, as `meta.site`".into(),
    }
}

fn unmeasurable(metric: Metric, why: String) -> Problem {
    let hint = format!("take `{metric}` out of `metrics`, or give such rows an `[[eval]]` of their own");
    Problem::error("cannot-measure", why).hint(hint)
}

/// The outer error ends the reading, the inner one is about this example.
fn prepare_item(
    section: &EvalSection,
    facts: &ItemFacts,
    row: &Example,
    prompting: &Prompting<'_>,
    renderer: &Renderer<'_>,
) -> Result<Result<EvalItem, Box<Problem>>> {
    if matches!(row.kind, ExampleKind::Chat { .. }) && renderer.template.is_none() {
        return Err(Error::NoTemplate { eval: section.name.clone() });
    }
    let example = prompting.apply(row, section.system.as_deref());
    Ok(make_item(facts, row, &example, renderer))
}

/// The item of a row; `example` is the row with what stands before its question.
fn make_item(
    facts: &ItemFacts,
    row: &Example,
    example: &Example,
    renderer: &Renderer<'_>,
) -> Result<EvalItem, Box<Problem>> {
    let encode =
        |example: &Example| scored_ids(example, renderer).map_err(|error| Box::new(error.to_problem()));
    let stop = renderer.encoder.stop_ids();
    let as_answer = |choice: &String| {
        let mut scored = encode(&with_answer(example, choice))?;
        // The choice itself is scored, as others do, not that the text ends behind it.
        let ids = scored.input_ids.iter();
        scored.mask.iter_mut().zip(ids).for_each(|(scored, id)| *scored &= !stop.contains(id));
        Ok(scored)
    };
    let whole = encode(example)?;
    let choices = facts.choices.iter().map(as_answer).collect::<Result<Vec<_>, Box<Problem>>>()?;
    let (prompt, prompt_ids) = prompt_of(example, renderer)
        .map_err(|error| Box::new(Problem::from_error("cannot-render", &error).at(row.place.location())))?;
    let (messages, tools) = as_messages(example);
    let facts = ItemFacts { prompt, ..facts.clone() };
    Ok(EvalItem { facts, place: row.place.clone(), prompt_ids, messages, tools, whole, choices })
}

fn scored_ids(example: &Example, renderer: &Renderer<'_>) -> taper_data::Result<ScoredIds> {
    let encoded = renderer.encoder.encode(example)?;
    let scored: Vec<u32> = encoded
        .input_ids
        .iter()
        .zip(&encoded.loss_mask)
        .filter(|(_, scored)| **scored)
        .map(|(id, _)| *id)
        .collect();
    let bytes = renderer.tokenizer.decode(&scored, true).map_or(0, |text| text.len());
    Ok(ScoredIds { input_ids: encoded.input_ids, mask: encoded.loss_mask, bytes })
}

/// The prompt and its ids, as at inference.
fn prompt_of(example: &Example, renderer: &Renderer<'_>) -> taper_text::Result<(String, Vec<u32>)> {
    match (example.prompt(), renderer.template) {
        (Some(Prompt::Chat { messages, tools }), Some(template)) => {
            let tools = (!tools.is_empty()).then(|| Value::Array(tools.to_vec()));
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
