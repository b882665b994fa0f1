//! `taper smoke`: the smoke tier of a recipe, in minutes on a CPU: does it still work, and does it still do the same?

mod checks;
mod tier;

use super::eval::{Judged, evaluate_trained};
use super::export::Exports;
use super::train::{remove_earlier_run, sink, train_watched};
use crate::cli::{RunArgs, SmokeArgs};
use crate::fault::{OrFault, exit_code, user_error};
use crate::interrupt;
use crate::output::say;
use crate::session::Session;
use crate::summary;
use checks::{Check, Checks, RECORD};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use taper_diagnostics::ExitCode;
use taper_hub::Fingerprint;
use taper_recipe::SmokeSection;
use taper_train::{Event, Outcome, ProgressSink};
use tier::Tier;

const DATA: &str = "recipe and data";
const TRAINING: &str = "training";
const RESUME: &str = "resume equality";
const GOLDEN: &str = "golden loss";
const EVALUATION: &str = "evaluation";
/// Where in the folder the training is that is interrupted.
const RESUMED: &str = "resumed";
/// Files that differ and are told by name.
const MOST_NAMED: usize = 5;

pub(crate) fn smoke(args: &SmokeArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let tier = Tier::of(args)?;
    let session = Session::open(&tier.args)?;
    claim(&tier.folder)?;
    let mut checks = Checks::begin(&session.run.name, &tier.folder, started)?;
    let mut stage = DATA;
    let held = hold(session, &tier, &mut checks, &mut stage);
    let code = match &held {
        Ok(true) => checks.exit_code(),
        Ok(false) => {
            say("interrupted: a smoke run is short and begins anew each time");
            return Ok(ExitCode::Interrupted);
        }
        Err(error) => {
            checks.push(Check::failed(stage, first_line(error)));
            exit_code(error)
        }
    };
    checks.finish(code, args.recipe.common.json)?;
    held.map(|_| code)
}

/// Take the folder for a smoke run: a new one, or one that a smoke run made, without what that left. Nobody's results are removed.
fn claim(folder: &Path) -> anyhow::Result<()> {
    if !folder.join(RECORD).is_file() {
        let is_used = folder.exists() && (!folder.is_dir() || fs_err::read_dir(folder)?.next().is_some());
        if is_used {
            return Err(user_error(
                format!("`{}` is not the folder of a smoke run: it has no {RECORD}", folder.display()),
                "name a new folder with `--out`; what a smoke run left in its own is removed by the next one",
            ));
        }
        return Ok(());
    }
    remove_earlier_run(folder)?;
    let resumed = folder.join(RESUMED);
    if resumed.is_dir() {
        fs_err::remove_dir_all(resumed)?;
    }
    Ok(())
}

/// Every check in its turn; false when a person interrupted it.
fn hold(
    session: Session,
    tier: &Tier,
    checks: &mut Checks,
    stage: &mut &'static str,
) -> anyhow::Result<bool> {
    checks.push(Check::passed(DATA, format!("train {}", session.data.train.stats())));
    *stage = TRAINING;
    let Some(trained) = Training::whole(&session)? else { return Ok(false) };
    checks.figure("steps", trained.steps);
    checks.figure("loss", trained.last_loss);
    checks.push(Check::passed(TRAINING, trained.to_string()));
    *stage = RESUME;
    let Some((session, check)) = resume_equality(session, &trained)? else { return Ok(false) };
    checks.push(check);
    *stage = GOLDEN;
    golden_loss(&tier.section, &trained, checks);
    *stage = EVALUATION;
    let Some(judged) = evaluate_trained(&session)? else { return Ok(false) };
    write_report(&session, &trained, &judged)?;
    checks.push(evaluation(&judged));
    Ok(true)
}

/// A training that came to its end.
struct Training {
    outcome: Outcome,
    steps: u64,
    checkpoint: PathBuf,
    first_loss: f64,
    last_loss: f64,
}

impl std::fmt::Display for Training {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (steps, first, last) = (self.steps, significant(self.first_loss), significant(self.last_loss));
        write!(f, "{steps} steps, loss {first} at the first, {last} at the last")
    }
}

impl Training {
    /// Train without a stop.
    fn whole(session: &Session) -> anyhow::Result<Option<Self>> {
        let mut watch = Watch::new(None);
        let outcome = train_watched(session, &run_args(session, false), &mut watch)?;
        let Outcome::Finished { steps, checkpoint, .. } = &outcome else { return Ok(None) };
        let (steps, checkpoint) = (*steps, checkpoint.clone());
        let (Some(first_loss), Some(last_loss)) = (watch.first_loss, watch.last_loss) else {
            anyhow::bail!("a training of {steps} steps told of none");
        };
        Ok(Some(Self { outcome, steps, checkpoint, first_loss, last_loss }))
    }
}

fn run_args(session: &Session, resume: bool) -> RunArgs {
    RunArgs { folder: session.args.clone(), resume, overwrite: false }
}

/// Train again with an interruption in the middle, go on from the disk, and hold every byte against the training without one.
/// `None` when a person interrupted it.
fn resume_equality(session: Session, whole: &Training) -> anyhow::Result<Option<(Session, Check)>> {
    let half = whole.steps / 2;
    if half == 0 {
        let check = Check::not_compared(RESUME, format!("the training ended at step {}", whole.steps));
        return Ok(Some((session, check)));
    }
    let folder = session.folder.clone();
    let session = Session { folder: folder.join(RESUMED), ..session };
    let flag = interrupt::flag()?;
    let outcome =
        train_watched(&session, &run_args(&session, false), &mut Watch::new(Some((half, flag.clone()))))?;
    match outcome {
        Outcome::Interrupted { steps, .. } if steps == half => flag.store(false, Ordering::SeqCst),
        Outcome::Interrupted { .. } => return Ok(None),
        Outcome::Finished { .. } => {
            anyhow::bail!("the training did not heed the interruption after step {half}")
        }
    }
    say(&format!("interrupted after step {half}, as asked; going on from the disk"));
    let outcome = train_watched(&session, &run_args(&session, true), &mut Watch::new(None))?;
    let Outcome::Finished { checkpoint, .. } = outcome else { return Ok(None) };
    let trained = if session.trains_all_weights() { "merged" } else { "adapter" };
    let pairs =
        [(folder.join(trained), session.folder.join(trained)), (whole.checkpoint.clone(), checkpoint)];
    let mut differing = Vec::new();
    for (one, other) in &pairs {
        differing.extend(differing_files(one, other)?);
    }
    let what = format!("{trained} and last checkpoint");
    let check = match differing.as_slice() {
        [] => {
            Check::passed(RESUME, format!("{what} are the same bytes after an interruption at step {half}"))
        }
        files => {
            let named =
                files.iter().take(MOST_NAMED).map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "expected the same bytes after an interruption at step {half}; {} files differ: {named}",
                files.len()
            );
            Check::failed(RESUME, detail)
        }
    };
    Ok(Some((Session { folder, ..session }, check)))
}

/// Files of two folders that are not the same bytes, or are in one of them alone, by their names below the folder's.
fn differing_files(one: &Path, other: &Path) -> anyhow::Result<Vec<String>> {
    let (of_one, of_other) = (hashes(one)?, hashes(other)?);
    let folder = one.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: std::collections::BTreeSet<&String> = of_one.keys().chain(of_other.keys()).collect();
    let differing = names.into_iter().filter(|name| of_one.get(*name) != of_other.get(*name));
    Ok(differing.map(|name| format!("{folder}/{name}")).collect())
}

fn hashes(folder: &Path) -> anyhow::Result<BTreeMap<String, Fingerprint>> {
    let mut hashes = BTreeMap::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hashes.insert(name, Fingerprint::of_file(&path).or_fault()?);
        }
    }
    Ok(hashes)
}

/// Hold the last loss to the recipe's; without one, tell what to write there.
fn golden_loss(section: &SmokeSection, trained: &Training, checks: &mut Checks) {
    let (found, step, tolerance) = (trained.last_loss, trained.steps, section.tolerance);
    let Some(golden) = section.golden_loss else {
        let found = significant(found);
        let detail = format!("the recipe has none; the loss at step {step} is {found}");
        checks.push(Check::not_compared(GOLDEN, detail));
        say(&format!(
            "  to hold the next run to it, add to `[smoke]` of the recipe:\n  golden_loss = {found}"
        ));
        return;
    };
    checks.figure("golden_loss", golden);
    checks.figure("tolerance", tolerance);
    let off = (found - golden).abs() / golden;
    let detail = format!(
        "expected {golden} within {tolerance:e} of it, found {} at step {step}, {off:.1e} off",
        significant(found)
    );
    checks.push(if off <= tolerance { Check::passed(GOLDEN, detail) } else { Check::failed(GOLDEN, detail) });
}

/// Whether every evaluation measured something of what was trained.
fn evaluation(judged: &Judged) -> Check {
    if judged.evaluations.is_empty() {
        return Check::not_compared(EVALUATION, "the recipe has no `[[eval]]`");
    }
    let is_measured = |evaluation: &taper_eval::Evaluation| {
        evaluation.trained().is_some_and(|trained| !trained.measured.is_empty())
    };
    let without: Vec<&str> =
        judged.evaluations.iter().filter(|e| !is_measured(e)).map(|e| e.name.as_str()).collect();
    match without.as_slice() {
        [] => {
            let names: Vec<&str> =
                judged.evaluations.iter().map(|evaluation| evaluation.name.as_str()).collect();
            let note = "gates are not held: this proves the path, not the quality";
            Check::passed(EVALUATION, format!("answered and scored: {}; {note}", names.join(", ")))
        }
        names => Check::failed(EVALUATION, format!("nothing was measured: {}", names.join(", "))),
    }
}

fn write_report(session: &Session, trained: &Training, judged: &Judged) -> anyhow::Result<()> {
    if judged.evaluations.is_empty() {
        return Ok(());
    }
    let mut facts = summary::facts(session, Some(&trained.outcome), &Exports::default())?;
    let note = "smoke tier: a few steps and a few items, to prove that the recipe works; its figures say nothing about quality";
    facts.notes.push(note.to_owned());
    let training_samples = summary::training_samples(session)?;
    summary::write_report(session, &summary::report(session, &facts, judged, &training_samples))?;
    Ok(())
}

/// Tells on, keeps the losses, and sets the flag of Ctrl-C after a step.
struct Watch {
    told: Box<dyn ProgressSink>,
    stop: Option<(u64, Arc<AtomicBool>)>,
    first_loss: Option<f64>,
    last_loss: Option<f64>,
}

impl Watch {
    fn new(stop: Option<(u64, Arc<AtomicBool>)>) -> Self {
        Self { told: sink(), stop, first_loss: None, last_loss: None }
    }
}

impl ProgressSink for Watch {
    fn event(&mut self, event: &Event<'_>) {
        self.told.event(event);
        let Event::Stepped(report) = event else { return };
        self.first_loss.get_or_insert(report.loss());
        self.last_loss = Some(report.loss());
        if let Some((_, flag)) = self.stop.as_ref().filter(|(step, _)| *step == report.step) {
            flag.store(true, Ordering::SeqCst);
        }
    }
}

/// Seven digits that count: more than another processor gives back.
fn significant(value: f64) -> String {
    let places = if value > 0.0 { (6.0 - value.log10().floor()).clamp(0.0, 17.0) as usize } else { 6 };
    format!("{value:.places$}")
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_digits_are_kept_of_any_loss() {
        assert_eq!(significant(2.345_678_912), "2.345679");
        assert_eq!(significant(12.345_678_9), "12.34568");
        assert_eq!(significant(0.001_234_567_89), "0.001234568");
    }

    #[test]
    fn a_byte_or_a_file_that_differs_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        let (one, other) = (folder.path().join("a/adapter"), folder.path().join("b/adapter"));
        for side in ["a", "b"] {
            write(&format!("{side}/adapter/weights"), "1234");
            write(&format!("{side}/adapter/config"), "{}");
        }
        assert!(differing_files(&one, &other).unwrap().is_empty());
        write("b/adapter/weights", "1235");
        write("a/adapter/more", "");
        assert_eq!(differing_files(&one, &other).unwrap(), ["adapter/more", "adapter/weights"]);
    }

    #[test]
    fn a_folder_with_somebodys_results_is_not_claimed() {
        let folder = tempfile::tempdir().unwrap();
        claim(&folder.path().join("new")).unwrap();
        claim(folder.path()).unwrap();
        let results = folder.path().join("report.md");
        fs_err::write(&results, "mine").unwrap();
        assert!(claim(folder.path()).unwrap_err().to_string().contains("is not the folder of a smoke run"));
        assert!(results.is_file());
        fs_err::write(folder.path().join(RECORD), "{}").unwrap();
        claim(folder.path()).unwrap();
        assert!(!results.exists());
    }
}
