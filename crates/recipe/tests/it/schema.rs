//! The JSON Schema that editors read.

use serde_json::Value;
use std::path::Path;
use taper_recipe::{builtin_recipes, json_schema};

#[test]
fn the_committed_schema_is_the_one_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/recipe.schema.json");
    let committed: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    assert!(committed == json_schema(), "recipes/recipe.schema.json is old: run `cargo xtask schema`");
}

#[test]
fn every_section_and_every_key_is_described_and_closed() {
    let schema = json_schema();
    let mut objects = 0;
    let definitions = schema["$defs"].as_object().unwrap().values();
    for object in definitions.chain([&schema]).filter(|s| s.get("properties").is_some()) {
        assert_eq!(object["additionalProperties"], false, "{object:#}");
        for (key, value) in object["properties"].as_object().unwrap() {
            assert!(value["description"].is_string(), "`{key}` is not described");
        }
        objects += 1;
    }
    assert_eq!(objects, 17, "the recipe, its fourteen sections, endpoints and judges");
}

#[test]
fn a_file_that_extends_another_may_leave_out_the_base_and_the_data() {
    let schema = json_schema();
    let needs = |file: &toml_edit::DocumentMut| {
        let has = |list: &Value| {
            list.as_array().unwrap().iter().all(|key| file.contains_key(key.as_str().unwrap()))
        };
        has(&schema["required"])
            && schema["anyOf"].as_array().unwrap().iter().any(|any| has(&any["required"]))
    };
    for recipe in builtin_recipes() {
        assert!(needs(&recipe.text.parse().unwrap()), "{}", recipe.name);
    }
    assert!(!needs(&"schema = 1\n[model]\n".parse().unwrap()));
}
