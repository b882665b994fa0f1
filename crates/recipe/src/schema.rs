//! The recipe's JSON Schema, and the check of a recipe against it.
//!
//! serde stops at the first fault and does not know lines. So the values are first held against the schema that is generated
//! from the very same types: every unknown key and every wrong type is told at once, each with its place. What passes here
//! passes serde but for what a schema cannot say.

use crate::node::{Node, NodeKind};
use crate::sections::Recipe;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use taper_diagnostics::{Problem, Problems, Severity, did_you_mean, list_names};

/// Characters of a wrong value that a message shows.
const SHOWN_CHARS: usize = 60;

/// Names that other tools give to our keys.
const SYNONYMS: [(&str, &str); 14] = [
    ("rank", "r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("lr", "learning_rate"),
    ("epochs", "num_train_epochs"),
    ("num_epochs", "num_train_epochs"),
    ("iters", "max_steps"),
    ("per_device_train_batch_size", "batch_size"),
    ("micro_batch_size", "batch_size"),
    ("max_seq_length", "max_length"),
    ("cutoff_len", "max_length"),
    ("model_name_or_path", "base"),
    ("base_model", "base"),
    ("torch_dtype", "dtype"),
];

/// The JSON Schema of a recipe file, for editors.
///
/// A file that extends another may leave `model` and `data` to it.
pub fn json_schema() -> Value {
    let mut whole = whole_recipe();
    let mut take = |key: &str| whole.as_object_mut().and_then(|object| object.shift_remove(key));
    let mut schema = json!({
        "$schema": take("$schema"),
        "title": "taper recipe",
        "description": take("description"),
        "type": take("type"),
        "required": ["schema"],
        "anyOf": [{ "required": ["extends"] }, { "required": ["model", "data"] }],
    });
    for (key, value) in whole.as_object().into_iter().flatten() {
        if let Some(object) = schema.as_object_mut() {
            object.entry(key).or_insert_with(|| value.clone());
        }
    }
    schema
}

/// The schema of a recipe with all that it extends.
fn whole_recipe() -> Value {
    schemars::schema_for!(Recipe).to_value()
}

/// What was found, and which keys, and keys of the top level, have an error.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub problems: Problems,
    pub keys: BTreeSet<String>,
    pub sections: BTreeSet<String>,
}

impl Findings {
    /// Add a problem with the value of `key`.
    pub(crate) fn push(&mut self, key: &str, problem: Problem) {
        if problem.severity == Severity::Error {
            self.sections.insert(key.split('.').next().unwrap_or(key).to_owned());
            self.keys.insert(key.to_owned());
        }
        self.problems.push(problem);
    }

    /// Whether the value of `key`, or one around or inside it, has an error.
    pub(crate) fn has(&self, key: &str) -> bool {
        let is_below =
            |key: &str, other: &str| key.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'));
        self.keys.iter().any(|found| found == key || is_below(key, found) || is_below(found, key))
    }

    /// Take up what another search found.
    fn extend(&mut self, other: Findings) {
        self.problems.extend(other.problems);
        self.keys.extend(other.keys);
        self.sections.extend(other.sections);
    }
}

/// All that the schema has against `root`.
pub(crate) fn check(root: &Node) -> Findings {
    let schema = whole_recipe();
    let mut checker = Checker { schema: &schema, found: Findings::default() };
    checker.node(root, &schema, "");
    checker.found
}

struct Checker<'a> {
    schema: &'a Value,
    found: Findings,
}

impl<'a> Checker<'a> {
    /// Follow `$ref` into the schema's definitions.
    fn deref(&self, mut schema: &'a Value) -> &'a Value {
        while let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            match self.schema.pointer(reference.trim_start_matches('#')) {
                Some(target) => schema = target,
                None => break,
            }
        }
        schema
    }

    fn node(&mut self, node: &Node, schema: &'a Value, key: &str) {
        let schema = self.deref(schema);
        if let NodeKind::Refused(why) = node.kind {
            let problem = Problem::error("wrong-type", format!("a value {why}"));
            return self.found.push(key, problem.at(node.origin.location(key)));
        }
        if let Some(alternatives) = alternatives(schema) {
            return self.any_of(node, alternatives, key);
        }
        match &node.kind {
            _ if !self.fits(node, schema) => self.wrong(node, schema, key),
            NodeKind::Table(entries) => self.table(entries, schema, key),
            NodeKind::Array(items) => {
                if let Some(inner) = schema.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.node(item, inner, &join(key, &i.to_string()));
                    }
                }
            }
            _ => self.scalar(node, schema, key),
        }
    }

    /// One of several schemas: that whose type the value has, or if there are several, the one with the least against it.
    fn any_of(&mut self, node: &Node, alternatives: &'a [Value], key: &str) {
        let trials = alternatives.iter().filter(|alternative| self.fits(node, alternative));
        let trials = trials.map(|alternative| {
            let mut trial = Checker { schema: self.schema, found: Findings::default() };
            trial.node(node, alternative, key);
            trial.found
        });
        match trials.min_by_key(|found| found.problems.len()) {
            Some(found) => self.found.extend(found),
            None => {
                let wanted = alternatives.iter().map(|a| describe(self.deref(a))).filter(|d| d != "nothing");
                let wanted = wanted.collect::<Vec<_>>().join(" or ");
                self.found.push(key, wrong_type(node, &wanted, key));
            }
        }
    }

    fn table(&mut self, entries: &[(String, Node)], schema: &'a Value, key: &str) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties").filter(|s| s.is_object());
        for (name, child) in entries {
            let full = join(key, name);
            match (properties.and_then(|p| p.get(name)), others, properties) {
                (Some(inner), ..) | (None, Some(inner), _) => self.node(child, inner, &full),
                (None, None, Some(properties)) => {
                    let problem = self.unknown(name, &full, properties).at(child.origin.location(&full));
                    self.found.push(&full, problem);
                }
                (None, None, None) => {}
            }
        }
    }

    fn unknown(&self, name: &str, key: &str, properties: &Map<String, Value>) -> Problem {
        let problem = Problem::error("unknown-key", format!("unknown key `{key}`"));
        let everywhere = self.keys();
        let homes = everywhere.iter().filter(|(_, known)| *known == name);
        let homes: Vec<&str> = homes.map(|(home, _)| home.as_str()).collect();
        if !homes.is_empty() {
            return problem.hint(format!("`{name}` belongs to {}", homes.join(" or ")));
        }
        let synonym = SYNONYMS.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours);
        let here = synonym.filter(|ours| properties.contains_key(*ours));
        if let Some(near) =
            here.or_else(|| did_you_mean(name, properties.keys()).filter(|_| synonym.is_none()))
        {
            return problem.hint(format!("did you mean `{near}`?"));
        }
        let near = synonym.or_else(|| did_you_mean(name, everywhere.iter().map(|(_, known)| *known)));
        match everywhere.iter().find(|(_, known)| Some(*known) == near) {
            Some((home, near)) => problem.hint(format!("did you mean `{near}` of {home}?")),
            None => problem.hint(format!("the keys here are {}", list_names(properties.keys(), 40))),
        }
    }

    /// Every key with the place it belongs to, as a person writes it.
    fn keys(&self) -> Vec<(String, &'a str)> {
        let Some(top) = self.schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
        let mut keys = Vec::new();
        for (name, schema) in top {
            keys.push(("the top of the recipe".to_owned(), name.as_str()));
            let is_list = schema.get("items").is_some();
            let object = [Some(schema), schema.get("items")]
                .into_iter()
                .flatten()
                .chain(alternatives(schema).into_iter().flatten())
                .map(|s| self.deref(s))
                .find_map(|s| s.get("properties")?.as_object());
            let home = if is_list { format!("`[[{name}]]`") } else { format!("`[{name}]`") };
            keys.extend(object.into_iter().flat_map(Map::keys).map(|key| (home.clone(), key.as_str())));
        }
        keys
    }

    fn scalar(&mut self, node: &Node, schema: &Value, key: &str) {
        let value = node.to_json();
        let at = node.origin.location(key);
        if let (Some(names), Some(given)) = (names_of(schema), value.as_str()) {
            if !names.contains(&given) {
                let problem =
                    Problem::error("unknown-value", format!("`{key}` cannot be `{}`", shown(&value)));
                let hint = match did_you_mean(given, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`? It can be {}", list_names(&names, 40)),
                    None => format!("it can be {}", list_names(&names, 40)),
                };
                self.found.push(key, problem.at(at).hint(hint));
            }
            return;
        }
        let least = schema.get("minimum").and_then(Value::as_i64);
        if value.as_i64().is_some_and(|given| least.is_some_and(|least| given < least))
            || too_large(&value, schema)
        {
            self.wrong(node, schema, key);
        }
        if value == "" && schema.get("minLength").is_some_and(|least| *least != 0) {
            self.found.push(key, Problem::error("out-of-range", format!("`{key}` is empty")).at(at));
        }
    }

    /// Whether the value has a type that the schema allows, whatever is in it.
    fn fits(&self, node: &Node, schema: &'a Value) -> bool {
        let schema = self.deref(schema);
        if let Some(alternatives) = alternatives(schema) {
            return alternatives.iter().any(|alternative| self.fits(node, alternative));
        }
        let allows = |name: &str| match schema.get("type") {
            None => names_of(schema).is_none() || name == "string",
            Some(Value::String(one)) => one == name,
            Some(Value::Array(many)) => many.iter().any(|t| t == name),
            Some(_) => false,
        };
        match &node.kind {
            NodeKind::Refused(_) => true,
            NodeKind::Array(_) => allows("array"),
            NodeKind::Table(_) => allows("object"),
            NodeKind::Scalar(Value::Bool(_)) => allows("boolean"),
            NodeKind::Scalar(Value::String(_)) => allows("string"),
            NodeKind::Scalar(Value::Number(n)) if n.is_f64() => allows("number"),
            NodeKind::Scalar(Value::Number(_)) => allows("integer") || allows("number"),
            NodeKind::Scalar(_) => allows("null"),
        }
    }

    fn wrong(&mut self, node: &Node, schema: &Value, key: &str) {
        self.found.push(key, wrong_type(node, &describe(schema), key));
    }
}

fn wrong_type(node: &Node, wanted: &str, key: &str) -> Problem {
    let message = format!("`{key}` is {wanted}, not `{}`", shown(&node.to_json()));
    Problem::error("wrong-type", message).at(node.origin.location(key))
}

/// A value in a message; a string without its quotes only where they say nothing.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text)
            if !text.is_empty() && text.parse::<f64>().is_err() && text.parse::<bool>().is_err() =>
        {
            text.clone()
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A key below another; a name with a dot in it stands in quotes.
fn join(key: &str, name: &str) -> String {
    let name = if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() };
    if key.is_empty() { name } else { format!("{key}.{name}") }
}

/// The branches of a choice; a choice of constants is an enumeration and has none.
fn alternatives(schema: &Value) -> Option<&Vec<Value>> {
    if names_of(schema).is_some() {
        return None;
    }
    schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array)
}

/// The names of an enumeration, however schemars wrote it.
fn names_of(schema: &Value) -> Option<Vec<&str>> {
    if let Some(name) = schema.get("const").and_then(Value::as_str) {
        return Some(vec![name]);
    }
    if let Some(names) = schema.get("enum").and_then(Value::as_array) {
        return names.iter().map(Value::as_str).collect();
    }
    let branches = schema.get("oneOf").and_then(Value::as_array)?;
    let names: Option<Vec<Vec<&str>>> = branches.iter().map(names_of).collect();
    names.map(|n| n.into_iter().flatten().collect())
}

/// schemars names the width of an integer in `format`, and writes no maximum for 32 bits.
fn too_large(value: &Value, schema: &Value) -> bool {
    let most = match schema.get("format").and_then(Value::as_str) {
        Some("uint32") => u64::from(u32::MAX),
        Some("uint16") => u64::from(u16::MAX),
        _ => return false,
    };
    value.as_u64().is_some_and(|given| given > most)
}

fn describe(schema: &Value) -> String {
    if let Some(names) = names_of(schema) {
        let names = list_names(names, 40);
        return if names.contains(',') { format!("one of {names}") } else { names };
    }
    if let Some(alternatives) = alternatives(schema) {
        return alternatives.iter().map(describe).collect::<Vec<_>>().join(" or ");
    }
    let name = |t: &str| {
        match (t, schema.get("minimum").is_some_and(|m| *m == 0)) {
            ("integer", true) => "a whole number from 0",
            ("integer", false) => "a whole number",
            ("number", _) => "a number",
            ("string", _) => "a string",
            ("boolean", _) => "true or false",
            ("array", _) => "a list",
            ("object", _) => "a table",
            _ => "nothing",
        }
        .to_owned()
    };
    match schema.get("type") {
        Some(Value::String(one)) => name(one),
        Some(Value::Array(many)) => {
            let types = many.iter().filter_map(Value::as_str).filter(|t| *t != "null");
            types.map(name).collect::<Vec<_>>().join(" or ")
        }
        _ => "something else".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_synonym_stands_for_a_key_and_is_none() {
        let schema = whole_recipe();
        let checker = Checker { schema: &schema, found: Findings::default() };
        let keys: Vec<&str> = checker.keys().into_iter().map(|(_, key)| key).collect();
        assert!(keys.len() > 80, "the walk finds the sections' keys");
        for (theirs, ours) in SYNONYMS {
            assert!(keys.contains(&ours) && !keys.contains(&theirs), "`{theirs}` for `{ours}`");
        }
    }
}
