//! `taper eval`: the evaluation part alone, base against what the run trained and every other candidate, as they lie on the disk.

use super::export::Exports;
use crate::candidates::{Candidate, Loaded, Stage, base_name, candidates, trained_name};
use crate::cli::EvalArgs;
use crate::contract;
use crate::costs::cost_report;
use crate::fault::{OrFault, user_error};
use crate::interrupt;
use crate::output::{interactive, print, say};
use crate::session::Session;
use crate::summary;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use taper_data::TestUses;
use taper_diagnostics::ExitCode;
use taper_eval::cost::CostReport;
use taper_eval::gate::{Ask, Requirement};
use taper_eval::remote::{Endpoint, Judge};
use taper_eval::{
    Answers, BASE, EvalTask, Evaluation, GateOutcome, Response, ResponseCache, Roles, Work, exit_code, judge,
};
use taper_hub::ModelFiles;
use taper_models::CausalLm;
use taper_peft::LoadMode;
use taper_text::ContentHash;

/// How long a thread that waits rests when there is nothing to compute.
const IDLE: std::time::Duration = std::time::Duration::from_micros(200);

/// Evaluations and the gates held against them.
pub(crate) struct Judged {
    /// What the candidates answered, by evaluation.
    answers: Vec<Vec<Answers>>,
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) gates: Vec<GateOutcome>,
    /// The candidates of which is asked how much of the gain they keep.
    pub(crate) kept: Vec<String>,
    /// How many candidates were evaluated on the data of each evaluation so far.
    pub(crate) uses: Vec<Option<u64>>,
    pub(crate) cost: Option<CostReport>,
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
    let files = summary::write_report(&session, &report)?;
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
    judged(session, answers, &stages)
}

/// Evaluate the candidates that there are before anything is exported; `None` when interrupted.
pub(crate) fn evaluate_trained(session: &Session) -> anyhow::Result<Option<Judged>> {
    let Some(answers) = answer_all(session, &[Stage::Trained])? else { return Ok(None) };
    judged(session, answers, &[Stage::Trained])
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
    judged(session, earlier.answers, &[Stage::Trained, Stage::Exported])
}

/// What the candidates of some stages answer, by evaluation.
fn answer_all(session: &Session, stages: &[Stage]) -> anyhow::Result<Option<Vec<Vec<Answers>>>> {
    let mut answers: Vec<Vec<Answers>> = session.tasks.iter().map(|_| Vec::new()).collect();
    if session.tasks.is_empty() {
        return Ok(Some(answers));
    }
    let cache = response_cache(session);
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

fn response_cache(session: &Session) -> Option<ResponseCache> {
    session.run.recipe.data.cache.then(ResponseCache::from_env).flatten()
}

/// Let judges see the answers, score and compare them, and hold the gates that are for these stages. `None` when interrupted.
fn judged(
    session: &Session,
    mut answers: Vec<Vec<Answers>>,
    stages: &[Stage],
) -> anyhow::Result<Option<Judged>> {
    if !judge_answers(session, &mut answers, response_cache(session).as_ref())? {
        return Ok(None);
    }
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
    let cost = cost_report(session, &evaluations)?;
    let uses = session
        .tasks
        .iter()
        .map(|held_out| count_use(session, &held_out.task))
        .collect::<anyhow::Result<_>>()?;
    Ok(Some(Judged { answers, evaluations, gates, kept, uses, cost }))
}

/// Note that what was trained was evaluated on this data: how many different ones were so far on this machine.
fn count_use(session: &Session, task: &EvalTask) -> anyhow::Result<Option<u64>> {
    let Some(uses) = TestUses::from_env() else { return Ok(None) };
    let all = candidates(session, &[Stage::Trained])?;
    let Some(trained) = all.iter().find(|candidate| candidate.is_trained()) else { return Ok(None) };
    let mut data = ContentHash::new("evaluation data");
    for item in &task.items {
        data.add(item.facts.input.as_bytes());
        data.add(item.facts.expected.as_deref().unwrap_or_default().as_bytes());
    }
    let data: String = data.finish().iter().map(|byte| format!("{byte:02x}")).collect();
    let (found, problem) = uses.record(&data, &trained.identity(session)?);
    if let Some(problem) = problem {
        say(&problem.to_string());
    }
    Ok(Some(found.distinct))
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
    let task = asked.task;
    let name = candidate.name.as_str();
    let concurrency = task.section.batch_size;
    let answers = match candidate.endpoint(asked.session, loaded, concurrency)? {
        Some(endpoint) if task.section.generates() => ask(candidate, asked, &endpoint)?,
        // Losses and choices are scored on tokens, which an endpoint does not show.
        Some(_) => Some(unanswered(candidate, task)),
        None => compute(candidate, asked, loaded)?,
    };
    if let Some(answers) = &answers {
        let cached = match answers.cached {
            0 => String::new(),
            cached => format!(" cached={cached}"),
        };
        let errors = answers.responses.iter().filter(|response| response.error.is_some()).count();
        let errors = if errors > 0 { format!(" errors={errors}") } else { String::new() };
        say(&format!(
            "eval={:?} candidate={name} n={}{cached}{errors}",
            task.section.name,
            answers.responses.len()
        ));
    }
    Ok(answers)
}

/// By a model in this process.
fn compute(
    candidate: &Candidate<'_>,
    asked: &Asked<'_>,
    loaded: &mut Loaded,
) -> anyhow::Result<Option<Answers>> {
    let Asked { session, task, identity, cache } = *asked;
    let (name, about) = (candidate.name.as_str(), candidate.about.as_str());
    let times =
        session.run.recipe.cost.is_some() || requirements(session).iter().any(Requirement::needs_latency);
    let work = Work::new(task, identity, cache, times);
    if work.is_done() {
        return Ok(work.finish(name, about));
    }
    let model = candidate.model(session, loaded)?;
    let interrupt = interrupt::flag()?;
    let bar = progress_bar(name, task);
    let answers = work.answer((name, about), model, candidate.tokenizer(session), &mut |progress| {
        bar.set_position(progress.done as u64);
        if interrupt.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    answers.or_fault()
}

/// By a model behind an address.
fn ask(candidate: &Candidate<'_>, asked: &Asked<'_>, endpoint: &Endpoint) -> anyhow::Result<Option<Answers>> {
    let Asked { task, identity, cache, .. } = *asked;
    let names = (candidate.name.as_str(), candidate.about.as_str());
    let interrupt = interrupt::flag()?;
    let bar = progress_bar(names.0, task);
    let is_interrupted = || interrupt.load(Ordering::SeqCst);
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut progress = |progress: taper_eval::Progress| bar.set_position(progress.done as u64);
            taper_eval::ask_endpoint(task, (endpoint, identity), names, cache, &is_interrupted, &mut progress)
        });
        // This thread is one of the pool's that our own server computes with: it does its share while it waits.
        while !asking.is_finished() {
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::sleep(IDLE);
            }
        }
        asking.join()
    });
    bar.finish_and_clear();
    answers.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).or_fault()
}

fn unanswered(candidate: &Candidate<'_>, task: &EvalTask) -> Answers {
    let responses = vec![Response::default(); task.items.len()];
    Answers { candidate: candidate.name.clone(), about: candidate.about.clone(), responses, cached: 0 }
}

/// Let the judge of each evaluation that has one compare every candidate's answers with the base's. `false` when interrupted.
fn judge_answers(
    session: &Session,
    answers: &mut [Vec<Answers>],
    cache: Option<&ResponseCache>,
) -> anyhow::Result<bool> {
    let interrupt = interrupt::flag()?;
    for (held_out, all) in session.tasks.iter().zip(answers) {
        let Some(section) = &held_out.task.section.judge else { continue };
        let Some(base) = all.iter().find(|answers| answers.candidate == BASE).cloned() else { continue };
        let judge = Judge::open(section).or_fault()?;
        let facts = held_out.task.facts();
        for candidate in all.iter_mut().filter(|answers| answers.candidate != BASE) {
            let is_interrupted = || interrupt.load(Ordering::SeqCst);
            let whole = taper_eval::judge_answers(&judge, &facts, &base, candidate, cache, &is_interrupted);
            if !whole.or_fault()? {
                return Ok(false);
            }
            let judged = candidate.responses.iter().filter(|response| response.judged.is_some()).count();
            say(&format!(
                "eval={:?} candidate={} judged={judged}",
                held_out.task.section.name, candidate.candidate
            ));
        }
    }
    Ok(true)
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
