//! Every key of the schema against its case.

use crate::cases::{Case, Change, cases};
use crate::counted::COUNTED;
use crate::see;
use crate::world::World;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Processes at a time.
const WORKERS: usize = 2;

/// Every key of the schema that is no section, dotted; those of an `[[eval]]` without its number.
fn keys_of_the_schema() -> BTreeSet<String> {
    let schema = taper_recipe::json_schema();
    let mut keys = BTreeSet::new();
    collect(&schema, &schema, "", &mut keys);
    keys
}

fn collect(root: &Value, schema: &Value, key: &str, keys: &mut BTreeSet<String>) {
    let resolved = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let choices = ["anyOf", "oneOf"].into_iter().filter_map(|name| resolved[name].as_array()).flatten();
    let below: Vec<&Value> =
        choices.chain(resolved.get("items")).filter(|inner| inner.get("$ref").is_some()).collect();
    if let Some(properties) = resolved["properties"].as_object() {
        for (name, inner) in properties {
            collect(root, inner, &if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, keys);
        }
    } else if let Some(section) = below.into_iter().find(|inner| is_table(root, inner)) {
        collect(root, section, key, keys);
    } else {
        keys.insert(key.to_owned());
    }
}

fn is_table(root: &Value, schema: &Value) -> bool {
    let target =
        schema["$ref"].as_str().and_then(|reference| root.pointer(reference.trim_start_matches('#')));
    target.is_some_and(|target| target.get("properties").is_some())
}

#[test]
fn every_key_of_the_schema_has_a_case() {
    let keys = keys_of_the_schema();
    let cased: Vec<&str> = cases().iter().map(|case| case.key).chain(COUNTED).collect();
    let cased_once: BTreeSet<String> = cased.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(cased.len(), cased_once.len(), "a key has two cases");
    let without: Vec<_> = keys.difference(&cased_once).collect();
    assert!(without.is_empty(), "keys without a case in tests/recipe_keys/cases.rs: {without:?}");
    let unknown: Vec<_> = cased_once.difference(&keys).collect();
    assert!(unknown.is_empty(), "cases of keys that do not exist: {unknown:?}");
    assert!(keys.len() >= 80, "the walk found only {} keys", keys.len());
}

#[test]
fn every_key_changes_what_the_program_does() {
    let world = World::new();
    let cases = cases();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(what) = held(&world, case) {
                        failures.lock().unwrap().push(what);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} keys fail:\n{}", failures.len(), failures.join("\n"));
}

/// Run a case both ways.
fn held(world: &World, case: &Case) -> Result<(), String> {
    let without = world.run(case, false);
    let with = world.run(case, true);
    let key = case.key;
    for ran in [&without, &with] {
        if !(ran.code == 0 || case.may_end_with.contains(&ran.code)) {
            return Err(format!("`{key}`: {}", ran.all()));
        }
    }
    let (before, after) = ((case.see)(&without), (case.see)(&with));
    if before == Value::Null || after == Value::Null {
        return Err(format!("`{key}`: nothing was seen: {before} and {after}\n{}", with.all()));
    }
    if before == after {
        return Err(format!("`{key}` changes nothing: {before} both times\n{}", with.all()));
    }
    Ok(())
}

#[test]
fn a_key_that_changes_nothing_is_found() {
    let world = World::new();
    let ignored = cases().into_iter().find(|case| case.key == "train.self_test").unwrap();
    assert_eq!(held(&world, &ignored), Ok(()));
    let what = held(&world, &Case { see: see::weights, ..ignored }).unwrap_err();
    assert!(what.starts_with("`train.self_test` changes nothing"), "{what}");
    let what = held(&world, &Case { see: see::evaluations, ..ignored }).unwrap_err();
    assert!(what.starts_with("`train.self_test`: nothing was seen"), "{what}");
    let what = held(&world, &Case { change: Change::Set("3"), ..ignored }).unwrap_err();
    assert!(what.starts_with("`train.self_test`: exit code 2"), "{what}");
}

#[test]
fn an_adapter_and_the_commands_that_use_it_name_the_base_and_its_revision() {
    let world = World::new();
    let revision = cases().into_iter().find(|case| case.key == "model.revision").unwrap();
    for beside in [&["model.base=owner/tiny"], &["model.base=owner/tiny@v1"]] {
        let ran = world.run(&Case { verb: "run", beside, may_end_with: &[], ..revision }, true);
        assert_eq!(ran.code, 0, "{}", ran.all());
        let config = taper_testkit::read_json(&ran.folder.join("runs/recipe/adapter/adapter_config.json"));
        assert_eq!(config["base_model_name_or_path"], "owner/tiny");
        assert_eq!(config["revision"], "v1");
        assert!(ran.err.contains("taper generate --model owner/tiny@v1 --adapter "), "{}", ran.all());
    }
}
