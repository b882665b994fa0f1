//! Metrics of written answers on validation data during training, of which only the tokens are there.

use crate::evaluate::respond_to;
use crate::item::{ItemFacts, id_of};
use crate::score::{Scorer, Scoring, pooled};
use crate::task::{EvalItem, EvalTask, ScoredIds, choose};
use crate::{EvalSection, Metric, Result};
use serde_json::Value;
use std::sync::Arc;
use taper_data::TokenizedExample;
use taper_models::CausalLm;
use taper_text::Tokenizer;

impl EvalTask {
    /// Tokenised examples as items: what stands before the last run of supervised tokens is the prompt, the text of that run the
    /// expected answer. Settings are those of an evaluation, but for what needs more of a row than its tokens. Examples that cannot be
    /// measured by `metric` are left out.
    ///
    /// # Errors
    /// When the section's pattern or schema cannot be used.
    pub fn of_tokens(
        section: &EvalSection,
        metric: Metric,
        schema: Option<Value>,
        examples: &[TokenizedExample],
        tokenizer: &Tokenizer,
        stop_token_ids: &[u32],
    ) -> Result<Self> {
        let section = EvalSection {
            metrics: vec![metric],
            slices: Vec::new(),
            cluster_by: None,
            few_shot: 0,
            ..section.clone()
        };
        let chosen = choose(examples.len(), &section);
        let items: Vec<EvalItem> =
            chosen.into_iter().filter_map(|index| item(&examples[index], tokenizer)).collect();
        let scorer = Scorer::new(Scoring::new(&section, schema, items.iter().map(|item| &item.facts)))?;
        let items = items.into_iter().filter(|item| scorer.unmeasurable(&item.facts).is_none()).collect();
        let stop_token_ids = stop_token_ids.to_vec();
        Ok(Self { section, few_shot: 0, items, stop_token_ids, scorer: Arc::new(scorer) })
    }

    /// The first metric of the section over all items; `None` without items.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or the arithmetic fails.
    pub fn measure(&self, model: &dyn CausalLm, tokenizer: &Tokenizer) -> Result<Option<f64>> {
        let Some(metric) = self.section.metrics.first().copied() else { return Ok(None) };
        let responses = respond_to(self, model, tokenizer)?;
        let scores: Vec<_> =
            self.items.iter().zip(&responses).map(|(item, r)| self.scorer.score(&item.facts, r)).collect();
        let tallies = scores.iter().filter_map(|score| Some((score.tallies.get(&metric)?, 1)));
        Ok(pooled(metric, &self.scorer.scoring().labels, tallies))
    }
}

fn item(example: &TokenizedExample, tokenizer: &Tokenizer) -> Option<EvalItem> {
    let TokenizedExample { input_ids, loss_mask, source } = example;
    let end = loss_mask.iter().rposition(|supervised| *supervised)? + 1;
    let begin = loss_mask[..end].iter().rposition(|supervised| !supervised).map_or(0, |last| last + 1);
    let expected = tokenizer.decode(&input_ids[begin..end], true).ok()?;
    let supervised: Vec<u32> =
        input_ids.iter().zip(loss_mask).filter(|(_, supervised)| **supervised).map(|(id, _)| *id).collect();
    let bytes = tokenizer.decode(&supervised, true).map_or(0, |text| text.len());
    Some(EvalItem {
        facts: ItemFacts { id: id_of(source), expected: Some(expected), ..ItemFacts::default() },
        place: source.clone(),
        prompt_ids: input_ids[..begin].to_vec(),
        messages: Vec::new(),
        tools: Vec::new(),
        whole: ScoredIds { input_ids: input_ids.clone(), mask: loss_mask.clone(), bytes },
        choices: Vec::new(),
    })
}
