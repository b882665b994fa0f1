//! What a run leaves for people and for scripts.

use crate::gate::exit_code;
use crate::markdown::render;
use crate::{Error, Evaluation, GateOutcome, Result, SampleRecord, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taper_diagnostics::{ExitCode, write_atomically, write_bytes_atomically};

/// What the one who ran it knows of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RunFacts {
    /// The run's name.
    pub title: String,
    /// What it is for.
    pub description: Option<String>,
    /// Base, method, seed and so on: name and value.
    pub setup: Vec<(String, String)>,
    /// Files, rows, tokens and so on: name and value.
    pub data: Vec<(String, String)>,
    /// The training, from first to last.
    pub curve: Vec<CurvePoint>,
    /// Files of the run and what is in them, relative to the run's folder.
    pub files: Vec<(String, String)>,
    /// Commands that use the result.
    pub usage: Vec<String>,
    /// What a reader should know: rows that were skipped, proofs of exports.
    pub notes: Vec<String>,
}

/// A point of the training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Optimiser steps made.
    pub step: u64,
    /// Training loss a token, nats.
    pub loss: Option<f64>,
    /// Validation loss a token, nats.
    pub valid_loss: Option<f64>,
}

/// A run's report.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// The run.
    pub facts: &'a RunFacts,
    /// Its evaluations.
    pub evaluations: &'a [Evaluation],
    /// Its gates.
    pub gates: &'a [GateOutcome],
}

/// Where a report lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFiles {
    /// `eval/results.json`.
    pub results: PathBuf,
    /// `eval/samples.jsonl`.
    pub samples: PathBuf,
    /// `report.md`.
    pub report: PathBuf,
}

#[derive(Serialize)]
struct Results<'a> {
    schema: u32,
    run: &'a str,
    verdict: Option<Verdict>,
    exit_code: u8,
    evaluations: &'a [Evaluation],
    gates: &'a [GateOutcome],
}

#[derive(Serialize)]
struct SampleLine<'a> {
    eval: &'a str,
    id: &'a str,
    input: &'a str,
    prompt: &'a str,
    expected: Option<&'a str>,
    candidates: BTreeMap<&'a str, &'a SampleRecord>,
}

impl Report<'_> {
    /// How the run ends.
    pub fn exit_code(&self) -> ExitCode {
        exit_code(self.gates, self.evaluations)
    }

    /// The verdict of the first evaluation that has one.
    pub fn verdict(&self) -> Option<Verdict> {
        self.evaluations.iter().find_map(|evaluation| evaluation.verdict)
    }

    /// The report for people, as Markdown.
    pub fn markdown(&self) -> String {
        render(self)
    }

    /// The results for scripts: `schema`, `run`, `verdict`, `exit_code`, `evaluations`, `gates`. Samples are not in it.
    ///
    /// # Errors
    /// When a number cannot be put into JSON.
    pub fn results_json(&self) -> Result<String> {
        let results = Results {
            schema: 1,
            run: &self.facts.title,
            verdict: self.verdict(),
            exit_code: self.exit_code() as u8,
            evaluations: self.evaluations,
            gates: self.gates,
        };
        let mut text = serde_json::to_string_pretty(&results)
            .map_err(|source| Error::Json { file: "results.json", source })?;
        text.push('\n');
        Ok(text)
    }

    /// The samples, a JSON object a line: what was asked, what was expected, what each candidate said and scored.
    ///
    /// # Errors
    /// When a sample cannot be put into JSON.
    pub fn samples_jsonl(&self) -> Result<String> {
        let mut text = String::new();
        for evaluation in self.evaluations {
            for (index, item) in evaluation.items().iter().enumerate() {
                let results = evaluation.base.iter().chain([&evaluation.candidate]);
                let line = SampleLine {
                    eval: &evaluation.name,
                    id: &item.id,
                    input: &item.input,
                    prompt: &item.prompt,
                    expected: item.expected.as_deref(),
                    candidates: results
                        .filter_map(|r| Some((r.candidate.as_str(), r.records.get(index)?)))
                        .collect(),
                };
                let json = serde_json::to_string(&line)
                    .map_err(|source| Error::Json { file: "samples.jsonl", source })?;
                text.push_str(&json);
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// Write `eval/results.json`, `eval/samples.jsonl` and `report.md` into the run's folder, each whole or not at all.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, folder: &Path) -> Result<ReportFiles> {
        let files = ReportFiles {
            results: folder.join("eval").join("results.json"),
            samples: folder.join("eval").join("samples.jsonl"),
            report: folder.join("report.md"),
        };
        let samples = self.samples_jsonl()?;
        write_atomically(&files.samples, |writer| writer.write_all(samples.as_bytes()))
            .map_err(Error::Write)?;
        write_bytes_atomically(&files.results, self.results_json()?.as_bytes()).map_err(Error::Write)?;
        write_bytes_atomically(&files.report, self.markdown().as_bytes()).map_err(Error::Write)?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::record;
    use crate::{EvalItem, EvalResult, EvalSection, judge};
    use taper_data::RowPlace;

    fn item(i: usize) -> EvalItem {
        EvalItem {
            id: format!("test.jsonl:{}", i + 1),
            place: RowPlace { file: Path::new("/data/test.jsonl").into(), line: i + 1, element: None },
            input: format!("question {i} with `ticks` and | bars"),
            prompt: format!("<user>question {i}"),
            prompt_ids: vec![1, 2],
            expected: Some(format!("answer ```{i}```")),
            input_ids: vec![1, 2, 3],
            loss_mask: vec![false, false, true],
        }
    }

    fn evaluation(base: bool) -> Evaluation {
        let of = |name: &str, right: usize, loss: f64| {
            let records = (0..30).map(|i| record(i, (i + right) % 30 < right, loss)).collect();
            EvalResult::new(name, records, &EvalSection::default())
        };
        let items: Vec<EvalItem> = (0..30).map(item).collect();
        let base = base.then(|| of("base", 3, 4.0));
        Evaluation::new(&EvalSection::default(), &items, base, of("adapter", 24, 1.0)).unwrap()
    }

    fn facts() -> RunFacts {
        RunFacts {
            title: "tickets".into(),
            setup: vec![("base".into(), "models/tiny".into())],
            data: vec![("train".into(), "400 examples".into())],
            curve: (0..40)
                .map(|i| CurvePoint {
                    step: 10 * (i + 1),
                    loss: Some(3.0 / (i + 1) as f64),
                    valid_loss: (i % 10 == 9).then_some(1.0),
                })
                .collect(),
            files: vec![("adapter/".into(), "the adapter".into())],
            usage: vec!["taper chat --model models/tiny --adapter adapter".into()],
            ..RunFacts::default()
        }
    }

    #[test]
    fn a_manager_reads_the_verdict_first_and_the_numbers_behind_it() {
        let evaluations = [evaluation(true)];
        let gates = judge(
            &toml::from_str("min_exact_match = 0.9\nmin_exact_match_gain = 0.2").unwrap(),
            &evaluations,
        );
        let facts = facts();
        let report = Report { facts: &facts, evaluations: &evaluations, gates: &gates };
        let text = report.markdown();
        assert!(text.starts_with("# tickets\n\n**Better"), "{text}");
        for part in [
            "80.0 %",
            "10.0 %",
            "+70.0 points",
            "McNemar",
            "n = 30",
            "min_exact_match_gain",
            "failed",
            "## Won",
            "````text",
            "taper chat --model",
            "400 examples",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(report.exit_code(), ExitCode::GateFailed);
    }

    #[test]
    fn a_report_is_written_whole_and_read_by_scripts() {
        let folder = tempfile::tempdir().unwrap();
        let evaluations = [evaluation(true)];
        let facts = facts();
        let report = Report { facts: &facts, evaluations: &evaluations, gates: &[] };
        let files = report.write(folder.path()).unwrap();
        let results: serde_json::Value =
            serde_json::from_str(&fs_err::read_to_string(&files.results).unwrap()).unwrap();
        assert_eq!(results["schema"], 1);
        assert_eq!(results["verdict"], "better");
        assert_eq!(results["exit_code"], 0);
        assert_eq!(results["evaluations"][0]["base"]["measured"][0]["metric"], "exact_match");
        assert_eq!(results["evaluations"][0]["comparisons"][0]["won"], 21);
        let samples = fs_err::read_to_string(&files.samples).unwrap();
        assert_eq!(samples.lines().count(), 30);
        let line: serde_json::Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
        assert_eq!(line["id"], "test.jsonl:1");
        assert!(line["candidates"]["adapter"]["exact_match"].is_boolean());
        assert!(!results.to_string().contains("/data/"), "no path of this machine in results");
        assert_eq!(report.results_json().unwrap(), fs_err::read_to_string(&files.results).unwrap());
    }

    #[test]
    fn without_a_base_there_is_no_verdict_and_the_report_says_what_was_measured() {
        let evaluations = [evaluation(false)];
        let facts = facts();
        let report = Report { facts: &facts, evaluations: &evaluations, gates: &[] };
        assert_eq!(report.verdict(), None);
        let text = report.markdown();
        assert!(text.contains("exact match is 80.0 %"), "{text}");
        assert!(!text.contains("## Won"));
        let nothing = Report { evaluations: &[], ..report };
        assert!(nothing.markdown().contains("Nothing was evaluated"));
    }
}
