//! The form that a client wants an answer to be of, as OpenAI and vLLM say it.

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, shown};
use serde_json::{Map, Value};
use taper_infer::{CompiledGrammar, Grammar};

/// A form, and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) grammar: Grammar,
    pub(crate) param: &'static str,
}

impl Form {
    /// Prepare it; blocks while that takes, some seconds at most.
    pub(crate) fn compile(&self, app: &App) -> Result<CompiledGrammar, ApiError> {
        app.grammars()?.compile(&self.grammar).map_err(|error| ApiError::of_grammar(&error, self.param))
    }
}

/// OpenAI's `response_format`, or one of vLLM's fields for the same.
pub(crate) fn form(fields: &mut Fields<'_>, most_bytes: usize) -> Option<Form> {
    let mut forms = Vec::new();
    forms.extend(response_format(fields, most_bytes).map(|grammar| (grammar, "response_format")));
    if let Some(outputs) = fields.object("structured_outputs") {
        let mut inner = Fields::within(outputs, "structured_outputs");
        let found = structured(&mut inner, ["json", "regex", "choice"], most_bytes);
        forms.extend(found.into_iter().map(|grammar| (grammar, "structured_outputs")));
        if inner.boolean("json_object") == Some(true) {
            forms.push((Grammar::JsonObject, "structured_outputs"));
        }
        for key in ["grammar", "structural_tag"] {
            inner.unserved(key, &[], "");
        }
        fields.absorb(inner);
    }
    let guided = structured(fields, ["guided_json", "guided_regex", "guided_choice"], most_bytes);
    forms.extend(guided.into_iter().map(|grammar| (grammar, "guided_json")));
    if forms.len() > 1 {
        fields.refuse(forms[1].1, "the answer is asked to be of more than one form");
    }
    forms.into_iter().next().map(|(grammar, param)| Form { grammar, param })
}

/// A schema, a regular expression, a list of texts.
fn structured(fields: &mut Fields<'_>, [json, regex, choice]: [&str; 3], most_bytes: usize) -> Vec<Grammar> {
    let mut found = Vec::new();
    if let Some(given) = fields.get(json) {
        // vLLM takes a schema as text too.
        let parsed = given.as_str().and_then(|text| serde_json::from_str(text).ok());
        match checked_schema(parsed.as_ref().unwrap_or(given), most_bytes) {
            Ok(schema) => found.push(Grammar::JsonSchema(schema)),
            Err(why) => fields.refuse(json, format!("`{}` {why}", fields.name(json))),
        }
    }
    if let Some(regex) = fields.text(regex, most_bytes) {
        found.push(Grammar::Regex(regex.to_owned()));
    }
    if fields.get(choice).is_some() {
        found.push(Grammar::Choice(fields.strings(choice, 1024, most_bytes)));
    }
    found
}

fn response_format(fields: &mut Fields<'_>, most_bytes: usize) -> Option<Grammar> {
    let format = fields.object("response_format")?;
    let mut inner = Fields::within(format, "response_format");
    let grammar = match format.get("type").and_then(Value::as_str) {
        Some("text") => None,
        Some("json_object") => Some(Grammar::JsonObject),
        Some("json_schema") => json_schema(format, &mut inner, most_bytes),
        _ => {
            inner.refuse("type", "`response_format.type` must be text, json_object or json_schema");
            None
        }
    };
    fields.absorb(inner);
    grammar
}

fn json_schema(format: &Map<String, Value>, inner: &mut Fields<'_>, most_bytes: usize) -> Option<Grammar> {
    let given = format.get("json_schema").and_then(Value::as_object);
    let Some(schema) = given.and_then(|given| given.get("schema")) else {
        inner.refuse("json_schema", "`response_format.json_schema` must be an object with a `schema`");
        return None;
    };
    match checked_schema(schema, most_bytes) {
        Ok(schema) => Some(Grammar::JsonSchema(schema)),
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

    fn read(object: &Value) -> Result<Option<Grammar>, String> {
        let mut fields = Fields::new(object.as_object().unwrap());
        let form = form(&mut fields, 64);
        fields.finish().map(|()| form.map(|form| form.grammar)).map_err(|e| e.param.unwrap())
    }

    #[test]
    fn a_response_format_is_one_of_three() {
        let read = |format: Value| read(&json!({ "response_format": format }));
        assert_eq!(read(Value::Null), Ok(None));
        assert_eq!(read(json!({ "type": "text" })), Ok(None));
        assert_eq!(read(json!({ "type": "json_object" })), Ok(Some(Grammar::JsonObject)));
        let schema = json!({ "type": "object" });
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        assert_eq!(read(format), Ok(Some(Grammar::JsonSchema(schema))));
        assert_eq!(read(json!({ "type": "xml" })), Err("response_format.type".into()));
        assert_eq!(read(json!("json")), Err("response_format".into()));
        for bad in [json!({}), json!({ "schema": 3 }), json!({ "schema": { "enum": ["x".repeat(64)] } })] {
            let format = json!({ "type": "json_schema", "json_schema": bad });
            assert_eq!(read(format), Err("response_format.json_schema".into()), "{bad}");
        }
    }

    #[test]
    fn vllms_fields_are_read_and_one_form_is_enough() {
        let schema = json!({ "type": "object" });
        for object in [
            json!({ "guided_json": schema }),
            json!({ "guided_json": schema.to_string() }),
            json!({ "structured_outputs": { "json": schema } }),
        ] {
            assert_eq!(read(&object), Ok(Some(Grammar::JsonSchema(schema.clone()))), "{object}");
        }
        assert_eq!(read(&json!({ "guided_regex": "a+" })), Ok(Some(Grammar::Regex("a+".into()))));
        let choice = Grammar::Choice(vec!["a".into(), "b".into()]);
        assert_eq!(read(&json!({ "structured_outputs": { "choice": ["a", "b"] } })), Ok(Some(choice)));
        assert_eq!(
            read(&json!({ "guided_regex": "a", "response_format": { "type": "json_object" } })),
            Err("guided_json".into())
        );
        assert_eq!(
            read(&json!({ "structured_outputs": { "grammar": "root" } })),
            Err("structured_outputs.grammar".into())
        );
        assert_eq!(read(&json!({ "guided_json": 3 })), Err("guided_json".into()));
    }
}
