//! `resolved.toml`: every value of a run and where it came from.

use crate::{Origin, ResolvedRun};
use serde_json::Value;
use std::fmt::Write;

/// The run's recipe with every default filled in, a comment behind each value saying where it came from.
///
/// The text is itself a recipe that gives the same run.
pub fn resolved_toml(run: &ResolvedRun) -> String {
    let mut text = format!("# {}: every value of this run, and where it came from\n", run.name);
    let Ok(Value::Object(recipe)) = serde_json::to_value(&run.recipe) else { return text };
    for (key, value) in recipe.iter().filter(|(_, v)| !is_section(v)) {
        entry(&mut text, run, key, key, value);
    }
    for (key, value) in recipe.iter().filter(|(_, v)| is_section(v)) {
        match value {
            Value::Array(tables) => {
                for (i, table) in tables.iter().enumerate() {
                    section(&mut text, run, &format!("[[{key}]]"), &format!("{key}.{i}"), table);
                }
            }
            table => section(&mut text, run, &format!("[{key}]"), key, table),
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

fn section(text: &mut String, run: &ResolvedRun, header: &str, key: &str, table: &Value) {
    let _ = write!(text, "\n{header}\n");
    for (name, value) in table.as_object().into_iter().flatten() {
        entry(text, run, name, &format!("{key}.{name}"), value);
    }
}

fn entry(text: &mut String, run: &ResolvedRun, name: &str, key: &str, value: &Value) {
    if value.is_null() {
        let _ = writeln!(text, "# {name}: not set");
        return;
    }
    let origin = run.origin(key).unwrap_or(Origin::Default);
    let _ = writeln!(text, "{name} = {}  # {origin}", inline(value));
}

/// A value as inline TOML. JSON's strings, numbers, booleans and lists are TOML's; only tables are written differently.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| format!("{} = {}", Value::String(k.clone()), inline(v)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        scalar => scalar.to_string(),
    }
}
