//! A JSON Schema as a description of fields: which values are valid, and how each field is compared.

use crate::Normalize;
use crate::metrics::numeric::Tolerance;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The keyword of ours that says how a field is compared; validators overlook it.
const KEYWORD: &str = "x-compare";
/// Steps of `$ref` to `$ref` that are followed.
const MOST_REFERENCES: usize = 32;
/// Nested levels in which [`KEYWORD`] is looked for.
const MOST_DEPTH: usize = 128;

/// A schema that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Not a valid JSON Schema, or one that refers to another document.
    #[error("the schema cannot be used: {0}")]
    Invalid(String),
    /// An `x-compare` that is none of those there are.
    #[error("`x-compare` at `{pointer}` cannot be read: {reason}")]
    Compare {
        /// Where it stands, as a JSON pointer.
        pointer: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// How two values of a field are compared: `"x-compare": {"as": "number", "absolute": 0.01}` in the field's schema.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "snake_case", deny_unknown_fields)]
pub enum Comparator {
    /// Equal JSON values; `1` equals `1.0`. What booleans, `enum` and `const` are compared by.
    Exact,
    /// Strings with case, ASCII punctuation and runs of white space overlooked; anything else as `exact`.
    Text,
    /// Numbers within a tolerance; a string counts as the one number that stands in it. What `number` and `integer` are compared by.
    Number {
        /// In the field's unit.
        #[serde(default)]
        absolute: f64,
        /// As a share of the expected number.
        #[serde(default)]
        relative: f64,
    },
    /// Dates in any of their usual forms. What the formats `date` and `date-time` are compared by.
    Date {
        /// Whether `3/4/2024` is the 3rd of April (else of March); left out, it is no date.
        #[serde(default)]
        day_first: Option<bool>,
    },
    /// A list whose items are paired by position.
    Ordered,
    /// A list whose items are paired so that the most fields are equal. What lists are compared by.
    Assigned,
    /// As `assigned`, equal items of one list counted once.
    Set,
}

/// A schema made ready.
#[derive(Debug)]
pub(crate) struct FieldSchema {
    root: Value,
    validator: jsonschema::Validator,
}

impl FieldSchema {
    /// # Errors
    /// When it is no schema, refers to a document outside itself, or has an `x-compare` that is not known.
    pub(crate) fn new(schema: &Value) -> Result<Self, SchemaError> {
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .offline()
            .build(schema)
            .map_err(|error| SchemaError::Invalid(error.to_string()))?;
        check_comparators(schema, &mut String::new(), 0)?;
        Ok(Self { root: schema.clone(), validator })
    }

    pub(crate) fn root(&self) -> &Value {
        &self.root
    }

    /// Where a value breaks the schema and by which keyword, without the value itself; at most `most` places.
    pub(crate) fn violations(&self, value: &Value, most: usize) -> Vec<String> {
        let place = |error: jsonschema::ValidationError<'_>| {
            format!("{}: {}", error.instance_path(), error.kind().keyword())
        };
        self.validator.iter_errors(value).take(most).map(place).collect()
    }

    /// The schema that describes fields: references followed, and of alternatives the first that is not `null`.
    pub(crate) fn described<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        for _ in 0..MOST_REFERENCES {
            let inner = match schema.get("$ref").and_then(Value::as_str) {
                Some(reference) => reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)),
                None => ["allOf", "anyOf", "oneOf"]
                    .into_iter()
                    .filter(|_| schema.get("type").is_none() && schema.get("properties").is_none())
                    .find_map(|key| schema.get(key)?.as_array()?.iter().find(|part| !is_null(part))),
            };
            match inner {
                Some(inner) if schema.get(KEYWORD).is_none() => schema = inner,
                _ => break,
            }
        }
        schema
    }

    /// The schema of a key.
    pub(crate) fn property<'a>(&'a self, schema: Option<&'a Value>, key: &str) -> Option<&'a Value> {
        Some(self.described(self.inside(schema?).get("properties")?.get(key)?))
    }

    /// The schema of a list's items.
    pub(crate) fn items<'a>(&'a self, schema: Option<&'a Value>) -> Option<&'a Value> {
        Some(self.described(self.inside(schema?).get("items")?))
    }

    /// The schema with the parts of a field, where `x-compare` stands beside a reference.
    fn inside<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
        match reference.and_then(|pointer| self.root.pointer(pointer)) {
            Some(inner) => self.described(inner),
            None => schema,
        }
    }
}

/// How a field is compared, by its schema.
pub(crate) fn comparator(schema: Option<&Value>, tolerance: Tolerance) -> Comparator {
    let Some(schema) = schema else { return Comparator::Text };
    if let Some(stated) = schema.get(KEYWORD) {
        // It was read once before; see `check_comparators`.
        return Comparator::deserialize(stated).unwrap_or(Comparator::Exact);
    }
    let Tolerance { absolute, relative } = tolerance;
    let has_type = |name: &str| match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    };
    match schema.get("format").and_then(Value::as_str) {
        _ if schema.get("enum").is_some() || schema.get("const").is_some() => Comparator::Exact,
        Some("date" | "date-time") => Comparator::Date { day_first: None },
        _ if has_type("number") || has_type("integer") => Comparator::Number { absolute, relative },
        _ if has_type("string") => Comparator::Text,
        _ if has_type("array") => Comparator::Assigned,
        _ => Comparator::Text,
    }
}

/// What [`Comparator::Text`] overlooks.
pub(crate) const TEXT: Normalize = Normalize::Lenient;

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
        || schema.get("const").is_some_and(Value::is_null)
}

fn check_comparators(schema: &Value, pointer: &mut String, depth: usize) -> Result<(), SchemaError> {
    if depth > MOST_DEPTH {
        return Ok(());
    }
    let mut check = |key: &str, inner: &Value| {
        let length = pointer.len();
        pointer.push('/');
        pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
        if key == KEYWORD && schema.is_object() && !pointer.ends_with("properties/x-compare") {
            let fail = |reason| SchemaError::Compare { pointer: pointer.clone(), reason };
            let stated = Comparator::deserialize(inner).map_err(|error| fail(error.to_string()))?;
            if let Comparator::Number { absolute, relative } = stated
                && !(Tolerance { absolute, relative }).is_valid()
            {
                return Err(fail("a tolerance is below 0".into()));
            }
        } else {
            check_comparators(inner, pointer, depth + 1)?;
        }
        pointer.truncate(length);
        Ok(())
    };
    match schema {
        Value::Object(object) => object.iter().try_for_each(|(key, inner)| check(key, inner)),
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(index, inner)| check(&index.to_string(), inner))
        }
        _ => Ok(()),
    }
}
