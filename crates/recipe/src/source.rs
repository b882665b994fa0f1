//! From TOML text to values with origins: spans, `extends`, `--set`.

use crate::node::{Node, NodeKind};
use crate::{Origin, RecipeError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Location, Problem, Problems};
use toml_edit::{Document, Item, TableLike};

/// A recipe longer than this is no recipe.
const MOST_BYTES: u64 = 1 << 20;
/// How many recipes may stand on each other.
const MOST_EXTENDS: usize = 8;

/// Read `path` and all that it extends, then apply `--set key=value` in order.
pub(crate) fn read(path: &Path, sets: &[String]) -> Result<Node, RecipeError> {
    let mut root = read_with_base(path, &mut Vec::new())?;
    let mut problems = Problems::new();
    for set in sets {
        if let Err(problem) = apply_set(&mut root, set) {
            problems.push(problem);
        }
    }
    problems.into_result().map_err(RecipeError::Problems)?;
    Ok(root)
}

fn read_with_base(path: &Path, trail: &mut Vec<PathBuf>) -> Result<Node, RecipeError> {
    let text = read_text(path)?;
    let mut node = parse(path, &text).map_err(one)?;
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if trail.contains(&canonical) || trail.len() >= MOST_EXTENDS {
        return Err(one(Problem::error("extends-cycle", "recipes extend each other without end")
            .at(Location::file(path).with_key("extends"))));
    }
    trail.push(canonical);
    let Some(base) = take_extends(&mut node).map_err(one)? else { return Ok(node) };
    let folder = path.parent().unwrap_or(Path::new("."));
    let base = read_with_base(&folder.join(base), trail)?;
    Ok(node.over(base))
}

fn one(problem: Problem) -> RecipeError {
    let mut problems = Problems::new();
    problems.push(problem);
    RecipeError::Problems(problems)
}

fn read_text(path: &Path) -> Result<String, RecipeError> {
    let unreadable = |source| RecipeError::Read { path: path.to_owned(), source };
    let length = fs_err::metadata(path).map_err(unreadable)?.len();
    if length > MOST_BYTES {
        return Err(one(Problem::error("recipe-size", format!("a recipe of {length} bytes"))
            .at(Location::file(path))
            .hint("a recipe is a small TOML file; data belongs in the files that `[data]` names")));
    }
    fs_err::read_to_string(path).map_err(unreadable)
}

fn take_extends(node: &mut Node) -> Result<Option<String>, Problem> {
    let NodeKind::Table(entries) = &mut node.kind else { return Ok(None) };
    let Some(index) = entries.iter().position(|(k, _)| k == "extends") else { return Ok(None) };
    let (_, extends) = entries.remove(index);
    match extends.kind {
        NodeKind::Scalar(Value::String(base)) => Ok(Some(base)),
        _ => Err(Problem::error("wrong-type", "`extends` is the path of one recipe")
            .at(extends.origin.location("extends"))),
    }
}

fn parse(path: &Path, text: &str) -> Result<Node, Problem> {
    let document = Document::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        Problem::error("toml-syntax", error.message().trim().replace('\n', ", "))
            .at(Location::line(path, line))
    })?;
    table_node(path, text, document.as_table(), 1)
}

fn table_node(path: &Path, text: &str, table: &dyn TableLike, line: usize) -> Result<Node, Problem> {
    let mut entries = Vec::new();
    for (name, item) in table.iter() {
        // A key's own line; a table made by a dotted header has none and takes that of what is in it.
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        let line = span.map_or(line, |span| line_of(text, span.start));
        entries.push((name.to_owned(), item_node(path, text, item, line)?));
    }
    Ok(Node { origin: origin(path, line), kind: NodeKind::Table(entries) })
}

fn item_node(path: &Path, text: &str, item: &Item, line: usize) -> Result<Node, Problem> {
    match item {
        Item::None => Ok(Node { origin: origin(path, line), kind: NodeKind::Scalar(Value::Null) }),
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
                .collect::<Result<_, _>>()?;
            Ok(Node { origin: origin(path, line), kind: NodeKind::Array(items) })
        }
    }
}

fn value_node(path: &Path, text: &str, value: &toml_edit::Value, line: usize) -> Result<Node, Problem> {
    let refuse = |what: &str| Err(Problem::error("wrong-type", what).at(Location::line(path, line)));
    let scalar = match value {
        toml_edit::Value::String(s) => Value::String(s.value().clone()),
        toml_edit::Value::Integer(i) => Value::from(*i.value()),
        toml_edit::Value::Float(f) => match serde_json::Number::from_f64(*f.value()) {
            Some(number) => Value::Number(number),
            None => return refuse("a number here is finite: neither `nan` nor `inf`"),
        },
        toml_edit::Value::Boolean(b) => Value::Bool(*b.value()),
        toml_edit::Value::Datetime(_) => return refuse("no key of a recipe is a date"),
        toml_edit::Value::Array(array) => {
            let items = array
                .iter()
                .map(|item| {
                    let line = item.span().map_or(line, |span| line_of(text, span.start));
                    value_node(path, text, item, line)
                })
                .collect::<Result<_, _>>()?;
            return Ok(Node { origin: origin(path, line), kind: NodeKind::Array(items) });
        }
        toml_edit::Value::InlineTable(table) => return table_node(path, text, table, line),
    };
    Ok(Node { origin: origin(path, line), kind: NodeKind::Scalar(scalar) })
}

fn origin(path: &Path, line: usize) -> Origin {
    Origin::File { path: path.to_owned(), line }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

/// `key=value`: the value is TOML, and what is no TOML is a string, so that `--set model.base=../m` needs no quotes.
fn apply_set(root: &mut Node, set: &str) -> Result<(), Problem> {
    let malformed = |what: String| {
        Problem::error("set", what)
            .hint("write `--set section.key=value`, for example `--set train.max_steps=20`")
    };
    let Some((key, raw)) = set.split_once('=') else {
        return Err(malformed(format!("`--set {set}` has no `=`")));
    };
    let key = key.trim();
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(malformed(format!("`--set {set}` names no key")));
    }
    let text = format!("value = {raw}\n");
    let kind = match parse(Path::new("--set"), &text).ok().and_then(|table| table.child("value").cloned()) {
        Some(node) => node.kind,
        None => NodeKind::Scalar(Value::String(raw.to_owned())),
    };
    let value = on_command_line(kind);
    root.set(key, value).map_err(|segment| {
        malformed(format!("`--set {set}`: `{segment}` is inside something that is no table"))
    })
}

fn on_command_line(kind: NodeKind) -> Node {
    let kind = match kind {
        NodeKind::Array(items) => {
            NodeKind::Array(items.into_iter().map(|n| on_command_line(n.kind)).collect())
        }
        NodeKind::Table(entries) => {
            NodeKind::Table(entries.into_iter().map(|(k, n)| (k, on_command_line(n.kind))).collect())
        }
        scalar @ NodeKind::Scalar(_) => scalar,
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
        let node = read(&path, &["train.batch_size=4".into(), "model.base=../m".into()]).unwrap();
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
    }

    #[test]
    fn a_set_without_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a.toml", "");
        let error = read(&path, &["train".into(), "=3".into(), "a..b=3".into()]).unwrap_err();
        assert_eq!(error.to_string().matches("error[set]").count(), 3);
    }
}
