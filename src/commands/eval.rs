//! `taper eval`: the evaluation part alone, base against what the run trained, as it lies on the disk.

use super::export::Exports;
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
use taper_eval::{EvalResult, EvalTask, Evaluation, GateOutcome, Report, exit_code, judge};
use taper_hub::{InitChoice, ModelFiles};
use taper_models::CausalLm;
use taper_peft::LoadMode;

/// Evaluations and the gates held against them.
pub(crate) struct Judged {
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) gates: Vec<GateOutcome>,
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
    let report = Report { facts: &facts, evaluations: &judged.evaluations, gates: &judged.gates };
    let files = report.write(&session.folder).or_fault()?;
    contract::add_scores(&session, args.force)?;
    summary::tell(&judged);
    say(&format!("report {}", files.report.display()));
    if args.folder.recipe.common.json {
        print(report.results_json().or_fault()?.trim_end())?;
    }
    Ok(judged.exit_code())
}

/// Evaluate the base and what was trained over every `[[eval]]`; `None` when interrupted.
pub(crate) fn evaluate_session(session: &Session) -> anyhow::Result<Option<Judged>> {
    let recipe = &session.run.recipe;
    let tasks = &session.tasks;
    let mut bases = vec![None; tasks.len()];
    let mut results = Vec::with_capacity(tasks.len());
    if !tasks.is_empty() {
        let mut model = None;
        if recipe.model.init == InitChoice::Pretrained {
            let base = model.insert(session.load_base()?);
            for (task, slot) in tasks.iter().zip(&mut bases) {
                let Some(result) = answer("base", base.as_ref(), session, task)? else { return Ok(None) };
                *slot = Some(result);
            }
        }
        let (name, candidate) = load_trained(session, model)?;
        for task in tasks {
            let Some(result) = answer(name, candidate.as_ref(), session, task)? else { return Ok(None) };
            results.push(result);
        }
    }
    let evaluations = tasks
        .iter()
        .zip(bases)
        .zip(results)
        .map(|((task, base), result)| Evaluation::new(&task.section, &task.items, base, result).or_fault())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let gates = judge(&recipe.gate, &evaluations);
    Ok(Some(Judged { evaluations, gates }))
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

fn answer(
    candidate: &str,
    model: &dyn CausalLm,
    session: &Session,
    task: &EvalTask,
) -> anyhow::Result<Option<EvalResult>> {
    let interrupt = interrupt::flag()?;
    let bar = progress_bar(candidate, task);
    let result = taper_eval::evaluate(candidate, model, &session.base.tokenizer, task, &mut |progress| {
        bar.set_position(progress.done as u64);
        if interrupt.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .or_fault()?;
    bar.finish_and_clear();
    if let Some(result) = &result {
        let values: Vec<String> =
            result.measured.iter().map(|m| format!("{}={:.4}", m.metric, m.value)).collect();
        say(&format!(
            "eval={:?} candidate={candidate} n={} {}",
            task.section.name,
            result.records.len(),
            values.join(" ")
        ));
    }
    Ok(result)
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
