//! `eval/results.json`: everything that was measured, for scripts.

use super::{RESULTS_SCHEMA, Report};
use crate::cost::CostReport;
use crate::{Error, Evaluation, GateOutcome, GateSection, Pooling, Result, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

#[derive(Serialize)]
struct Results<'a> {
    schema: u32,
    run: &'a str,
    verdict: Option<Verdict>,
    exit_code: u8,
    evaluations: &'a [Evaluation],
    gate: &'a GateSection,
    kept: &'a [String],
    gates: &'a [GateOutcome],
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'a CostReport>,
    lm_eval: Value,
}

/// Results as they are read back; what can be computed from them again is not in it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct StoredResults {
    /// The version of the file.
    pub schema: u32,
    /// The run's name.
    pub run: String,
    /// The verdict.
    pub verdict: Option<Verdict>,
    /// How the run ended, exports aside.
    pub exit_code: u8,
    /// The evaluations.
    pub evaluations: Vec<Evaluation>,
    /// What the candidates cost, where that was asked.
    #[serde(default)]
    pub cost: Option<CostReport>,
    /// What the gates asked.
    pub gate: GateSection,
    /// The candidates of which was asked how much of the gain they keep.
    pub kept: Vec<String>,
    /// How they ended.
    pub gates: Vec<GateOutcome>,
}

/// The JSON Schema of `eval/results.json`. Keys that are not in it may come at any time; those that are stay as they are within a version of
/// `schema`.
pub fn results_schema() -> Value {
    let mut schema = schemars::schema_for!(StoredResults).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), json!("taper results"));
    }
    schema
}

/// `schema`, `run`, `verdict`, `exit_code`, `evaluations`, `gates`, and `lm_eval`, a block as lm-evaluation-harness writes it.
pub(super) fn render(report: &Report<'_>) -> Result<String> {
    let results = Results {
        schema: RESULTS_SCHEMA,
        run: &report.facts.title,
        verdict: report.verdict(),
        exit_code: report.exit_code() as u8,
        evaluations: report.evaluations,
        gate: report.gate,
        kept: report.kept,
        gates: report.gates,
        cost: report.cost,
        lm_eval: lm_eval_results(report.evaluations),
    };
    let mut text = serde_json::to_string_pretty(&results)
        .map_err(|source| Error::Json { file: "results.json", source })?;
    text.push('\n');
    Ok(text)
}

/// The trained candidate's results in the shape of lm-evaluation-harness's results file: `results[task]["metric,none"]` with the
/// standard error beside it, `n-samples`, `higher_is_better` and `n-shot`. Each candidate is a task of its own, `task@candidate`, but for
/// the trained one, which has the task's name. Corpus metrics have no standard error in closed form: `"N/A"`.
pub fn lm_eval_results(evaluations: &[Evaluation]) -> Value {
    let (mut results, mut samples, mut higher, mut shots) = (Map::new(), Map::new(), Map::new(), Map::new());
    for evaluation in evaluations {
        for result in &evaluation.candidates {
            let task = match result.candidate == evaluation.trained {
                true => evaluation.name.clone(),
                false => format!("{}@{}", evaluation.name, result.candidate),
            };
            let mut values = Map::from_iter([("alias".to_owned(), json!(task))]);
            for measured in &result.measured {
                let name = measured.metric.name();
                values.insert(format!("{name},none"), json!(measured.value));
                let error = standard_error(evaluation, &result.candidate, measured);
                values
                    .insert(format!("{name}_stderr,none"), error.map_or(json!("N/A"), |error| json!(error)));
            }
            let answered = result.records.len() - result.errors;
            samples.insert(task.clone(), json!({ "original": evaluation.n, "effective": answered }));
            let better = evaluation
                .metrics
                .iter()
                .map(|facts| (facts.metric.name().to_owned(), json!(facts.higher_is_better)));
            higher.insert(task.clone(), Value::Object(better.collect()));
            shots.insert(task.clone(), json!(evaluation.scoring.section.few_shot));
            results.insert(task, Value::Object(values));
        }
    }
    json!({ "results": results, "n-samples": samples, "higher_is_better": higher, "n-shot": shots })
}

/// The standard deviation (n - 1) over the root of n, as lm-evaluation-harness has it for means.
fn standard_error(evaluation: &Evaluation, candidate: &str, measured: &crate::Measured) -> Option<f64> {
    if measured.metric.pooling() == Pooling::Corpus {
        return None;
    }
    let records = &evaluation.candidate(candidate)?.records;
    let values = records.iter().filter_map(|record| record.score.tallies.get(&measured.metric));
    let squares: f64 = values.map(|tally| (tally.value(measured.metric) - measured.value).powi(2)).sum();
    let n = measured.n as f64;
    (measured.n > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt())
}
