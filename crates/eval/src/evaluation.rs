//! One evaluation with all that came of it.

use crate::compare::compare;
use crate::{Comparison, EvalItem, EvalResult, EvalSection, Metric, Result, Verdict};
use serde::Serialize;

/// The results of base and candidate on one evaluation, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// The evaluation's name.
    pub name: String,
    /// What was measured; the first one decides the verdict.
    pub metrics: Vec<Metric>,
    /// The items.
    pub n: usize,
    /// The base; `None` where there is none, as after training from the start.
    pub base: Option<EvalResult>,
    /// The trained one.
    pub candidate: EvalResult,
    /// The trained one against the base, metric by metric.
    pub comparisons: Vec<Comparison>,
    /// What can be said, by the first metric; `None` without a base.
    pub verdict: Option<Verdict>,
    #[serde(skip)]
    items: Vec<EvalItem>,
}

impl Evaluation {
    /// Put the results of one task together.
    ///
    /// # Errors
    /// When they are not of the same items.
    pub fn new(
        section: &EvalSection,
        items: &[EvalItem],
        base: Option<EvalResult>,
        candidate: EvalResult,
    ) -> Result<Self> {
        let comparisons = match &base {
            Some(base) => compare(base, &candidate, section.seed)?,
            None => Vec::new(),
        };
        let first = section.metrics.first();
        let decisive = comparisons.iter().find(|c| Some(&c.metric) == first);
        Ok(Self {
            name: section.name.clone(),
            metrics: section.metrics.clone(),
            n: candidate.records.len(),
            verdict: base.as_ref().map(|_| decisive.map_or(Verdict::Inconclusive, |c| c.verdict)),
            base,
            candidate,
            comparisons,
            items: items.to_vec(),
        })
    }

    /// The comparison that decides the verdict.
    pub fn decisive(&self) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| Some(&c.metric) == self.metrics.first())
    }

    /// The items, in the order of the records.
    pub fn items(&self) -> &[EvalItem] {
        &self.items
    }
}
