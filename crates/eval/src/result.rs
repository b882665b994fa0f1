//! What one candidate scored on one evaluation.

use crate::metrics::classification::{ClassScore, Confusion, ZeroDivision, label_of};
use crate::metrics::extraction::FieldTable;
use crate::score::{ItemScore, Scorer};
use crate::selection::Selection;
use crate::statistics::Interval;
use crate::{ItemFacts, Metric, Response, Scale};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one candidate answered: what a replay needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// The candidate, for example `base` or `adapter`.
    pub candidate: String,
    /// What it is: a folder, an adapter, an endpoint.
    pub about: String,
    /// One response an item, in the order of the items.
    pub responses: Vec<Response>,
    /// How many of them were read from the cache.
    pub cached: usize,
}

/// The scores of one candidate, item by item and together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalResult {
    /// Its name.
    #[serde(rename = "name")]
    pub candidate: String,
    /// What it is.
    pub about: String,
    /// The aggregates, in the order of the section's metrics; one without an item to measure is left out.
    pub measured: Vec<Measured>,
    /// Items without an answer, as when an endpoint failed. They are not scored.
    pub errors: usize,
    /// Tokens and times.
    pub usage: Usage,
    /// Labels expected and named, where metrics ask for labels.
    pub classes: Option<Classes>,
    /// Fields of JSON answers, where metrics ask for a schema.
    pub fields: Option<FieldTable>,
    /// The items, in the order of the evaluation.
    #[serde(skip)]
    pub records: Vec<Record>,
}

/// One item of one candidate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// What it did.
    pub response: Response,
    /// What it scores.
    pub score: ItemScore,
}

/// One metric over some items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Which one.
    pub metric: Metric,
    /// Its value.
    pub value: f64,
    /// The items it was measured on.
    pub n: usize,
    /// 95 %: Wilson's for a share, Student's for a mean, else the bootstrap (BCa); `None` where there is none.
    pub interval: Option<Interval>,
}

/// How a metric is told and computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricFacts {
    /// Which one.
    pub metric: Metric,
    /// Its name for people.
    pub title: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// In what it is told.
    pub scale: Scale,
    /// How it was computed; numbers with different signatures must not be compared.
    pub signature: String,
}

/// Tokens and times of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Those of them that an endpoint had read before.
    pub cached_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Seconds of the machine that an item took, on average; `None` where it was not measured.
    pub seconds_per_item: Option<f64>,
    /// Joules of all items; `None` where they could not be measured.
    pub joules: Option<f64>,
    /// Half of the answers took at most this long, in milliseconds; `None` where it was not measured.
    pub latency_p50_ms: Option<f64>,
    /// All but one in twenty took at most this long.
    pub latency_p95_ms: Option<f64>,
}

/// Labels expected and named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Classes {
    /// The labels, in the order of rows and columns.
    pub labels: Vec<String>,
    /// Rows: the expected label; columns: the one that was named, and at the end answers that name none.
    pub counts: Vec<Vec<u64>>,
    /// Each label against all others.
    pub by_class: Vec<ClassScore>,
}

impl EvalResult {
    /// Score what a candidate answered.
    pub(crate) fn new(answers: Answers, scorer: &Scorer, items: &[ItemFacts]) -> Self {
        let score = |(item, response): (&ItemFacts, Response)| {
            let score = scorer.score(item, &response);
            Record { response, score }
        };
        let records: Vec<Record> = items.iter().zip(answers.responses).map(score).collect();
        let all: Vec<usize> = (0..items.len()).collect();
        let selection = Selection { scorer, items, indices: &all };
        let metrics = &scorer.scoring().section.metrics;
        Self {
            candidate: answers.candidate,
            about: answers.about,
            measured: metrics.iter().filter_map(|metric| selection.measure(*metric, &records)).collect(),
            errors: records.iter().filter(|record| record.response.error.is_some()).count(),
            usage: Usage::of(&records),
            classes: classes(scorer, items, &records),
            fields: fields(scorer, &records),
            records,
        }
    }

    /// The aggregate of a metric.
    pub fn measured(&self, metric: Metric) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.metric == metric)
    }
}

impl Usage {
    fn of(records: &[Record]) -> Self {
        let sum = |of: fn(&Response) -> usize| records.iter().map(|record| of(&record.response) as u64).sum();
        let mut latencies: Vec<f64> =
            records.iter().filter_map(|record| record.response.latency_ms).collect();
        latencies.sort_by(f64::total_cmp);
        // The least value that at least this share of them does not pass.
        let at = |share: f64| {
            let rank = (share * latencies.len() as f64).ceil() as usize;
            latencies.get(rank.max(1) - 1).copied()
        };
        let all = |of: fn(&Response) -> Option<f64>| -> Option<f64> {
            let values: Option<Vec<f64>> = records.iter().map(|record| of(&record.response)).collect();
            values.filter(|values| !values.is_empty()).map(|values| values.iter().sum())
        };
        Self {
            cached_tokens: sum(|response| response.cached_tokens),
            seconds_per_item: all(|response| response.busy_ms).map(|ms| ms / 1000.0 / records.len() as f64),
            joules: all(|response| response.joules),
            prompt_tokens: sum(|response| response.prompt_tokens),
            completion_tokens: sum(|response| response.completion_tokens),
            latency_p50_ms: at(0.5),
            latency_p95_ms: at(0.95),
        }
    }
}

fn classes(scorer: &Scorer, items: &[ItemFacts], records: &[Record]) -> Option<Classes> {
    let scoring = scorer.scoring();
    if !scoring.section.metrics.iter().any(|metric| metric.needs_labels()) {
        return None;
    }
    let normalize = scoring.section.normalize;
    let pairs = items.iter().zip(records).filter(|(_, record)| !record.score.tallies.is_empty());
    let pairs = pairs.filter_map(|(item, record)| {
        let expected = label_of(item.expected.as_deref()?, &scoring.labels, normalize)?;
        Some((expected, record.score.label.as_deref()))
    });
    let confusion = Confusion::new(&scoring.labels, pairs);
    let by_class = confusion.by_class(ZeroDivision::Zero);
    Some(Classes { labels: confusion.labels, counts: confusion.counts, by_class })
}

fn fields(scorer: &Scorer, records: &[Record]) -> Option<FieldTable> {
    let asks = scorer.scoring().section.metrics.iter().any(|metric| metric.needs_schema());
    asks.then(|| FieldTable::of(records.iter().filter_map(|record| record.score.document.as_ref())))
}
