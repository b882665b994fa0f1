//! `taper eval`: the evaluation part alone, base against what the run trained and every other candidate, as they lie on the disk.

use super::export::Exports;
use crate::candidates::{Candidate, Loaded, Stage, base_name, candidates, trained_name};
use crate::cli::EvalArgs;
use crate::contract;
use crate::fault::{OrFault, user_error};
use crate::interrupt;
use crate::output::{interactive, print, say};
use crate::session::Session;
use crate::summary;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use taper_diagnostics::ExitCode;
use taper_eval::gate::{Ask, Requirement};
use taper_eval::{Answers, EvalTask, Evaluation, GateOutcome, ResponseCache, Roles, Work, exit_code, judge};
use taper_hub::ModelFiles;
use taper_models::CausalLm;
use taper_peft::LoadMode;

/// Evaluations and the gates held against them.
pub(crate) struct Judged {
    /// What the candidates answered, by evaluation.
    answers: Vec<Vec<Answers>>,
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) gates: Vec<GateOutcome>,
    /// The candidates of which is asked how much of the gain they keep.
    pub(crate) kept: Vec<String>,
}

impl Judged {
    /// How a run with these ends.
    pub(crate) fn exit_code(&self) -> ExitCode {
        exit_code(&self.gates, &self.evaluations)
    }
}

pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    let session = Session::open(&args.folder)?;
    if session.run.recipe.eval.is_empty() {
        say(
            "error: the recipe has no `[[eval]]`\n  help: add one, for example `[[eval]]` `name = \"held-out\"`",
        );
        return Ok(ExitCode::NothingEvaluated);
    }
    trained_folder(&session)?;
    if !session.trains_all_weights() {
        contract::hold(&session.path("adapter"), &session.base, args.force)?;
    }
    let Some(judged) = evaluate_session(&session)? else { return Ok(tell_interrupted(&session)) };
    let facts = summary::facts(&session, None, &Exports::default())?;
    let training_samples = summary::training_samples(&session)?;
    let report = summary::report(&session, &facts, &judged, &training_samples);
    let files = report.write(&session.folder).or_fault()?;
    contract::add_scores(&session, args.force)?;
    summary::tell(&judged);
    summary::tell_files(&report, &files);
    if args.folder.recipe.common.json {
        print(report.results_json().or_fault()?.trim_end())?;
    }
    Ok(judged.exit_code())
}

/// Evaluate every candidate over every `[[eval]]`; `None` when interrupted.
pub(crate) fn evaluate_session(session: &Session) -> anyhow::Result<Option<Judged>> {
    let stages = [Stage::Trained, Stage::Exported];
    let Some(answers) = answer_all(session, &stages)? else { return Ok(None) };
    judged(session, answers, &stages).map(Some)
}

/// Evaluate the candidates that there are before anything is exported; `None` when interrupted.
pub(crate) fn evaluate_trained(session: &Session) -> anyhow::Result<Option<Judged>> {
    let Some(answers) = answer_all(session, &[Stage::Trained])? else { return Ok(None) };
    judged(session, answers, &[Stage::Trained]).map(Some)
}

/// Evaluate what was exported too, where a candidate asks for it and there is something; `None` when interrupted.
pub(crate) fn evaluate_exported(
    session: &Session,
    mut earlier: Judged,
    exports: &Exports,
) -> anyhow::Result<Option<Judged>> {
    let asks = session.run.recipe.candidate.iter().any(|section| Stage::of(section) == Stage::Exported);
    if !asks || session.tasks.is_empty() {
        return Ok(Some(earlier));
    }
    if !exports.done.is_empty() && exports.failure.is_none() {
        let Some(answers) = answer_all(session, &[Stage::Exported])? else { return Ok(None) };
        for (all, more) in earlier.answers.iter_mut().zip(answers) {
            all.extend(more);
        }
    }
    judged(session, earlier.answers, &[Stage::Trained, Stage::Exported]).map(Some)
}

/// What the candidates of some stages answer, by evaluation.
fn answer_all(session: &Session, stages: &[Stage]) -> anyhow::Result<Option<Vec<Vec<Answers>>>> {
    let mut answers: Vec<Vec<Answers>> = session.tasks.iter().map(|_| Vec::new()).collect();
    if session.tasks.is_empty() {
        return Ok(Some(answers));
    }
    let cache = session.run.recipe.data.cache.then(ResponseCache::from_env).flatten();
    let mut loaded = Loaded::default();
    for candidate in candidates(session, stages)? {
        let identity = candidate.identity(session)?;
        for (index, all) in answers.iter_mut().enumerate() {
            let own = candidate.own_task(session, index)?;
            let task = own.as_ref().unwrap_or(&session.tasks[index].task);
            let asked = Asked { session, task, identity: &identity, cache: cache.as_ref() };
            let Some(found) = answer(&candidate, &asked, &mut loaded)? else { return Ok(None) };
            all.push(found);
        }
        loaded.next();
    }
    Ok(Some(answers))
}

/// Score and compare the answers, and hold the gates that are for these stages.
fn judged(session: &Session, answers: Vec<Vec<Answers>>, stages: &[Stage]) -> anyhow::Result<Judged> {
    let evaluations = session.tasks.iter().zip(&answers).map(|(held_out, answers)| {
        let roles = Roles {
            reference: base_name(session).map(str::to_owned),
            trained: trained_name(session).to_owned(),
        };
        let task = &held_out.task;
        Evaluation::new(&task.scorer, task.facts(), answers.clone(), roles).or_fault()
    });
    let evaluations = evaluations.collect::<anyhow::Result<Vec<_>>>()?;
    let (gates, kept) = hold_gates(session, &evaluations, stages);
    Ok(Judged { answers, evaluations, gates, kept })
}

/// Gates that ask for a candidate of a later stage wait for it.
fn hold_gates(
    session: &Session,
    evaluations: &[Evaluation],
    stages: &[Stage],
) -> (Vec<GateOutcome>, Vec<String>) {
    let recipe = &session.run.recipe;
    let is_later = |name: &str| {
        let section = recipe.candidate.iter().find(|section| section.name == name);
        section.is_some_and(|section| !stages.contains(&Stage::of(section)))
    };
    let kept = recipe.candidate.iter().filter(|section| section.export.is_some() || section.server);
    let kept: Vec<String> = kept.map(|section| section.name.clone()).filter(|name| !is_later(name)).collect();
    let requirements: Vec<Requirement> = requirements(session)
        .into_iter()
        .filter(|requirement| {
            let names = [requirement.subject.candidate.as_deref(), requirement.other()];
            let waits = matches!(requirement.ask, Ask::GainKept { .. }) && kept.is_empty();
            !waits && !names.into_iter().flatten().any(is_later)
        })
        .collect();
    (judge(&requirements, evaluations, &kept), kept)
}

/// What the recipe's gates ask; they have been read when the recipe was checked.
fn requirements(session: &Session) -> Vec<Requirement> {
    let recipe = &session.run.recipe;
    recipe.gate.requirements(&recipe.eval, &recipe.candidate).unwrap_or_default()
}

/// Where what the run trained lies.
pub(crate) fn trained_folder(session: &Session) -> anyhow::Result<PathBuf> {
    let train = session.command("train", "");
    folder_of_trained(&session.folder, session.trains_all_weights(), &train)
}

/// The same of a run in `folder`; `train` is the command that makes it.
pub(crate) fn folder_of_trained(folder: &Path, is_full: bool, train: &str) -> anyhow::Result<PathBuf> {
    let folder = folder.join(if is_full { "merged" } else { "adapter" });
    if !folder.is_dir() {
        return Err(user_error(
            format!("`{}` does not exist: nothing has been trained yet", folder.display()),
            format!("train first: {train}"),
        ));
    }
    Ok(folder)
}

/// What the run trained, read back from the disk: the adapter on `base`, or the whole checkpoint.
pub(crate) fn load_trained(
    session: &Session,
    base: Option<Box<dyn CausalLm>>,
) -> anyhow::Result<(&'static str, Box<dyn CausalLm>)> {
    let folder = trained_folder(session)?;
    if session.trains_all_weights() {
        let files = ModelFiles::of_folder(&folder).or_fault()?;
        let options = (&session.run.recipe.model).into();
        return Ok(("trained", taper_models::load(&files, options).or_fault()?));
    }
    let mut model = match base {
        Some(model) => model,
        None => session.load_base()?,
    };
    taper_peft::load(&folder, model.as_mut(), LoadMode::Inference).or_fault()?;
    Ok(("adapter", model))
}

/// A task and what is known of the one who answers it.
struct Asked<'a> {
    session: &'a Session,
    task: &'a EvalTask,
    identity: &'a str,
    cache: Option<&'a ResponseCache>,
}

fn answer(
    candidate: &Candidate<'_>,
    asked: &Asked<'_>,
    loaded: &mut Loaded,
) -> anyhow::Result<Option<Answers>> {
    let Asked { session, task, identity, cache } = *asked;
    let (name, about) = (candidate.name.as_str(), candidate.about.as_str());
    let times = requirements(session).iter().any(Requirement::needs_latency);
    let work = Work::new(task, identity, cache, times);
    let answers = if work.is_done() {
        work.finish(name, about)
    } else {
        let model = candidate.model(session, loaded)?;
        let interrupt = interrupt::flag()?;
        let bar = progress_bar(name, task);
        let answers = work.answer((name, about), model, candidate.tokenizer(session), &mut |progress| {
            bar.set_position(progress.done as u64);
            if interrupt.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        answers.or_fault()?
    };
    if let Some(answers) = &answers {
        let cached = match answers.cached {
            0 => String::new(),
            cached => format!(" cached={cached}"),
        };
        say(&format!("eval={:?} candidate={name} n={}{cached}", task.section.name, answers.responses.len()));
    }
    Ok(answers)
}

fn progress_bar(candidate: &str, task: &EvalTask) -> ProgressBar {
    if !interactive() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(task.items.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(format!("{candidate} on {}", task.section.name));
    bar
}

/// Say that what was trained is kept, and how to evaluate it.
pub(crate) fn tell_interrupted(session: &Session) -> ExitCode {
    say(&format!(
        "interrupted; what was trained is in {}. To evaluate it:\n  {}",
        session.folder.display(),
        session.command("eval", "")
    ));
    ExitCode::Interrupted
}
