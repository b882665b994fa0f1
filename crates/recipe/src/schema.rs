//! The recipe's JSON Schema, and the check of a recipe against it.
//!
//! serde stops at the first fault and does not know lines. So the values are first held against the schema that is generated
//! from the very same types: every unknown key and every wrong type is told at once, each with its place. What passes here
//! passes serde but for what a schema cannot say.

use crate::node::{Node, NodeKind};
use crate::sections::Recipe;
use serde_json::{Map, Value};
use taper_diagnostics::{Problem, Problems, did_you_mean, list_names};

/// The JSON Schema of a recipe, for editors.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(Recipe).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "taper recipe".into());
    }
    schema
}

/// All that the schema has against `root`.
pub(crate) fn check(root: &Node) -> Problems {
    let schema = json_schema();
    let mut checker = Checker { schema: &schema, problems: Problems::new() };
    checker.node(root, &schema, "");
    checker.problems
}

struct Checker<'a> {
    schema: &'a Value,
    problems: Problems,
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
        if let Some(alternatives) = alternatives(schema) {
            return self.any_of(node, alternatives, key);
        }
        match &node.kind {
            NodeKind::Table(entries) if schema.get("properties").is_some() => {
                self.table(entries, schema, key);
            }
            NodeKind::Table(entries) if allows(schema, "object") => {
                if let Some(inner) = schema.get("additionalProperties").filter(|s| s.is_object()) {
                    for (name, child) in entries {
                        self.node(child, inner, &join(key, name));
                    }
                }
            }
            NodeKind::Array(items) if allows(schema, "array") => {
                if let Some(inner) = schema.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.node(item, inner, &join(key, &i.to_string()));
                    }
                }
            }
            _ => self.scalar(node, schema, key),
        }
    }

    /// The value must suit one of several schemas; when it suits none, the nearest one's complaints are told.
    fn any_of(&mut self, node: &Node, alternatives: &'a [Value], key: &str) {
        let mut fewest: Option<Problems> = None;
        for alternative in alternatives {
            let mut trial = Checker { schema: self.schema, problems: Problems::new() };
            trial.node(node, alternative, key);
            if trial.problems.is_empty() {
                return;
            }
            let unlike = |p: &Problems| p.iter().filter(|p| p.code == "wrong-type").count();
            if fewest.as_ref().is_none_or(|best| unlike(&trial.problems) < unlike(best)) {
                fewest = Some(trial.problems);
            }
        }
        let wanted: Vec<String> = alternatives.iter().map(|a| describe(self.deref(a))).collect();
        match fewest {
            Some(problems) if problems.iter().any(|p| p.code != "wrong-type") => {
                self.problems.extend(problems)
            }
            _ => self.wrong(node, key, &wanted.join(" or ")),
        }
    }

    fn table(&mut self, entries: &[(String, Node)], schema: &'a Value, key: &str) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        for (name, child) in entries {
            let full = join(key, name);
            match properties.get(name) {
                Some(inner) => self.node(child, inner, &full),
                None => {
                    let problem = self.unknown(name, &full, properties).at(child.origin.location(&full));
                    self.problems.push(problem);
                }
            }
        }
    }

    fn unknown(&self, name: &str, key: &str, properties: &Map<String, Value>) -> Problem {
        let problem = Problem::error("unknown-key", format!("unknown key `{key}`"));
        if let Some(home) = self.section_of(name) {
            return problem.hint(format!("`{name}` belongs to `[{home}]`"));
        }
        match did_you_mean(name, properties.keys()) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem.hint(format!("the keys here are {}", list_names(properties.keys(), 40))),
        }
    }

    /// The section that has a key of exactly this name.
    fn section_of(&self, name: &str) -> Option<&'a str> {
        let sections = self.schema.get("properties")?.as_object()?;
        sections.iter().find_map(|(section, schema)| {
            let object = [Some(schema), schema.get("items")]
                .into_iter()
                .flatten()
                .chain(alternatives(schema).into_iter().flatten())
                .map(|s| self.deref(s))
                .find(|s| s.get("properties").is_some())?;
            object.get("properties")?.get(name).map(|_| section.as_str())
        })
    }

    fn scalar(&mut self, node: &Node, schema: &Value, key: &str) {
        let value = node.to_json();
        if let Some(names) = names_of(schema) {
            let Value::String(given) = &value else {
                return self.wrong(node, key, &describe(schema));
            };
            if !names.contains(&given.as_str()) {
                let problem = Problem::error("unknown-value", format!("`{key}` cannot be `{given}`"));
                let hint = match did_you_mean(given, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`? It can be {}", list_names(&names, 40)),
                    None => format!("it can be {}", list_names(&names, 40)),
                };
                self.problems.push(problem.at(node.origin.location(key)).hint(hint));
            }
            return;
        }
        let type_name = match &value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = allows(schema, type_name) || type_name == "integer" && allows(schema, "number");
        let negative = value.as_i64().is_some_and(|i| i < 0) && schema.get("minimum").is_some_and(|m| m == 0);
        if !fits || negative {
            self.wrong(node, key, &describe(schema));
        }
    }

    fn wrong(&mut self, node: &Node, key: &str, wanted: &str) {
        let given = node.to_json();
        let problem = Problem::error("wrong-type", format!("`{key}` is {wanted}, not `{given}`"));
        self.problems.push(problem.at(node.origin.location(key)));
    }
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

/// The branches of a choice; a choice of constants is an enumeration and has none.
fn alternatives(schema: &Value) -> Option<&Vec<Value>> {
    if names_of(schema).is_some() {
        return None;
    }
    schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array)
}

/// Whether a schema allows a JSON type; one without `type` allows all.
fn allows(schema: &Value, type_name: &str) -> bool {
    match schema.get("type") {
        None => true,
        Some(Value::String(one)) => one == type_name,
        Some(Value::Array(many)) => many.iter().any(|t| t == type_name),
        Some(_) => false,
    }
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

fn describe(schema: &Value) -> String {
    if let Some(names) = names_of(schema) {
        return format!("one of {}", list_names(names, 40));
    }
    let name = |t: &str| {
        match (t, schema.get("minimum").is_some_and(|m| m == 0)) {
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
        Some(Value::Array(many)) => many
            .iter()
            .filter_map(Value::as_str)
            .filter(|t| *t != "null")
            .map(name)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "something else".to_owned(),
    }
}
