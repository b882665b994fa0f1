//! The evaluations of a recipe, made ready before anything is trained: one that cannot be made must not cost a training first.

use crate::workspace::Base;
use taper_data::{Example, ExampleKeys, PreparedData};
use taper_diagnostics::{Problem, Problems, Severity};
use taper_eval::{EvalSection, EvalTask, Renderer};
use taper_infer::longest_sequence;
use taper_models::ModelConfig;
use taper_recipe::ResolvedRun;

/// Every `[[eval]]` ready for any candidate, and what is wrong with those that are not.
pub(crate) fn prepare_tasks(
    run: &ResolvedRun,
    base: &Base,
    data: &PreparedData,
) -> (Vec<EvalTask>, Problems) {
    let (mut tasks, mut problems) = (Vec::new(), Problems::new());
    for (index, section) in run.recipe.eval.iter().enumerate() {
        // What is wrong with the test data has been told by its own name.
        if section.data.is_empty() && data.problems.has_errors() {
            continue;
        }
        let mut found = Problems::new();
        match task(run, section, base, data, &mut found) {
            Ok(task) => tasks.push(task),
            Err(errors) => found.extend(errors),
        }
        for problem in found.iter() {
            let place = problem.location.clone().unwrap_or_else(|| run.location(&format!("eval.{index}")));
            problems.push(problem.clone().at(place));
        }
    }
    (tasks, problems)
}

/// One evaluation, ready; what a person should know of its data goes to `notes`.
fn task(
    run: &ResolvedRun,
    section: &EvalSection,
    base: &Base,
    data: &PreparedData,
    notes: &mut Problems,
) -> Result<EvalTask, Problems> {
    let encoder = base.encoder(&run.recipe.data);
    let renderer =
        Renderer { tokenizer: &base.tokenizer, template: base.template.as_ref(), encoder: &encoder };
    let own: Vec<Example>;
    let examples = if section.data.is_empty() {
        &data.test.examples
    } else {
        let dataset = taper_data::load(section.data.paths(), &run.recipe.data).map_err(of_data)?;
        notes.extend(dataset.report.notes);
        // Left out as `data.on_error = "skip"` asks, and never silently.
        let skipped = dataset.report.skipped.iter().cloned();
        skipped.for_each(|row| notes.push(Problem { severity: Severity::Warning, ..row }));
        own = dataset.examples;
        refuse_overlap(section, &own, &data.train.keys)?;
        &own
    };
    let task = EvalTask::prepare(section, examples, &renderer).map_err(of_eval)?;
    let config = ModelConfig::read(&base.files.config)
        .map_err(|error| one(Problem::from_error("unusable-config", &error)))?;
    let too_long = task.check_length(longest_sequence(&config));
    if too_long.is_empty() { Ok(task) } else { Err(too_long) }
}

/// A text that was trained on says nothing about texts that were not.
fn refuse_overlap(
    section: &EvalSection,
    held_out: &[Example],
    train: &[ExampleKeys],
) -> Result<(), Problems> {
    let held_out: Vec<ExampleKeys> = held_out.iter().map(ExampleKeys::of).collect();
    match taper_data::overlap(train, &held_out).problem((&section.name, &held_out), ("train", train)) {
        None => Ok(()),
        Some(problem) => Err(one(problem
            .hint("an evaluation on rows that were trained on proves nothing; take them out of one file"))),
    }
}

fn of_data(error: taper_data::Error) -> Problems {
    match error {
        taper_data::Error::Problems(problems) => problems,
        other => one(other.to_problem()),
    }
}

fn of_eval(error: taper_eval::Error) -> Problems {
    match error {
        taper_eval::Error::Problems(problems) => problems,
        other => one(Problem::from_error("cannot-evaluate", &other)),
    }
}

fn one(problem: Problem) -> Problems {
    let mut problems = Problems::new();
    problems.push(problem);
    problems
}
