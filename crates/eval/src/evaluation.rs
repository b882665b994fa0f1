//! One evaluation with all that came of it.

use crate::compare::{Comparison, adjust};
use crate::report::words::headline;
use crate::result::{Answers, EvalResult, Measured, MetricFacts};
use crate::score::{Scorer, Scoring};
use crate::selection::Selection;
use crate::{Error, ItemFacts, Metric, Result, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use taper_data::TouchKind;

/// The results of all candidates on one evaluation, compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluation {
    /// The evaluation's name.
    pub name: String,
    /// The items.
    pub n: usize,
    /// What was measured and how; the first one decides the verdict.
    pub metrics: Vec<MetricFacts>,
    /// The candidate that others are held against, the base; `None` where there is none, as after training from the start.
    pub reference: Option<String>,
    /// The candidate that was trained.
    pub trained: String,
    /// The candidates.
    pub candidates: Vec<EvalResult>,
    /// Every candidate against the base, then the trained one against every other, metric by metric.
    pub comparisons: Vec<Comparison>,
    /// What can be said of the trained one against the base, by the first metric; `None` without a base.
    pub verdict: Option<Verdict>,
    /// The same in a sentence.
    pub headline: String,
    /// The same for the items with each value of a field. Few items say little, and of many slices one is soon far from the rest by
    /// chance: verdicts are adjusted over the slices of a field.
    pub slices: Vec<Slice>,
    /// Items whose input is among those trained on, and the scores without them.
    pub overlap: TouchReport,
    /// What it was scored by.
    pub scoring: Scoring,
    #[serde(skip)]
    items: Vec<ItemFacts>,
}

/// Scores of some of the items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// The items.
    pub n: usize,
    /// The aggregates by candidate.
    pub measured: BTreeMap<String, Vec<Measured>>,
    /// The trained candidate against the base.
    pub comparisons: Vec<Comparison>,
}

/// The items that have one value of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Slice {
    /// The field.
    pub field: String,
    /// The value.
    pub value: String,
    /// The scores.
    #[serde(flatten)]
    pub part: Part,
}

/// Items whose input is among those trained on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TouchReport {
    /// How many.
    pub touched: usize,
    /// Of them, to the byte.
    pub exact: usize,
    /// Of them, but for case and white space.
    pub normalised: usize,
    /// Of them, nearly.
    pub near: usize,
    /// The scores without them; `None` where there are none or nothing would be left.
    pub without: Option<Part>,
}

/// Who is who among the candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// The base; `None` where there is none.
    pub reference: Option<String>,
    /// The trained one.
    pub trained: String,
}

impl Evaluation {
    /// Score and compare what the candidates answered. Everything follows from what is given, so that a replay from the stored
    /// responses gives the same.
    ///
    /// # Errors
    /// When a candidate's responses are not as many as the items.
    pub fn new(scorer: &Scorer, items: Vec<ItemFacts>, answers: Vec<Answers>, roles: Roles) -> Result<Self> {
        let section = &scorer.scoring().section;
        if let Some(wrong) = answers.iter().find(|answers| answers.responses.len() != items.len()) {
            return Err(Error::NotPaired {
                eval: section.name.clone(),
                candidate: wrong.candidate.clone(),
                responses: wrong.responses.len(),
                items: items.len(),
            });
        }
        let candidates: Vec<EvalResult> =
            answers.into_iter().map(|answers| EvalResult::new(answers, scorer, &items)).collect();
        let facts = |metric: &Metric| MetricFacts {
            metric: *metric,
            title: metric.title().to_owned(),
            higher_is_better: metric.higher_is_better(),
            scale: metric.scale(),
            signature: scorer.signature(*metric),
        };
        let mut this = Self {
            name: section.name.clone(),
            n: items.len(),
            metrics: section.metrics.iter().map(facts).collect(),
            reference: roles.reference,
            trained: roles.trained,
            candidates,
            comparisons: Vec::new(),
            verdict: None,
            headline: String::new(),
            slices: Vec::new(),
            overlap: TouchReport::default(),
            scoring: scorer.scoring().clone(),
            items,
        };
        this.comparisons = this.compare_all(scorer);
        this.verdict =
            this.reference.is_some().then(|| this.decisive().map_or(Verdict::Inconclusive, |c| c.verdict));
        this.headline = headline(&this);
        this.slices = this.slice(scorer);
        this.overlap = this.touched(scorer);
        Ok(this)
    }

    /// The items, in the order of the records.
    pub fn items(&self) -> &[ItemFacts] {
        &self.items
    }

    /// A candidate by its name.
    pub fn candidate(&self, name: &str) -> Option<&EvalResult> {
        self.candidates.iter().find(|result| result.candidate == name)
    }

    /// The base.
    pub fn base(&self) -> Option<&EvalResult> {
        self.candidate(self.reference.as_deref()?)
    }

    /// What was trained.
    pub fn trained(&self) -> Option<&EvalResult> {
        self.candidate(&self.trained)
    }

    /// The comparison of two candidates by a metric.
    pub fn comparison(&self, reference: &str, candidate: &str, metric: Metric) -> Option<&Comparison> {
        let is = |c: &&Comparison| c.reference == reference && c.candidate == candidate && c.metric == metric;
        self.comparisons.iter().find(is)
    }

    /// The comparison of any two candidates by a metric: one of those told, in its direction or the other, or one made for the question,
    /// as a gate asks it. Its p-value is then adjusted for the metrics of the pair like any other.
    pub fn compared(&self, reference: &str, candidate: &str, metric: Metric) -> Option<Comparison> {
        if let Some(told) = self.comparison(reference, candidate, metric) {
            return Some(told.clone());
        }
        if let Some(told) = self.comparison(candidate, reference, metric) {
            return Some(told.reversed());
        }
        let scorer = Scorer::new(self.scoring.clone()).ok()?;
        let found = self.compare_pair(&scorer, reference, candidate);
        found.into_iter().find(|comparison| comparison.metric == metric)
    }

    /// The comparison that decides the verdict.
    pub fn decisive(&self) -> Option<&Comparison> {
        self.comparison(self.reference.as_deref()?, &self.trained, self.metrics.first()?.metric)
    }

    /// The metrics, in the order of the section.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> {
        self.metrics.iter().map(|facts| facts.metric)
    }

    fn compare_all(&self, scorer: &Scorer) -> Vec<Comparison> {
        let reference = self.reference.as_deref();
        let against_base = reference.into_iter().flat_map(|reference| {
            self.candidates
                .iter()
                .filter(move |c| c.candidate != reference)
                .map(move |c| (reference, c.candidate.as_str()))
        });
        let others = self.candidates.iter().map(|c| c.candidate.as_str());
        let others = others.filter(|name| Some(*name) != reference && *name != self.trained);
        let pairs: Vec<(&str, &str)> =
            against_base.chain(others.map(|name| (name, self.trained.as_str()))).collect();
        pairs.into_iter().flat_map(|(first, second)| self.compare_pair(scorer, first, second)).collect()
    }

    fn compare_pair(&self, scorer: &Scorer, first: &str, second: &str) -> Vec<Comparison> {
        let all: Vec<usize> = (0..self.n).collect();
        let selection = Selection { scorer, items: &self.items, indices: &all };
        let (Some(a), Some(b)) = (self.candidate(first), self.candidate(second)) else { return Vec::new() };
        let mut found = selection.compare((first, &a.records), (second, &b.records));
        adjust(&mut found);
        found
    }

    fn part(&self, scorer: &Scorer, indices: &[usize]) -> Part {
        let selection = Selection { scorer, items: &self.items, indices };
        let measured = |result: &EvalResult| {
            let values = self.metrics().filter_map(|metric| selection.measure(metric, &result.records));
            (result.candidate.clone(), values.collect())
        };
        let comparisons = match (self.base(), self.trained()) {
            (Some(base), Some(trained)) => {
                selection.compare((&base.candidate, &base.records), (&trained.candidate, &trained.records))
            }
            _ => Vec::new(),
        };
        Part { n: indices.len(), measured: self.candidates.iter().map(measured).collect(), comparisons }
    }

    fn slice(&self, scorer: &Scorer) -> Vec<Slice> {
        let mut slices = Vec::new();
        for field in &scorer.scoring().section.slices {
            let values: BTreeSet<&String> =
                self.items.iter().filter_map(|item| item.slices.get(field)).collect();
            let mut of_field: Vec<Slice> = values
                .into_iter()
                .map(|value| {
                    let is = |index: &usize| self.items[*index].slices.get(field) == Some(value);
                    let indices: Vec<usize> = (0..self.n).filter(is).collect();
                    Slice { field: field.clone(), value: value.clone(), part: self.part(scorer, &indices) }
                })
                .collect();
            for metric in self.metrics() {
                let all = of_field.iter_mut().flat_map(|slice| &mut slice.part.comparisons);
                adjust(all.filter(|comparison| comparison.metric == metric));
            }
            slices.extend(of_field);
        }
        slices
    }

    fn touched(&self, scorer: &Scorer) -> TouchReport {
        let count = |kind| self.items.iter().filter(|item| item.touched == Some(kind)).count();
        let (exact, normalised, near) =
            (count(TouchKind::Exact), count(TouchKind::Normalised), count(TouchKind::Near));
        let touched = exact + normalised + near;
        let rest: Vec<usize> = (0..self.n).filter(|index| self.items[*index].touched.is_none()).collect();
        let without = (touched > 0 && !rest.is_empty()).then(|| {
            let mut part = self.part(scorer, &rest);
            adjust(&mut part.comparisons);
            part
        });
        TouchReport { touched, exact, normalised, near, without }
    }
}
