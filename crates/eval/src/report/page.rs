//! The data that `report.html` shows.

use super::redact::Redactor;
use super::{RESULTS_SCHEMA, Report, RunFacts, SampleLine, TrainingSample, samples};
use crate::cost::CostReport;
use crate::{Evaluation, GateOutcome, Redaction, Result, Verdict};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct PageData<'a> {
    schema: u32,
    redaction: Redaction,
    run: &'a RunFacts,
    verdict: Option<Verdict>,
    exit_code: u8,
    evaluations: Vec<PageEvaluation<'a>>,
    cost: Option<&'a CostReport>,
    gates: &'a [GateOutcome],
    samples: Vec<SampleLine>,
    training_samples: Vec<TrainingSample>,
}

#[derive(Serialize)]
struct PageEvaluation<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    uses: Option<u64>,
}

/// The data at the level of `report.level`; `stored` is the whole of `samples.jsonl`.
pub(super) fn data<'a>(report: &'a Report<'_>, stored: &str) -> PageData<'a> {
    let redactor = Redactor::new(report.section.level, stored);
    let lines = report.evaluations.iter().flat_map(samples::lines);
    let training = report.training_samples.iter().cloned();
    PageData {
        schema: RESULTS_SCHEMA,
        redaction: report.section.level,
        run: report.facts,
        verdict: report.verdict(),
        exit_code: report.exit_code() as u8,
        evaluations: report
            .evaluations
            .iter()
            .enumerate()
            .map(|(index, evaluation)| PageEvaluation {
                evaluation,
                uses: report.uses.get(index).copied().flatten(),
            })
            .collect(),
        cost: report.cost,
        gates: report.gates,
        samples: lines.filter_map(|line| redactor.sample(line)).collect(),
        training_samples: training.filter_map(|sample| redactor.training(sample)).collect(),
    }
}

pub(super) fn render(report: &Report<'_>, stored: &str) -> Result<String> {
    crate::html::render(&data(report, stored))
        .map_err(|source| crate::Error::Json { file: "report.html", source })
}
