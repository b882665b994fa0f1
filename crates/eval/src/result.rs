//! What one candidate scored on one evaluation.

use crate::metrics::json_fields::JsonFields;
use crate::metrics::loss::perplexity;
use crate::statistics::{Interval, bootstrap, wilson};
use crate::{EvalSection, Metric};
use serde::{Deserialize, Serialize};
use taper_infer::FinishReason;

/// The scores of one candidate, item by item and together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    /// The candidate, for example `base` or `adapter`.
    pub candidate: String,
    /// The aggregates, in the order of the section's metrics; one without an item to measure is left out.
    pub measured: Vec<Measured>,
    /// The items, in the order of the task.
    #[serde(skip)]
    pub records: Vec<SampleRecord>,
}

/// What one candidate did with one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The item's id.
    pub id: String,
    /// What was written; `None` where nothing was asked.
    pub output: Option<String>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Tokens written, the stop token included.
    pub completion_tokens: usize,
    /// Whether the output equals the expected answer.
    pub exact_match: Option<bool>,
    /// The fields of a JSON answer.
    pub json_fields: Option<JsonFields>,
    /// Sum of the losses of the supervised tokens, in nats.
    pub loss_sum: Option<f64>,
    /// Number of the supervised tokens that were scored.
    pub loss_tokens: usize,
}

/// One metric over all items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which one.
    pub metric: Metric,
    /// Its value.
    pub value: f64,
    /// The items it was measured on.
    pub n: usize,
    /// 95 %: Wilson's for a share, else the bootstrap over items; `None` where there is none.
    pub interval: Option<Interval>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// How it was computed; numbers with different signatures must not be compared.
    pub signature: String,
}

impl EvalResult {
    /// The aggregates of the records.
    pub fn new(candidate: &str, records: Vec<SampleRecord>, section: &EvalSection) -> Self {
        let measured = section
            .metrics
            .iter()
            .filter_map(|metric| {
                let (value, n, interval) = aggregate(*metric, &records, section.seed)?;
                Some(Measured {
                    metric: *metric,
                    value,
                    n,
                    interval,
                    higher_is_better: metric.higher_is_better(),
                    signature: signature(*metric, section),
                })
            })
            .collect();
        Self { candidate: candidate.into(), measured, records }
    }

    /// The aggregate of a metric.
    pub fn measured(&self, metric: Metric) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.metric == metric)
    }
}

/// A metric over some of the records; `None` when none of them has it.
pub(crate) fn value_of<'a>(
    metric: Metric,
    records: impl Iterator<Item = &'a SampleRecord>,
) -> Option<(f64, usize)> {
    let mut n = 0;
    match metric {
        Metric::ExactMatch => {
            let right: usize =
                records.filter_map(|r| r.exact_match).inspect(|_| n += 1).map(usize::from).sum();
            (n > 0).then(|| (right as f64 / n as f64, n))
        }
        Metric::JsonFields => {
            let fields = records
                .filter_map(|r| r.json_fields)
                .inspect(|_| n += 1)
                .fold(JsonFields::default(), JsonFields::plus);
            (n > 0).then(|| (fields.f1(), n))
        }
        Metric::Perplexity => {
            let (mut sum, mut tokens) = (0.0, 0);
            for (record, loss) in records.filter_map(|r| Some((r, r.loss_sum?))) {
                n += 1;
                sum += loss;
                tokens += record.loss_tokens;
            }
            perplexity(sum, tokens).map(|value| (value, n))
        }
    }
}

fn aggregate(metric: Metric, records: &[SampleRecord], seed: u64) -> Option<(f64, usize, Option<Interval>)> {
    let (value, n) = value_of(metric, records.iter())?;
    let interval = match metric {
        Metric::ExactMatch => Some(wilson(records.iter().filter(|r| r.exact_match == Some(true)).count(), n)),
        Metric::JsonFields | Metric::Perplexity => bootstrap(records.len(), seed, |drawn| {
            value_of(metric, drawn.iter().map(|&i| &records[i])).map_or(f64::NAN, |(value, _)| value)
        }),
    };
    Some((value, n, interval))
}

fn signature(metric: Metric, section: &EvalSection) -> String {
    let normalize = section.normalize.name();
    let most = section.max_new_tokens;
    match metric {
        Metric::ExactMatch => format!("exact_match|normalize:{normalize}|greedy|max_new_tokens:{most}|v2"),
        Metric::JsonFields => {
            format!("json_fields|micro_f1|normalize:{normalize}|greedy|max_new_tokens:{most}|v2")
        }
        Metric::Perplexity => "perplexity|supervised_tokens|v1".into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with a verdict on its answer and the loss of two tokens.
    pub(crate) fn record(i: usize, right: bool, loss_sum: f64) -> SampleRecord {
        SampleRecord {
            id: format!("test.jsonl:{}", i + 1),
            output: Some(format!("output {i}")),
            finish_reason: Some(FinishReason::Stop),
            completion_tokens: 3,
            exact_match: Some(right),
            json_fields: Some(JsonFields { expected: 2, given: 2, equal: if right { 2 } else { 1 } }),
            loss_sum: Some(loss_sum),
            loss_tokens: 2,
        }
    }

    #[test]
    fn aggregates_are_those_counted_by_hand() {
        let section = EvalSection {
            metrics: vec![Metric::ExactMatch, Metric::Perplexity, Metric::JsonFields],
            ..EvalSection::default()
        };
        let records =
            vec![record(0, true, 1.0), record(1, false, 2.0), record(2, true, 3.0), record(3, false, 4.0)];
        let result = EvalResult::new("base", records, &section);
        let value = |metric| result.measured(metric).unwrap().value;
        assert_eq!(value(Metric::ExactMatch), 0.5);
        // 10 nats over 8 tokens; 6 of 8 + 8 fields equal.
        assert!((value(Metric::Perplexity) - (10f64 / 8.0).exp()).abs() < 1e-12);
        assert!((value(Metric::JsonFields) - 2.0 * 6.0 / 16.0).abs() < 1e-12);
        assert!(result.measured.iter().all(|m| m.n == 4 && m.interval.unwrap().contains(m.value)));
        assert!(!result.measured(Metric::Perplexity).unwrap().higher_is_better);
    }

    #[test]
    fn what_was_not_measured_is_left_out_and_not_zero() {
        let mut one = record(0, true, 1.0);
        (one.exact_match, one.json_fields, one.loss_sum) = (None, None, None);
        let section =
            EvalSection { metrics: vec![Metric::ExactMatch, Metric::Perplexity], ..EvalSection::default() };
        assert!(EvalResult::new("base", vec![one], &section).measured.is_empty());
    }
}
