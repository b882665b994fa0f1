//! Which part of a schema is at fault.

use serde_json::{Map, Value};

/// Keywords whose values are schemas by name.
const NAMED: [&str; 5] = ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];
/// Keywords whose value is a list of schemas, or of old a single one.
const LISTED: [&str; 5] = ["prefixItems", "items", "anyOf", "oneOf", "allOf"];
/// Keywords whose value is a schema.
const SINGLE: [&str; 7] = ["items", "additionalProperties", "additionalItems", "not", "if", "then", "else"];

/// The JSON Pointer of the innermost schema in `root` that by itself is refused with the words with which `root` is.
///
/// `refusal` gives the words; `None` where a schema is taken, or there is no time left.
pub(super) fn innermost(root: &Value, words: &str, refusal: impl Fn(Value) -> Option<String>) -> String {
    let mut place = String::from("#");
    let mut at = root;
    while let Some((step, child)) = children(at)
        .into_iter()
        .find(|(_, child)| refusal(with_definitions(child, root)).is_some_and(|refused| refused == words))
    {
        place.push_str(&step);
        at = child;
    }
    place
}

fn children(schema: &Value) -> Vec<(String, &Value)> {
    let Value::Object(schema) = schema else { return Vec::new() };
    let mut out = Vec::new();
    for (keyword, value) in schema {
        let is = |kind: &[&str]| kind.contains(&keyword.as_str());
        match value {
            Value::Object(map) if is(&NAMED) => {
                out.extend(map.iter().map(|(name, child)| (format!("/{keyword}/{}", escaped(name)), child)));
            }
            Value::Array(list) if is(&LISTED) => {
                out.extend(list.iter().enumerate().map(|(i, child)| (format!("/{keyword}/{i}"), child)));
            }
            Value::Object(_) if is(&SINGLE) => out.push((format!("/{keyword}"), value)),
            _ => {}
        }
    }
    out
}

/// A part with what its references point to.
fn with_definitions(part: &Value, root: &Value) -> Value {
    let mut part = part.clone();
    if let Value::Object(part) = &mut part {
        let none = Map::new();
        let root = root.as_object().unwrap_or(&none);
        for key in ["$schema", "$defs", "definitions"] {
            if let (Some(definitions), None) = (root.get(key), part.get(key)) {
                part.insert(key.into(), definitions.clone());
            }
        }
    }
    part
}

/// RFC 6901.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_innermost_part_with_the_same_fault_is_named() {
        let schema = json!({
            "properties": {
                "good": { "type": "string" },
                "a/b": { "anyOf": [{ "type": "null" }, { "items": { "bad": true } }] },
            },
            "$defs": { "unused": { "bad": false } },
        });
        fn bad(value: &Value) -> bool {
            value == &json!(true)
                || value.as_object().is_some_and(|map| {
                    map.get("bad") == Some(&json!(true))
                        || map.iter().any(|(key, value)| {
                            key != "$defs"
                                && match value {
                                    Value::Array(list) => list.iter().any(bad),
                                    value => bad(value),
                                }
                        })
                })
        }
        let refusal = |schema: Value| bad(&schema).then(|| "no".to_owned());
        assert_eq!(innermost(&schema, "no", refusal), "#/properties/a~1b/anyOf/1/items");
        assert_eq!(innermost(&schema, "no", |_| None), "#");
        assert_eq!(innermost(&json!(false), "no", |_| None), "#");
    }
}
