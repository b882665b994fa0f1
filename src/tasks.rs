//! The evaluations of a recipe, made ready before anything is trained: one that cannot be made must not cost a training first.

use crate::fault::OrFault;
use crate::workspace::Base;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use taper_data::{DataSection, Example, ExampleKeys, OverlapChoice, PreparedData, TouchKind};
use taper_diagnostics::{Location, Problem, Problems, Severity};
use taper_eval::{EvalSection, EvalTask, Prompting, Renderer, choose_shots};
use taper_infer::longest_sequence;
use taper_models::ModelConfig;
use taper_recipe::ResolvedRun;

/// One evaluation with its examples, ready for the base and, made ready again, for any other model.
pub(crate) struct HeldOut {
    /// As the base reads it.
    pub(crate) task: EvalTask,
    source: Source,
}

/// What an evaluation is made from.
struct Source {
    section: EvalSection,
    data: DataSection,
    examples: Vec<Example>,
    /// Examples that can be shown before a question.
    pool: Vec<Example>,
    schema: Option<Value>,
    /// Examples that stand among those trained on, by their places.
    touched: BTreeMap<usize, TouchKind>,
}

/// Every `[[eval]]` ready, and what is wrong with those that are not.
pub(crate) fn prepare_tasks(run: &ResolvedRun, base: &Base, data: &PreparedData) -> (Vec<HeldOut>, Problems) {
    let (mut tasks, mut problems) = (Vec::new(), Problems::new());
    for (index, section) in run.recipe.eval.iter().enumerate() {
        // What is wrong with the test data has been told by its own name.
        if section.data.is_empty() && data.problems.has_errors() {
            continue;
        }
        let mut found = Problems::new();
        match HeldOut::prepare(run, section, base, data, &mut found) {
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

impl HeldOut {
    /// What a person should know of its data goes to `notes`.
    fn prepare(
        run: &ResolvedRun,
        section: &EvalSection,
        base: &Base,
        data: &PreparedData,
        notes: &mut Problems,
    ) -> Result<Self, Problems> {
        let recipe = &run.recipe;
        let examples = if section.data.is_empty() {
            data.test.examples.clone()
        } else {
            load(section.data.paths(), &recipe.data, &section.fields(), notes)?
        };
        let touched = touched_by(section, &examples, &recipe.data, &data.train.keys, notes)?;
        let most_shots = recipe.candidate.iter().filter_map(|candidate| candidate.few_shot).max();
        let most_shots = most_shots.unwrap_or(0).max(section.few_shot);
        let pool = match most_shots {
            0 => Vec::new(),
            _ if section.few_shot_data.is_empty() => {
                load(recipe.data.train.paths(), &recipe.data, &[], notes)?
            }
            _ => load(section.few_shot_data.paths(), &recipe.data, &[], notes)?,
        };
        let found = choose_shots(&pool, &examples, most_shots, section.seed).len();
        if found < most_shots {
            let message =
                format!("{most_shots} examples are to be shown before a question, and there are {found}");
            return Err(one(Problem::error("too-few-examples", message)
                .hint("examples whose input is asked cannot be shown; name more in `few_shot_data`, or lower `few_shot`")));
        }
        let schema = section.schema.as_deref().map(read_schema).transpose()?;
        let (section, data) = (section.clone(), recipe.data.clone());
        let source = Source { section, data, examples, pool, schema, touched };
        let task = source.task_for(base, source.section.few_shot)?;
        Ok(Self { task, source })
    }

    /// The JSON Schema of the answers, where there is one.
    pub(crate) fn schema(&self) -> Option<&Value> {
        self.source.schema.as_ref()
    }

    /// The evaluation for a model that reads text in its own way, or with another number of examples shown.
    pub(crate) fn task_for(&self, base: &Base, few_shot: usize) -> anyhow::Result<EvalTask> {
        self.source.task_for(base, few_shot).map_err(taper_data::Error::Problems).or_fault()
    }
}

impl Source {
    fn task_for(&self, base: &Base, few_shot: usize) -> Result<EvalTask, Problems> {
        let encoder = base.encoder(&self.data);
        let renderer =
            Renderer { tokenizer: &base.tokenizer, template: base.template.as_ref(), encoder: &encoder };
        let shots = choose_shots(&self.pool, &self.examples, few_shot, self.section.seed);
        let prompting = Prompting { shots, schema: self.schema.as_ref() };
        let task = EvalTask::prepare(&self.section, &self.examples, &prompting, &renderer, &self.touched)
            .map_err(of_eval)?;
        let config = ModelConfig::read(&base.files.config)
            .map_err(|error| one(Problem::from_error("unusable-config", &error)))?;
        let too_long = task.check_length(longest_sequence(&config));
        if too_long.is_empty() { Ok(task) } else { Err(too_long) }
    }
}

/// The longest schema that is read.
const MOST_SCHEMA_BYTES: u64 = 4 << 20;

fn read_schema(path: &Path) -> Result<Value, Problems> {
    let fault = |message: String| {
        let hint = "`schema` names a file with a JSON Schema of the answers, relative to the recipe";
        one(Problem::error("schema", message).at(Location::file(path)).hint(hint))
    };
    let length = fs_err::metadata(path).map_err(|error| fault(error.to_string()))?.len();
    if length > MOST_SCHEMA_BYTES {
        return Err(fault(format!("the schema has {length} bytes, the limit is {MOST_SCHEMA_BYTES}")));
    }
    let text = fs_err::read(path).map_err(|error| fault(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| fault(format!("the schema is not JSON: {error}")))
}

fn load(
    paths: &[std::path::PathBuf],
    section: &DataSection,
    fields: &[String],
    notes: &mut Problems,
) -> Result<Vec<Example>, Problems> {
    let dataset = taper_data::load_with_fields(paths, section, fields).map_err(of_data)?;
    notes.extend(dataset.report.notes);
    // Left out as `data.on_error = "skip"` asks, and never silently.
    let skipped = dataset.report.skipped.iter().cloned();
    skipped.for_each(|row| notes.push(Problem { severity: Severity::Warning, ..row }));
    Ok(dataset.examples)
}

/// How the examples stand among those trained on. A text that was trained on says nothing about texts that were not: it is refused,
/// unless the recipe asks to have it reported.
fn touched_by(
    section: &EvalSection,
    held_out: &[Example],
    recipe: &DataSection,
    train: &[ExampleKeys],
    notes: &mut Problems,
) -> Result<BTreeMap<usize, TouchKind>, Problems> {
    let held_out: Vec<ExampleKeys> = held_out.iter().map(ExampleKeys::of).collect();
    let (this, other) = ((section.name.as_str(), held_out.as_slice()), ("train", train));
    // What `data.test` has in common with the training data has been told by its own name.
    if !section.data.is_empty()
        && let Some(problem) = taper_data::overlap(train, &held_out).problem(this, other)
    {
        let problem = problem
            .hint("an evaluation on rows that were trained on proves nothing; take them out of one file");
        match recipe.overlap {
            OverlapChoice::Error => return Err(one(problem)),
            OverlapChoice::Report => notes.push(Problem { severity: Severity::Warning, ..problem }),
        }
    }
    let touched = taper_data::touched(train, &held_out);
    notes.extend(one_or_none(taper_data::near_duplicates(&touched, this, other)));
    Ok(touched.iter().map(|found| (found.held_out_index, found.kind)).collect())
}

fn one_or_none(problem: Option<Problem>) -> Problems {
    problem.map(one).unwrap_or_default()
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
