//! What a run leaves for people and scripts: `report.md`, `eval/`, `run.json`, the adapter's card, and the last lines on the screen.

use crate::card;
use crate::ci;
use crate::commands::eval::Judged;
use crate::commands::export::Exports;
use crate::contract;
use crate::fault::OrFault;
use crate::lineage::Lock;
use crate::output::{print, say};
use crate::session::{Session, shell_word};
use anyhow::Context;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use taper_diagnostics::{ExitCode, write_bytes_atomically};
use taper_eval::report::{TrainingSample, TrainingToken, github_annotations};
use taper_eval::{Comparison, CurvePoint, GateStatus, Report, ReportFiles, RunFacts};
use taper_hub::{Fingerprint, HashCache};
use taper_train::{Metrics, Outcome};

/// Training examples that the report shows, and the most tokens of each.
const TRAINING_SAMPLES: usize = 5;
const TRAINING_TOKENS: usize = 1024;

/// Write everything, tell a person the result, and end with the run's exit code.
pub(crate) fn write(
    session: &Session,
    outcome: &Outcome,
    judged: &Judged,
    exports: &Exports,
    took: Duration,
) -> anyhow::Result<ExitCode> {
    let facts = facts(session, Some(outcome), exports)?;
    let training_samples = training_samples(session)?;
    let report = report(session, &facts, judged, &training_samples);
    let files = write_report(session, &report)?;
    if session.run.recipe.adapter.is_some() {
        contract::add_scores(session, false)?;
    }
    card::write(session, &exports.done)?;
    let code = exports.exit_code(judged.exit_code());
    let record = run_json(session, code, exports, took)?;
    write_bytes_atomically(&session.path("run.json"), format!("{record:#}\n").as_bytes())?;
    tell(judged);
    tell_files(&report, &files);
    for line in &facts.usage {
        say(&format!("  {line}"));
    }
    say(&format!("done in {:.0} s: {} (exit code {})", took.as_secs_f64(), ending(code), code as u8));
    if session.args.recipe.common.json {
        print(report.results_json().or_fault()?.trim_end())?;
    }
    Ok(code)
}

fn ending(code: ExitCode) -> &'static str {
    match code {
        ExitCode::Passed => "passed",
        ExitCode::NothingEvaluated => "nothing was evaluated",
        ExitCode::Inconclusive => "inconclusive, not enough data to say",
        ExitCode::GateFailed => "a gate failed",
        ExitCode::Interrupted => "interrupted",
        ExitCode::Fault | ExitCode::UserError => "failed",
    }
}

/// A run's report.
pub(crate) fn report<'a>(
    session: &'a Session,
    facts: &'a RunFacts,
    judged: &'a Judged,
    training_samples: &'a [TrainingSample],
) -> Report<'a> {
    let recipe = &session.run.recipe;
    Report {
        facts,
        evaluations: &judged.evaluations,
        gates: &judged.gates,
        gate: &recipe.gate,
        kept: &judged.kept,
        section: recipe.report,
        uses: &judged.uses,
        cost: judged.cost.as_ref(),
        training_samples,
    }
}

/// The first training examples, token by token, as the model saw them.
pub(crate) fn training_samples(session: &Session) -> anyhow::Result<Vec<TrainingSample>> {
    let tokenizer = &session.base.tokenizer;
    let examples = session.data.train.tokenized.iter().take(TRAINING_SAMPLES);
    let samples = examples.map(|example| {
        let pairs = example.input_ids.iter().zip(&example.loss_mask).take(TRAINING_TOKENS);
        let tokens = pairs.map(|(id, supervised)| {
            let text = tokenizer.decode(&[*id], false).or_fault()?;
            Ok(TrainingToken { text, supervised: *supervised })
        });
        let place = &example.source;
        let file = place.file.file_name().unwrap_or_default().to_string_lossy();
        Ok(TrainingSample {
            id: format!("{file}:{}", place.line),
            tokens: tokens.collect::<anyhow::Result<_>>()?,
        })
    });
    samples.collect()
}

/// Write the reports, and what they stand on.
pub(crate) fn write_report(session: &Session, report: &Report<'_>) -> anyhow::Result<ReportFiles> {
    let files = report.write(&session.folder).or_fault()?;
    Lock::of(session, &[&files.results, &files.samples])?.write(&session.folder)?;
    Ok(files)
}

/// Say where the reports are, and tell GitHub's runner, where there is one, what its pages show.
pub(crate) fn tell_files(report: &Report<'_>, files: &ReportFiles) {
    say(&format!("report {} and {}", files.page.display(), files.report.display()));
    ci::annotate(&github_annotations(report));
    ci::add_to_step_summary(&report.markdown());
}

/// What can be said, the figures and the gates, a line each.
pub(crate) fn tell(judged: &Judged) {
    for evaluation in &judged.evaluations {
        let decisive = evaluation.metrics().next();
        let is_told = |c: &&Comparison| {
            let is_verdict =
                Some(&c.reference) == evaluation.reference.as_ref() && c.candidate == evaluation.trained;
            is_verdict || Some(c.metric) == decisive
        };
        for comparison in evaluation.comparisons.iter().filter(is_told) {
            say(&format!(
                "{}: {} {} {:.4} -> {} {:.4} (n={}, p={:.2e}): {}",
                evaluation.name,
                comparison.metric,
                comparison.reference,
                comparison.base,
                comparison.candidate,
                comparison.value,
                comparison.n,
                comparison.adjusted_p_value,
                comparison.verdict
            ));
        }
        say(&format!("{}: {}", evaluation.name, evaluation.headline));
    }
    for gate in &judged.gates {
        let status = match gate.status {
            GateStatus::Failed => "FAILED".to_owned(),
            other => other.to_string(),
        };
        let eval = gate.eval.as_deref().unwrap_or("-");
        say(&format!("gate {eval}: {}: {}: {status}", gate.text, gate.detail));
    }
}

/// What the report tells of the run itself.
pub(crate) fn facts(
    session: &Session,
    outcome: Option<&Outcome>,
    exports: &Exports,
) -> anyhow::Result<RunFacts> {
    let recipe = &session.run.recipe;
    let mut notes: Vec<String> =
        exports.done.iter().map(|e| format!("export {} read back: {}", e.format, e.proof)).collect();
    for split in session.data.splits().filter(|split| !split.report.skipped.is_empty()) {
        notes.push(format!("{} rows of `{}` were skipped as faulty", split.report.skipped.len(), split.name));
    }
    if let Some(Outcome::Finished { stopped_early: true, steps, .. }) = outcome {
        notes.push(format!("training stopped early, after {steps} steps"));
    }
    Ok(RunFacts {
        title: session.run.name.clone(),
        description: recipe.description.clone(),
        setup: setup(session, outcome),
        data: data(session),
        curve: curve(&session.path("metrics.jsonl"))?,
        checkpoints: Vec::new(),
        best_step: match outcome {
            Some(Outcome::Finished { weights_of_step, .. }) => Some(*weights_of_step),
            _ => None,
        },
        files: files(session, exports),
        usage: usage(session),
        notes,
        lineage: Lock::of(session, &[])?.told(),
    })
}

fn setup(session: &Session, outcome: Option<&Outcome>) -> Vec<(String, String)> {
    let recipe = &session.run.recipe;
    let mut setup = vec![
        ("recipe", session.run.path.display().to_string()),
        ("base", session.base.source.to_string()),
        ("method", card::method(session)),
        ("learning rate", recipe.optimizer.learning_rate.to_string()),
        ("seed", recipe.train.seed.to_string()),
    ];
    if let Some(Outcome::Finished { steps, weights_of_step, .. }) = outcome {
        setup.push(("steps", format!("{steps}, weights of step {weights_of_step}")));
    }
    setup.push(("taper", env!("CARGO_PKG_VERSION").to_owned()));
    setup.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn data(session: &Session) -> Vec<(String, String)> {
    session.data.splits().map(|split| (split.name.to_owned(), split.stats().to_string())).collect()
}

fn files(session: &Session, exports: &Exports) -> Vec<(String, String)> {
    let mut files = vec![("resolved.toml", "every value of the recipe and where it came from")];
    if session.run.recipe.adapter.is_some() {
        files.push(("adapter/", "the adapter in PEFT's format, its contract (taper.json) and its card"));
    }
    if session.trains_all_weights() || exports.done.iter().any(|e| e.folder.ends_with("merged")) {
        files.push(("merged/", "the whole model in the Hub's layout"));
    }
    files.extend([
        ("eval/results.json", "the figures of this report, for scripts"),
        ("eval/samples.jsonl", "every held-out example with all answers and scores, for `taper verify`"),
        ("eval/lock.json", "hashes of what the results stand on, for `taper verify`"),
        ("report.html", "this report with every example, to look into"),
        ("junit.xml", "the gates, for CI"),
        ("metrics.jsonl", "the training, a line each"),
        ("checkpoints/", "what `--resume` goes on from"),
    ]);
    files.into_iter().map(|(name, what)| (name.to_owned(), what.to_owned())).collect()
}

fn usage(session: &Session) -> Vec<String> {
    let folder = |name: &str| shell_word(&session.path(name).to_string_lossy());
    let model = if session.trains_all_weights() {
        format!("--model {}", folder("merged"))
    } else {
        format!("--model {} --adapter {}", shell_word(&session.base.source.to_string()), folder("adapter"))
    };
    vec![format!("taper generate {model} --prompt '...'"), format!("taper chat {model}")]
}

/// The training as `metrics.jsonl` has it; nothing when nothing was trained here.
fn curve(path: &Path) -> anyhow::Result<Vec<CurvePoint>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = fs_err::read_to_string(path)?;
    let mut points: Vec<CurvePoint> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let metrics: Metrics = serde_json::from_str(line)
            .with_context(|| format!("{}:{} is no line of metrics", path.display(), index + 1))?;
        let point = CurvePoint { step: metrics.step, loss: metrics.loss, valid_loss: metrics.eval_loss };
        // A step is logged and validated on two lines.
        match points.last_mut().filter(|last| last.step == point.step) {
            Some(last) => {
                last.loss = last.loss.or(point.loss);
                last.valid_loss = last.valid_loss.or(point.valid_loss);
            }
            None => points.push(point),
        }
    }
    Ok(points)
}

/// Hashes of what went in and what came out, versions, hardware.
fn run_json(
    session: &Session,
    code: ExitCode,
    exports: &Exports,
    took: Duration,
) -> anyhow::Result<serde_json::Value> {
    let recipe = &session.run.recipe;
    let data: Vec<_> = [&recipe.data.train, &recipe.data.valid, &recipe.data.test]
        .into_iter()
        .chain(recipe.eval.iter().map(|eval| &eval.data))
        .flat_map(|list| list.paths())
        .map(|path| Ok(json!({ "file": path, "sha256": Fingerprint::of_file(path).or_fault()?.as_str() })))
        .collect::<anyhow::Result<_>>()?;
    let adapter = session.path("adapter").join(taper_peft::WEIGHTS_FILE);
    let adapter = adapter.is_file().then(|| Fingerprint::of_file(&adapter).or_fault()).transpose()?;
    Ok(json!({
        "schema": 1,
        "name": session.run.name,
        "exit_code": code as u8,
        "seconds": (took.as_secs_f64() * 10.0).round() / 10.0,
        "taper": env!("CARGO_PKG_VERSION"),
        "recipe": { "file": session.run.path, "sha256": Fingerprint::of_file(&session.run.path).or_fault()?.as_str() },
        "base": { "name": session.base.source.to_string(), "sha256": session.base.files.fingerprint_with(HashCache::from_env().as_ref()).or_fault()?.as_str() },
        "data": data,
        "exports": exports.to_json(),
        "adapter_sha256": adapter.as_ref().map(Fingerprint::as_str),
        "hardware": { "device": "cpu", "threads": std::thread::available_parallelism().map_or(1, usize::from) },
    }))
}
