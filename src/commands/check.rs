//! `taper check`: recipe and data problems, all at once, with places.

use crate::cli::RecipeArgs;
use crate::device;
use crate::fault::OrFault;
use crate::output::{print, say};
use crate::tasks::prepare_tasks;
use crate::validator::check_metric;
use crate::workspace::{Base, read_data, tell_reused};
use serde_json::json;
use taper_data::PreparedData;
use taper_diagnostics::{ExitCode, Problem, Problems, Severity};
use taper_recipe::{RecipeError, ResolvedRun};

pub(crate) fn check(args: &RecipeArgs) -> anyhow::Result<ExitCode> {
    device::check(&args.common)?;
    let (data, problems) = match taper_recipe::resolve(&args.recipe, &args.sets) {
        Ok(run) => look(args, &run)?,
        Err(RecipeError::Problems(problems)) => (PreparedData::default(), problems),
        Err(error) => return Err(error).or_fault(),
    };
    if args.common.json {
        print(&report(&data, &problems).to_string())?;
    } else {
        tell(&data, &problems);
    }
    Ok(if problems.has_errors() { ExitCode::UserError } else { ExitCode::Passed })
}

fn look(args: &RecipeArgs, run: &ResolvedRun) -> anyhow::Result<(PreparedData, Problems)> {
    let base = Base::of_recipe(&run.recipe.model, &args.common)?;
    let data = read_data(run, &base);
    let (_, of_tasks) = prepare_tasks(run, &base, &data);
    let mut problems = run.warnings.clone();
    problems.extend(data.problems.clone());
    problems.extend(of_tasks);
    problems.extend(check_metric(run));
    for note in base.tokenizer.notes() {
        problems.push(Problem::warning("tokenizer", note.clone()));
    }
    Ok((data, problems))
}

fn tell(data: &PreparedData, problems: &Problems) {
    for split in data.splits() {
        say(&format!("{:<5}  {}", split.name, split.stats()));
        say(split.report.to_string().trim_end());
    }
    tell_reused(data);
    if !problems.is_empty() {
        say(&problems.to_string());
    }
    let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
    let warnings = problems.len() - errors;
    let not = if errors == 0 { "" } else { "not " };
    say(&format!("{not}ready to run: {}, {}", counted(errors, "error"), counted(warnings, "warning")));
}

fn counted(count: usize, what: &str) -> String {
    match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn report(data: &PreparedData, problems: &Problems) -> serde_json::Value {
    let splits: serde_json::Map<_, _> =
        data.splits().map(|split| (split.name.to_owned(), json!(split.stats()))).collect();
    let list = |problems: &Problems| problems.iter().map(problem_json).collect::<Vec<_>>();
    let skipped: Vec<_> = data.splits().flat_map(|split| list(&split.report.skipped)).collect();
    json!({
        "ready": !problems.has_errors(),
        "problems": list(problems),
        "skipped": skipped,
        "data": splits,
    })
}

fn problem_json(problem: &Problem) -> serde_json::Value {
    let location = problem.location.clone().unwrap_or_default();
    json!({
        "severity": match problem.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "code": problem.code,
        "message": problem.message,
        "file": location.file,
        "line": location.line,
        "column": location.column,
        "key": location.key,
        "hint": problem.hint,
    })
}
