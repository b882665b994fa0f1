//! `resolved.toml`: every value of a run and where it came from.

use crate::{Origin, ResolvedRun};
use serde_json::{Map, Value};
use std::fmt::Write;

/// The run's recipe with every default filled in, a comment behind each value saying where it came from.
///
/// The text is itself a recipe that gives the same run, wherever it lies: its paths are absolute, and what it extends is in it.
pub fn resolved_toml(run: &ResolvedRun) -> String {
    let mut text =
        format!("# {}: every value of this run, and where it came from\n", run.name.escape_debug());
    let Ok(Value::Object(mut recipe)) = serde_json::to_value(&run.absolute) else { return text };
    recipe.shift_remove("extends");
    for (key, value) in recipe.iter().filter(|(_, v)| !is_section(v)) {
        entry(&mut text, run, &[key], value);
    }
    for (key, value) in &recipe {
        match value {
            Value::Array(tables) if is_section(value) => {
                for (i, table) in tables.iter().enumerate() {
                    section(&mut text, run, &format!("[[{key}]]"), &[key, &i.to_string()], table);
                }
            }
            table if is_section(value) => section(&mut text, run, &format!("[{key}]"), &[key], table),
            _ => {}
        }
    }
    text
}

fn is_section(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        _ => false,
    }
}

/// A header with the values below it, tables of their own (`[adapter.rank_pattern]`) last.
fn section(text: &mut String, run: &ResolvedRun, header: &str, path: &[&str], table: &Value) {
    let _ = write!(text, "\n{header}\n");
    let entries = || table.as_object().into_iter().flatten();
    let is_table = |value: &Value| value.as_object().is_some_and(|inner| !inner.is_empty());
    for (name, value) in entries().filter(|(_, v)| !is_table(v)) {
        entry(text, run, &below(path, name), value);
    }
    for (name, value) in entries().filter(|(_, v)| is_table(v)) {
        let path = below(path, name);
        section(text, run, &format!("[{}]", path.join(".")), &path, value);
    }
}

fn below<'a>(path: &[&'a str], name: &'a str) -> Vec<&'a str> {
    path.iter().copied().chain([name]).collect()
}

fn entry(text: &mut String, run: &ResolvedRun, path: &[&str], value: &Value) {
    let name = key(path.last().copied().unwrap_or_default());
    if value.is_null() {
        let _ = writeln!(text, "# {name}: not set");
        return;
    }
    let origin = run.origin_at(path).unwrap_or(Origin::Default);
    let _ = writeln!(text, "{name} = {}  # {origin}", inline(value));
}

/// A key, in quotes where it needs them.
fn key(name: &str) -> String {
    let is_bare =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_bare { name.to_owned() } else { string(name) }
}

/// A value as inline TOML. JSON's numbers, booleans and lists are TOML's.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(entries) => table(entries),
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

fn table(entries: &Map<String, Value>) -> String {
    let entries = entries.iter().filter(|(_, v)| !v.is_null());
    let entries: Vec<String> = entries.map(|(k, v)| format!("{} = {}", key(k), inline(v))).collect();
    if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
}

/// JSON's strings are TOML's, but for one control character that JSON lets stand.
fn string(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
