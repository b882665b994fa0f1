//! From TOML text to values with origins: spans, `extends`, `--set`.

use crate::node::{Node, NodeKind};
use crate::{Origin, RecipeError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Location, Problem, Problems, with_cause};
use toml_edit::{Document, Item, TableLike};

/// A recipe longer than this is no recipe.
const MOST_BYTES: u64 = 1 << 20;
/// How many recipes may stand on each other.
const MOST_EXTENDS: usize = 8;

/// Read `path` and all that it extends, then apply `--set key=value` in order. Those that are malformed are left out and told.
pub(crate) fn read(path: &Path, sets: &[String]) -> Result<(Node, Problems), RecipeError> {
    let mut root = read_with_base(path, &mut Vec::new())?;
    let mut problems = Problems::new();
    for set in sets {
        if let Err(found) = apply_set(&mut root, set) {
            problems.extend(found);
        }
    }
    Ok((root, problems))
}

fn read_with_base(path: &Path, trail: &mut Vec<PathBuf>) -> Result<Node, RecipeError> {
    let text = read_text(path)?;
    let mut node = parse(path, &text).map_err(RecipeError::Problems)?;
    trail.push(path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    let Some((base, at)) = take_extends(&mut node).map_err(RecipeError::Problems)? else { return Ok(node) };
    let base = path.parent().unwrap_or(Path::new("")).join(base);
    let is_in_trail = base.canonicalize().is_ok_and(|base| trail.contains(&base));
    if is_in_trail || trail.len() >= MOST_EXTENDS {
        return Err(stop(Problem::error("extends-cycle", "recipes extend each other without end").at(at)));
    }
    let base = read_with_base(&base, trail).map_err(|error| match error {
        RecipeError::Read { path, source } => {
            let message = with_cause(format!("cannot read `{}`", path.display()), &source);
            stop(
                Problem::error("extends", message)
                    .at(at)
                    .hint("the path is relative to the recipe that says it"),
            )
        }
        problems => problems,
    })?;
    Ok(node.over(base))
}

fn one(problem: Problem) -> Problems {
    let mut problems = Problems::new();
    problems.push(problem);
    problems
}

fn stop(problem: Problem) -> RecipeError {
    RecipeError::Problems(one(problem))
}

fn read_text(path: &Path) -> Result<String, RecipeError> {
    let unreadable = |source| RecipeError::Read { path: path.to_owned(), source };
    let length = fs_err::metadata(path).map_err(unreadable)?.len();
    if length > MOST_BYTES {
        return Err(stop(
            Problem::error("recipe-size", format!("a recipe of {length} bytes"))
                .at(Location::file(path))
                .hint("a recipe is a small TOML file; data belongs in the files that `[data]` names"),
        ));
    }
    fs_err::read_to_string(path).map_err(unreadable)
}

/// What a recipe extends and where it says so; it is gone from the values.
fn take_extends(node: &mut Node) -> Result<Option<(String, Location)>, Problems> {
    let NodeKind::Table(entries) = &mut node.kind else { return Ok(None) };
    let Some(index) = entries.iter().position(|(k, _)| k == "extends") else { return Ok(None) };
    let (_, extends) = entries.remove(index);
    let at = extends.origin.location("extends");
    match extends.kind {
        NodeKind::Scalar(Value::String(base)) if !base.is_empty() => Ok(Some((base, at))),
        _ => Err(one(Problem::error("wrong-type", "`extends` is the path of one recipe").at(at))),
    }
}

fn parse(path: &Path, text: &str) -> Result<Node, Problems> {
    let document = Document::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let found = error.span().and_then(|span| text.get(span)).map(str::trim);
        let found = found.filter(|found| !found.is_empty() && found.len() <= 40 && !found.contains('\n'));
        let found = found.map_or_else(String::new, |found| format!(", at `{found}`"));
        let message = format!("{}{found}", error.message().trim().replace('\n', ", "));
        one(Problem::error("toml-syntax", message).at(Location::line(path, line)))
    })?;
    Ok(table_node(path, text, document.as_table(), 1))
}

fn table_node(path: &Path, text: &str, table: &dyn TableLike, line: usize) -> Node {
    let mut entries = Vec::new();
    for (name, item) in table.iter() {
        // A key's own line; a table made by a dotted header has none and takes that of what is in it.
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        let line = span.map_or(line, |span| line_of(text, span.start));
        entries.push((name.to_owned(), item_node(path, text, item, line)));
    }
    Node { origin: origin(path, line), kind: NodeKind::Table(entries) }
}

fn item_node(path: &Path, text: &str, item: &Item, line: usize) -> Node {
    match item {
        Item::None => Node { origin: origin(path, line), kind: NodeKind::Scalar(Value::Null) },
        Item::Value(value) => value_node(path, text, value, line),
        Item::Table(table) => {
            let line = table.span().map_or(line, |span| line_of(text, span.start));
            table_node(path, text, table, line)
        }
        Item::ArrayOfTables(tables) => {
            let items = tables
                .iter()
                .map(|table| {
                    let line = table.span().map_or(line, |span| line_of(text, span.start));
                    table_node(path, text, table, line)
                })
                .collect();
            Node { origin: origin(path, line), kind: NodeKind::Array(items) }
        }
    }
}

fn value_node(path: &Path, text: &str, value: &toml_edit::Value, line: usize) -> Node {
    let kind = match value {
        toml_edit::Value::String(s) => NodeKind::Scalar(Value::String(s.value().clone())),
        toml_edit::Value::Integer(i) => NodeKind::Scalar(Value::from(*i.value())),
        toml_edit::Value::Float(f) => match serde_json::Number::from_f64(*f.value()) {
            Some(number) => NodeKind::Scalar(Value::Number(number)),
            None => NodeKind::Refused("is finite: neither `nan` nor `inf`"),
        },
        toml_edit::Value::Boolean(b) => NodeKind::Scalar(Value::Bool(*b.value())),
        toml_edit::Value::Datetime(_) => {
            NodeKind::Refused("is no date or time; a text that looks like one stands in quotes")
        }
        toml_edit::Value::Array(array) => {
            let items = array
                .iter()
                .map(|item| {
                    let line = item.span().map_or(line, |span| line_of(text, span.start));
                    value_node(path, text, item, line)
                })
                .collect();
            NodeKind::Array(items)
        }
        toml_edit::Value::InlineTable(table) => return table_node(path, text, table, line),
    };
    Node { origin: origin(path, line), kind }
}

fn origin(path: &Path, line: usize) -> Origin {
    Origin::File { path: path.to_owned(), line }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

/// `key=value`: the value is TOML, and what is no TOML is a string, so that `--set model.base=../m` needs no quotes.
fn apply_set(root: &mut Node, set: &str) -> Result<(), Problems> {
    let refused = |what: String, hint: &str| one(Problem::error("set", what).hint(hint));
    let usage = "write `--set section.key=value`, for example `--set train.max_steps=20`";
    let Some((key, raw)) = set.split_once('=') else {
        return Err(refused(format!("`--set {set}` has no `=`"), usage));
    };
    let key = key.trim();
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(refused(format!("`--set {set}` names no key"), usage));
    }
    if key == "extends" || key.starts_with("extends.") {
        let what = "`--set extends` comes too late: the recipe has been read by then".to_owned();
        return Err(refused(what, "write `extends` into a recipe of your own, above what it changes"));
    }
    root.set(key, on_command_line(value_of(raw))).map_err(|segment| {
        let what = "stands in a list that is not so long, or in something that is no table";
        refused(format!("`--set {set}`: `{segment}` {what}"), usage)
    })
}

/// The value that a text after `=` is.
fn value_of(raw: &str) -> NodeKind {
    let parsed = parse(Path::new("--set"), &format!("value = {raw}\n")).map(|node| node.kind);
    match parsed {
        // A line break in the text would begin another key.
        Ok(NodeKind::Table(mut entries)) if entries.len() == 1 => entries.remove(0).1.kind,
        _ => NodeKind::Scalar(Value::String(raw.to_owned())),
    }
}

fn on_command_line(kind: NodeKind) -> Node {
    let kind = match kind {
        NodeKind::Array(items) => {
            NodeKind::Array(items.into_iter().map(|n| on_command_line(n.kind)).collect())
        }
        NodeKind::Table(entries) => {
            NodeKind::Table(entries.into_iter().map(|(k, n)| (k, on_command_line(n.kind))).collect())
        }
        single @ (NodeKind::Scalar(_) | NodeKind::Refused(_)) => single,
    };
    Node { origin: Origin::CommandLine, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs_err::write(&path, text).unwrap();
        path
    }

    #[test]
    fn every_value_knows_its_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "base.toml", "[train]\nseed = 1\nmax_steps = 5\n");
        let path = write(folder.path(), "own.toml", "extends = \"base.toml\"\n\n[train]\nseed = 2\n");
        let (node, malformed) =
            read(&path, &["train.batch_size=4".into(), "model.base=../m".into()]).unwrap();
        assert!(malformed.is_empty());
        assert_eq!(
            node.to_json(),
            serde_json::json!({"train": {"seed": 2, "max_steps": 5, "batch_size": 4}, "model": {"base": "../m"}})
        );
        assert_eq!(node.origin_of("train.seed").to_string(), "own.toml:4");
        assert_eq!(node.origin_of("train.max_steps").to_string(), "base.toml:3");
        assert_eq!(node.origin_of("train.batch_size"), Origin::CommandLine);
    }

    #[test]
    fn a_recipe_that_extends_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a.toml", "extends = \"a.toml\"\n");
        assert!(read(&path, &[]).unwrap_err().to_string().contains("extends-cycle"));
    }

    #[test]
    fn broken_toml_names_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a.toml", "[train]\nseed = = 2\n");
        assert!(read(&path, &[]).unwrap_err().to_string().contains("a.toml:2"));
        let path = write(folder.path(), "b.toml", "[train]\nseed = 1\nseed = 2\n");
        let told = read(&path, &[]).unwrap_err().to_string();
        assert!(told.contains("duplicate key, at `seed`") && told.contains("b.toml:3"), "{told}");
    }

    #[test]
    fn a_set_without_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a.toml", "");
        let (_, error) = read(&path, &["train".into(), "=3".into(), "a..b=3".into()]).unwrap();
        assert_eq!(error.to_string().matches("error[set]").count(), 3);
    }
}
