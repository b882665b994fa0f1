//! What a run leaves for people and for scripts.

mod ci;
mod junit;
mod markdown;
mod page;
mod redact;
mod results;
mod samples;
pub mod words;

pub use ci::{command as workflow_command, github_annotations, open_metrics, step_summary};
pub use results::{StoredResults, lm_eval_results, results_schema};
pub use samples::{SampleLine, StoredResponse, read_samples};

use crate::cost::CostReport;
use crate::gate::exit_code;
use crate::{Error, Evaluation, GateOutcome, GateSection, ReportSection, Result, Verdict};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use taper_diagnostics::{ExitCode, write_bytes_atomically};

/// The version of `eval/results.json`.
pub const RESULTS_SCHEMA: u32 = 2;

/// What the one who ran it knows of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Steps that left a checkpoint.
    pub checkpoints: Vec<u64>,
    /// The step whose weights were kept.
    pub best_step: Option<u64>,
    /// Files of the run and what is in them, relative to the run's folder.
    pub files: Vec<(String, String)>,
    /// Commands that use the result.
    pub usage: Vec<String>,
    /// What a reader should know: rows that were skipped, proofs of exports.
    pub notes: Vec<String>,
    /// Hashes of what went in and versions: name and value.
    pub lineage: Vec<(String, String)>,
}

/// A point of the training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// What its gates ask.
    pub gate: &'a GateSection,
    /// The candidates of which is asked how much of the gain they keep.
    pub kept: &'a [String],
    /// How much is said of single items.
    pub section: ReportSection,
    /// How many different candidates were evaluated on the data of each evaluation so far on this machine, where that is known. The more often
    /// one chooses by a test set, the less it says. It is not in the results, which are the same wherever they are made.
    pub uses: &'a [Option<u64>],
    /// What the candidates cost.
    pub cost: Option<&'a CostReport>,
    /// Some of the training examples, as the model saw them.
    pub training_samples: &'a [TrainingSample],
}

/// A training example, token by token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingSample {
    /// `file:line`.
    pub id: String,
    /// Its tokens.
    pub tokens: Vec<TrainingToken>,
}

/// A token of a training example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingToken {
    /// As it is written.
    pub text: String,
    /// Whether it was learned.
    pub supervised: bool,
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
    /// `report.html`.
    pub page: PathBuf,
    /// `junit.xml`.
    pub junit: PathBuf,
    /// `eval/metrics.txt`.
    pub metrics: PathBuf,
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

    /// The report for people, as Markdown, fit for a pull request.
    pub fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// The results for scripts; samples are not in it.
    ///
    /// # Errors
    /// When a number cannot be put into JSON.
    pub fn results_json(&self) -> Result<String> {
        results::render(self)
    }

    /// The samples, a JSON object a line: what was asked, what was expected, what each candidate said and scored.
    ///
    /// # Errors
    /// When a sample cannot be put into JSON.
    pub fn samples_jsonl(&self) -> Result<String> {
        samples::render(self.evaluations)
    }

    /// The report as a page, at the level of `report.level`.
    ///
    /// # Errors
    /// When something cannot be put into JSON.
    pub fn html(&self) -> Result<String> {
        page::render(self, &self.samples_jsonl()?)
    }

    /// The gates as JUnit's XML.
    ///
    /// # Errors
    /// When the XML cannot be written.
    pub fn junit(&self) -> Result<String> {
        junit::render(self)
    }

    /// Write everything into the run's folder, each file whole or not at all.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, folder: &Path) -> Result<ReportFiles> {
        let eval = folder.join("eval");
        let files = ReportFiles {
            results: eval.join("results.json"),
            samples: eval.join("samples.jsonl"),
            report: folder.join("report.md"),
            page: folder.join("report.html"),
            junit: folder.join("junit.xml"),
            metrics: eval.join("metrics.txt"),
        };
        for (path, text) in [
            (&files.samples, self.samples_jsonl()?),
            (&files.results, self.results_json()?),
            (&files.report, self.markdown()),
            (&files.page, self.html()?),
            (&files.junit, self.junit()?),
            (&files.metrics, open_metrics(self)),
        ] {
            write_bytes_atomically(path, text.as_bytes()).map_err(Error::Write)?;
        }
        Ok(files)
    }
}
