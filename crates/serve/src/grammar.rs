//! What an answer is held to while it is written: the place where constrained decoding is plugged in.

use crate::error::ApiError;
use crate::fields::{Fields, shown};
use serde_json::{Map, Value};

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema allows.
    JsonSchema(Value),
}

/// The grammar for a constraint.
// TODO(merge): `GrammarFactory::json_object()` and `json_schema(&Value)` go here, and the result into `ServiceRequest::grammar`.
pub(crate) fn grammar_of(constraint: &Constraint, param: &str) -> Result<(), ApiError> {
    let what = match constraint {
        Constraint::JsonObject => "answers held to JSON",
        Constraint::JsonSchema(_) => "answers held to a JSON schema",
    };
    Err(ApiError::unsupported(param, format!("{what} are not supported by this build")))
}

/// OpenAI's `response_format`.
pub(crate) fn response_format(fields: &mut Fields<'_>, most_bytes: usize) -> Option<Constraint> {
    let format = fields.object("response_format")?;
    let mut inner = Fields::within(format, "response_format");
    let constraint = match format.get("type").and_then(Value::as_str) {
        Some("text") => None,
        Some("json_object") => Some(Constraint::JsonObject),
        Some("json_schema") => json_schema(format, &mut inner, most_bytes),
        _ => {
            inner.refuse("type", "`response_format.type` must be text, json_object or json_schema");
            None
        }
    };
    fields.absorb(inner);
    constraint
}

fn json_schema(format: &Map<String, Value>, inner: &mut Fields<'_>, most_bytes: usize) -> Option<Constraint> {
    let given = format.get("json_schema").and_then(Value::as_object);
    let Some(schema) = given.and_then(|given| given.get("schema")) else {
        inner.refuse("json_schema", "`response_format.json_schema` must be an object with a `schema`");
        return None;
    };
    match checked_schema(schema, most_bytes) {
        Ok(schema) => Some(Constraint::JsonSchema(schema)),
        Err(why) => {
            inner.refuse("json_schema", format!("`response_format.json_schema.schema` {why}"));
            None
        }
    }
}

/// A schema within the limits, or what is wrong with it.
pub(crate) fn checked_schema(schema: &Value, most_bytes: usize) -> Result<Value, String> {
    if !schema.is_object() {
        return Err(format!("must be an object, not {}", shown(schema)));
    }
    if schema.to_string().len() > most_bytes {
        return Err(format!("is larger than {most_bytes} bytes"));
    }
    Ok(schema.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(format: Value) -> Result<Option<Constraint>, String> {
        let object = json!({ "response_format": format });
        let mut fields = Fields::new(object.as_object().unwrap());
        let constraint = response_format(&mut fields, 64);
        fields.finish().map(|()| constraint).map_err(|e| e.param.unwrap())
    }

    #[test]
    fn a_response_format_is_one_of_three() {
        assert_eq!(read(Value::Null), Ok(None));
        assert_eq!(read(json!({ "type": "text" })), Ok(None));
        assert_eq!(read(json!({ "type": "json_object" })), Ok(Some(Constraint::JsonObject)));
        let schema = json!({ "type": "object" });
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        assert_eq!(read(format), Ok(Some(Constraint::JsonSchema(schema))));
        assert_eq!(read(json!({ "type": "xml" })), Err("response_format.type".into()));
        assert_eq!(read(json!("json")), Err("response_format".into()));
        for bad in [json!({}), json!({ "schema": 3 }), json!({ "schema": { "enum": ["x".repeat(64)] } })] {
            let format = json!({ "type": "json_schema", "json_schema": bad });
            assert_eq!(read(format), Err("response_format.json_schema".into()), "{bad}");
        }
    }
}
