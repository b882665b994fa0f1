//! `taper check`: recipe and data problems, all at once, with places.

use crate::cli::RecipeArgs;
use crate::output::{print, say};
use crate::workspace::{Base, resolve};
use serde_json::json;
use std::path::Path;
use taper_data::PreparedData;
use taper_diagnostics::{ExitCode, Problem, Problems, Severity};

pub(crate) fn check(args: &RecipeArgs) -> anyhow::Result<ExitCode> {
    let run = resolve(args)?;
    let base = Base::open(&run.recipe.model, &args.common)?;
    let section = &run.recipe.data;
    let data = taper_data::prepare(section, Path::new(""), run.recipe.train.seed, &base.encoder(section));
    let mut problems = run.warnings.clone();
    problems.extend(data.problems.clone());
    for note in base.tokenizer.notes() {
        problems.push(Problem::warning("tokenizer", note.clone()));
    }
    if args.common.json {
        print(&report(&data, &problems).to_string())?;
    } else {
        tell(&data, &problems);
    }
    Ok(if problems.has_errors() { ExitCode::UserError } else { ExitCode::Passed })
}

fn tell(data: &PreparedData, problems: &Problems) {
    for split in data.splits() {
        say(&format!("{:<5}  {}", split.name, split.stats()));
        say(split.report.to_string().trim_end());
    }
    if !problems.is_empty() {
        say(&problems.to_string());
    }
    let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
    let warnings = problems.len() - errors;
    say(&match errors {
        0 => format!("ready to run: no errors, {warnings} warnings"),
        _ => format!("not ready to run: {errors} errors, {warnings} warnings"),
    });
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
