//! From a recipe file to a run: read, check, fill in, make paths absolute.

use crate::node::Node;
use crate::schema::Findings;
use crate::sections::Recipe;
use crate::together::{across_sections, fill_in};
use crate::{Origin, RecipeError, paths, schema, source};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Diagnose, Location, Problem, Problems};
use taper_hub::ModelSource;

/// The version of the recipe format that this crate reads.
const SCHEMA: u64 = 1;

/// Codes of problems that a section has with several of its keys together.
const COMBINED: [&str; 4] = ["conflict", "contradiction", "no-effect", "unused-key"];

/// A recipe that can be run.
#[derive(Debug, Clone)]
pub struct ResolvedRun {
    /// The name of the run.
    pub name: String,
    /// The recipe file.
    pub path: PathBuf,
    /// Every section, defaults filled in. Paths are seen from the current folder, absolute where they lead out of it.
    pub recipe: Recipe,
    /// The same with absolute paths.
    pub(crate) absolute: Recipe,
    /// Odd, but no reason not to start.
    pub warnings: Problems,
    root: Node,
}

impl ResolvedRun {
    /// Where the value of a dotted key came from; `None` when it is a default.
    pub fn origin(&self, key: &str) -> Option<Origin> {
        self.origin_at(&key.split('.').collect::<Vec<_>>())
    }

    /// [`Self::origin`] of a key by its segments, which may have dots in them.
    pub(crate) fn origin_at(&self, path: &[&str]) -> Option<Origin> {
        self.root.at_path(path.iter().copied()).map(|node| node.origin.clone())
    }

    /// The place of a dotted key, for a problem that is found later.
    pub fn location(&self, key: &str) -> Location {
        self.root.origin_of(key).location(key)
    }
}

/// Read the recipe at `path`, apply `--set key=value` in order, and check all of it.
///
/// # Errors
/// Everything that is wrong, at once, each with its file and line. What several sections say together is looked at when each
/// is sound by itself.
pub fn resolve(path: &Path, sets: &[String]) -> Result<ResolvedRun, RecipeError> {
    let (mut root, malformed) = source::read(path, sets)?;
    known_version(&root).map_err(RecipeError::Problems)?;
    let mut found = schema::check(&root);
    found.problems.extend(malformed);
    missing(&root, path, &mut found);
    paths::make_absolute(&mut root, &mut found);
    let mut recipe = filled(&root, path, &mut found)?;
    fill_in(&mut recipe, &root);
    ranges(&recipe, &root, &mut found);
    if found.sections.is_empty() {
        found.problems.extend(across_sections(&recipe, &root));
    }
    let warnings = in_order(&found.problems).into_result().map_err(RecipeError::Problems)?;
    let stem =
        || path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let name = recipe.name.get_or_insert_with(stem).clone();
    let absolute = recipe.clone();
    paths::see_from_here(&mut recipe);
    Ok(ResolvedRun { name, path: path.to_owned(), recipe, absolute, warnings, root })
}

/// A recipe of another format has other keys: nothing else is worth telling.
fn known_version(root: &Node) -> Result<(), Problems> {
    let Some(node) = root.child("schema") else { return Ok(()) };
    let Some(given) = node.to_json().as_u64().filter(|given| *given != SCHEMA) else { return Ok(()) };
    let mut problems = Problems::new();
    problems.push(
        Problem::error("schema", format!("recipe format {given} is not known"))
            .at(node.origin.location("schema"))
            .hint(format!("this version reads `schema = {SCHEMA}`")),
    );
    Err(problems)
}

/// What every recipe has to say.
fn missing(root: &Node, path: &Path, found: &mut Findings) {
    for (key, example) in [
        ("schema", "`schema = 1`"),
        ("model.base", "`base = \"HuggingFaceTB/SmolLM2-135M-Instruct\"` under `[model]`"),
        ("data.train", "`train = \"train.jsonl\"` under `[data]`"),
    ] {
        if root.at(key).is_none() {
            let problem = Problem::error("missing-key", format!("the recipe has no `{key}`"))
                .at(Location::file(path))
                .hint(format!("add {example}"));
            found.push(key, problem);
        }
    }
}

/// The recipe; a value with a fault is left at its default, or else the whole section.
fn filled(root: &Node, path: &Path, found: &mut Findings) -> Result<Recipe, RecipeError> {
    if let Ok(recipe) = serde_json::from_value(without(root, &found.keys)) {
        return Ok(recipe);
    }
    serde_json::from_value(without(root, &found.sections)).map_err(|error| {
        // What the schema cannot say; serde tells one fault at a time, without its place.
        found.problems.push(Problem::error("recipe", error.to_string()).at(Location::file(path)));
        RecipeError::Problems(in_order(&found.problems))
    })
}

/// The values without those of `keys`; in a list, the whole list is left out. What every recipe needs is there.
fn without(root: &Node, keys: &BTreeSet<String>) -> Value {
    let mut values = root.to_json();
    for key in keys {
        let mut segments: Vec<&str> = key.split('.').collect();
        while segments.last().is_some_and(|segment| segment.parse::<usize>().is_ok()) {
            segments.pop();
        }
        let Some(last) = segments.pop() else { continue };
        let table =
            values.pointer_mut(&segments.iter().map(|segment| format!("/{segment}")).collect::<String>());
        if let Some(table) = table.and_then(Value::as_object_mut) {
            table.shift_remove(last);
        }
    }
    if let Some(object) = values.as_object_mut() {
        for (needed, least) in [("schema", json!(SCHEMA)), ("model", json!({})), ("data", json!({}))] {
            object.entry(needed).or_insert(least);
        }
    }
    values
}

/// What each section says of its own values; nothing of those that have a fault already.
fn ranges(recipe: &Recipe, root: &Node, found: &mut Findings) {
    let mut sections = vec![
        ("model".to_owned(), recipe.model.check()),
        ("data".to_owned(), recipe.data.check()),
        ("train".to_owned(), recipe.train.check()),
        ("optimizer".to_owned(), recipe.optimizer.check()),
        ("schedule".to_owned(), recipe.schedule.check()),
        ("gate".to_owned(), recipe.gate.check()),
        ("export".to_owned(), recipe.export.check()),
        ("serve".to_owned(), recipe.serve.check()),
        ("smoke".to_owned(), recipe.smoke.check()),
    ];
    if let Some(cost) = &recipe.cost {
        sections.push(("cost".to_owned(), cost.check()));
    }
    if let Some(adapter) = &recipe.adapter {
        sections.push(("adapter".to_owned(), adapter.check()));
    }
    for (i, eval) in recipe.eval.iter().enumerate() {
        sections.push((format!("eval.{i}"), eval.check()));
    }
    for (i, candidate) in recipe.candidate.iter().enumerate() {
        sections.push((format!("candidate.{i}"), candidate.check()));
    }
    let of_types =
        Findings { keys: found.keys.clone(), sections: found.sections.clone(), ..Findings::default() };
    for (section, problems) in sections {
        for problem in problems.iter() {
            let key = placed_key(problem, &section);
            // Where one key has a fault, what is said of two of them may hold of its default alone.
            let may_be_of_default = COMBINED.contains(&problem.code)
                && of_types.sections.contains(section.split('.').next().unwrap_or(&section));
            if !of_types.has(&key) && !may_be_of_default {
                found.push(&key, problem.clone().at(root.origin_of(&key).location(&key)));
            }
        }
    }
    if !found.sections.contains("model")
        && let Err(error) = ModelSource::of_section(&recipe.model, Path::new(""))
    {
        let problem = Problem::error("model", error.to_string());
        let problem = Problem { hint: error.hint(), ..problem };
        found.push("model", problem.at(root.origin_of("model.revision").location("model.revision")));
    }
}

/// A section names its own key, with or without the section's name before it.
pub(crate) fn placed_key(problem: &Problem, section: &str) -> String {
    let key = problem.location.as_ref().and_then(|l| l.key.clone()).unwrap_or_default();
    let own = key.strip_prefix(section).and_then(|key| key.strip_prefix('.')).unwrap_or(&key);
    if own.is_empty() { section.to_owned() } else { format!("{section}.{own}") }
}

/// As they stand in the files; what has no line comes first.
fn in_order(problems: &Problems) -> Problems {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| problem.location.as_ref().map(|l| (l.file.clone(), l.line)));
    let mut problems = Problems::new();
    sorted.into_iter().cloned().for_each(|problem| problems.push(problem));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sections_own_key_gets_the_sections_name_once() {
        let named = |key: &str| Problem::error("x", "").at(Location::default().with_key(key));
        assert_eq!(placed_key(&named("r"), "adapter"), "adapter.r");
        assert_eq!(placed_key(&named("adapter.r"), "adapter"), "adapter.r");
        assert_eq!(placed_key(&named("limit"), "eval.1"), "eval.1.limit");
        assert_eq!(placed_key(&Problem::error("x", ""), "gate"), "gate");
    }

    #[test]
    fn problems_stand_in_the_order_of_the_file() {
        let mut problems = Problems::new();
        for line in [9, 2, 5] {
            problems.push(Problem::error("x", line.to_string()).at(Location::line("r.toml", line)));
        }
        problems.push(Problem::error("x", "set").at(Location::default().with_key("--set a.b")));
        let order: Vec<String> = in_order(&problems).iter().map(|p| p.message.clone()).collect();
        assert_eq!(order, ["set", "2", "5", "9"]);
    }
}
