//! From a recipe file to a run: read, check, fill in, make paths absolute to their recipe.

use crate::node::{Node, NodeKind};
use crate::sections::Recipe;
use crate::{Origin, RecipeError, schema, source};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Location, Problem, Problems};
use taper_train::TrainMethod;

/// Keys whose values are paths relative to the recipe that says them.
const PATH_KEYS: [&str; 5] = ["data.train", "data.valid", "data.test", "model.base", "model.chat_template"];

/// A recipe that can be run.
#[derive(Debug, Clone)]
pub struct ResolvedRun {
    /// The name of the run.
    pub name: String,
    /// The recipe file.
    pub path: PathBuf,
    /// Every section, defaults filled in.
    pub recipe: Recipe,
    /// Odd, but no reason not to start.
    pub warnings: Problems,
    root: Node,
}

impl ResolvedRun {
    /// Where the value of a dotted key came from; `None` when it is a default.
    pub fn origin(&self, key: &str) -> Option<Origin> {
        self.root.at(key).map(|node| node.origin.clone())
    }

    /// The place of a dotted key, for a problem that is found later.
    pub fn location(&self, key: &str) -> Location {
        self.root.origin_of(key).location(key)
    }
}

/// Read the recipe at `path`, apply `--set key=value` in order, and check all of it.
///
/// # Errors
/// Everything that is wrong, at once, each with its file and line.
pub fn resolve(path: &Path, sets: &[String]) -> Result<ResolvedRun, RecipeError> {
    let mut root = source::read(path, sets)?;
    let mut problems = schema::check(&root);
    problems.extend(missing(&root, path));
    problems.into_result().map_err(RecipeError::Problems)?;
    absolute_paths(&mut root, path);
    let recipe: Recipe = serde_path(&root, path)?;
    let name = recipe.name.clone().unwrap_or_else(|| {
        path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned())
    });
    let problems = ranges(&recipe, &root);
    let warnings = problems.into_result().map_err(RecipeError::Problems)?;
    Ok(ResolvedRun { name, path: path.to_owned(), recipe, warnings, root })
}

/// What every recipe has to say.
fn missing(root: &Node, path: &Path) -> Problems {
    let mut problems = Problems::new();
    for (key, example) in [
        ("schema", "schema = 1"),
        ("model.base", "[model]\nbase = \"HuggingFaceTB/SmolLM2-135M-Instruct\""),
        ("data.train", "[data]\ntrain = \"train.jsonl\""),
    ] {
        if root.at(key).is_none() {
            problems.push(
                Problem::error("missing-key", format!("the recipe has no `{key}`"))
                    .at(Location::file(path))
                    .hint(format!("add `{}`", example.replace('\n', "` `"))),
            );
        }
    }
    problems
}

/// What a schema cannot say is left to serde; it tells one fault at a time.
fn serde_path(root: &Node, path: &Path) -> Result<Recipe, RecipeError> {
    serde_json::from_value(root.to_json()).map_err(|error| {
        let mut problems = Problems::new();
        problems.push(Problem::error("recipe", error.to_string()).at(Location::file(path)));
        RecipeError::Problems(problems)
    })
}

fn ranges(recipe: &Recipe, root: &Node) -> Problems {
    let mut sections = vec![
        ("model".to_owned(), recipe.model.check()),
        ("data".to_owned(), recipe.data.check()),
        ("train".to_owned(), recipe.train.check()),
        ("optimizer".to_owned(), recipe.optimizer.check()),
        ("schedule".to_owned(), recipe.schedule.check()),
        ("gate".to_owned(), recipe.gate.check()),
        ("export".to_owned(), recipe.export.check()),
    ];
    if let Some(adapter) = &recipe.adapter {
        sections.push(("adapter".to_owned(), adapter.check()));
    }
    for (i, eval) in recipe.eval.iter().enumerate() {
        sections.push((format!("eval.{i}"), eval.check()));
    }
    let mut problems = across_sections(recipe, root);
    for (section, found) in sections {
        for problem in found.iter() {
            let key = problem.location.as_ref().and_then(|l| l.key.clone()).unwrap_or_default();
            // A section names its own key, with or without the section's name before it.
            let short = key.strip_prefix(&format!("{section}.")).unwrap_or(&key);
            let key = if short.is_empty() { section.clone() } else { format!("{section}.{short}") };
            problems.push(problem.clone().at(root.origin_of(&key).location(&key)));
        }
    }
    problems
}

fn across_sections(recipe: &Recipe, root: &Node) -> Problems {
    let mut problems = Problems::new();
    let at = |key: &str| root.origin_of(key).location(key);
    if recipe.schema != 1 {
        problems.push(
            Problem::error("schema", format!("recipe format {} is not known", recipe.schema))
                .at(at("schema"))
                .hint("this version reads `schema = 1`"),
        );
    }
    match (recipe.train.method, &recipe.adapter) {
        (TrainMethod::Full, Some(_)) => problems.push(
            Problem::error("conflict", "`train.method = \"full\"` trains all weights, yet there is an `[adapter]`")
                .at(at("adapter"))
                .hint("remove `[adapter]`, or set `train.method = \"adapter\"`"),
        ),
        (TrainMethod::Adapter, None) => problems.push(
            Problem::error("missing-key", "the recipe has no `[adapter]`")
                .at(at("train.method"))
                .hint("add `[adapter]` (its defaults are a LoRA on all linear layers), or `train.method = \"full\"`"),
        ),
        _ => {}
    }
    let mut names = Vec::new();
    for (i, eval) in recipe.eval.iter().enumerate() {
        if names.contains(&eval.name) {
            problems.push(
                Problem::error("conflict", format!("two evaluations are named `{}`", eval.name))
                    .at(at(&format!("eval.{i}.name"))),
            );
        }
        names.push(eval.name.clone());
    }
    problems
}

/// Paths are relative to the recipe that says them; on the command line, to where the command runs.
fn absolute_paths(root: &mut Node, recipe: &Path) {
    let mut keys: Vec<String> = PATH_KEYS.iter().map(|k| (*k).to_owned()).collect();
    if let Some(NodeKind::Array(evals)) = root.child("eval").map(|n| &n.kind) {
        keys.extend((0..evals.len()).map(|i| format!("eval.{i}.data")));
    }
    let home = recipe.parent().unwrap_or(Path::new(".")).to_owned();
    for key in keys {
        let Some(node) = key.split('.').try_fold(&mut *root, |node, segment| node.child_mut(segment)) else {
            continue;
        };
        let hub_id_allowed = key == "model.base";
        match &mut node.kind {
            NodeKind::Array(items) => items.iter_mut().for_each(|item| join(item, &home, hub_id_allowed)),
            _ => join(node, &home, hub_id_allowed),
        }
    }
}

fn join(node: &mut Node, home: &Path, hub_id_allowed: bool) {
    let folder = match &node.origin {
        Origin::File { path, .. } => path.parent().unwrap_or(home).to_owned(),
        Origin::CommandLine | Origin::Default => PathBuf::new(),
    };
    let NodeKind::Scalar(Value::String(text)) = &mut node.kind else { return };
    let joined = folder.join(&*text);
    // `owner/name` is a folder where there is one, and a hub id elsewhere.
    let is_path = joined.exists() || text.starts_with('.') || Path::new(&*text).is_absolute();
    if !hub_id_allowed || is_path {
        *text = joined.to_string_lossy().into_owned();
    }
}
