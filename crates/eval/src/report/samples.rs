//! `eval/samples.jsonl`: every item with what each candidate did with it. Scores can be computed from it again.

use crate::{Error, Evaluation, ItemFacts, Metric, Response, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SampleLine {
    /// The evaluation.
    pub eval: String,
    /// The item.
    #[serde(flatten)]
    pub item: ItemFacts,
    /// The candidates, in the order in which they were evaluated.
    pub candidates: BTreeMap<String, StoredResponse>,
}

/// What a candidate did with it and what that scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredResponse {
    /// What it did.
    #[serde(flatten)]
    pub response: Response,
    /// What was taken for the answer, where it is not the whole output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The label that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How each field of a JSON answer came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<String, String>>,
    /// The item's own value by each metric.
    pub scores: BTreeMap<Metric, f64>,
}

pub(super) fn render(evaluations: &[Evaluation]) -> Result<String> {
    let mut text = String::new();
    for evaluation in evaluations {
        for line in lines(evaluation) {
            let json = serde_json::to_string(&line)
                .map_err(|source| Error::Json { file: "samples.jsonl", source })?;
            text.push_str(&json);
            text.push('\n');
        }
    }
    Ok(text)
}

/// The samples of an evaluation.
pub(crate) fn lines(evaluation: &Evaluation) -> impl Iterator<Item = SampleLine> + '_ {
    evaluation.items().iter().enumerate().map(|(index, item)| {
        let of =
            |result: &crate::EvalResult| Some((result.candidate.clone(), stored(result.records.get(index)?)));
        SampleLine {
            eval: evaluation.name.clone(),
            item: item.clone(),
            candidates: evaluation.candidates.iter().filter_map(of).collect(),
        }
    })
}

fn stored(record: &crate::Record) -> StoredResponse {
    let fields = record.score.document.as_ref().map(|document| {
        let of = |(path, counts): (&String, &crate::metrics::extraction::FieldCounts)| {
            // One that stands in a list can come out in several ways; the worst is told.
            let word = if counts.wrong > 0 {
                "wrong"
            } else if counts.missing > 0 {
                "missing"
            } else if counts.invented > 0 {
                "invented"
            } else {
                "equal"
            };
            (path.clone(), word.to_owned())
        };
        document.fields.iter().map(of).collect()
    });
    StoredResponse {
        response: record.response.clone(),
        answer: record.score.answer.clone(),
        label: record.score.label.clone(),
        fields,
        scores: record.score.tallies.iter().map(|(metric, tally)| (*metric, tally.value(*metric))).collect(),
    }
}

/// Read the samples of a run.
///
/// # Errors
/// The first line that is no sample, with its number.
pub fn read_samples(text: &str) -> Result<Vec<SampleLine>> {
    let read = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|source| Error::Sample { line: index + 1, source })
    };
    text.lines().enumerate().map(read).collect()
}
