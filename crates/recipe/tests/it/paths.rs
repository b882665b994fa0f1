//! Paths are relative to the file that says them; resolved, they hold from the current folder.

use crate::support::{LEAST, Place};
use std::path::Path;
use taper_data::PathList;

/// The paths of a list as strings.
fn texts(list: &PathList) -> Vec<String> {
    list.paths().iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn inherited_paths_stay_relative_to_the_recipe_that_says_them() {
    let place = Place::with(
        "extends = \"up/there/base.toml\"\n[data]\ntest = [\"t1.jsonl\", \"./sub/../t2.jsonl\"]\n[[eval]]\ndata = \"e.jsonl\"\n",
    );
    place.write(
        "up/there/base.toml",
        "schema = 1\n[adapter]\n[model]\nbase = \"../base\"\nchat_template = \"chat.jinja\"\n[data]\ntrain = \"../train.jsonl\"\nvalid = \"/abs/v.jsonl\"\n",
    );
    let here = place.path();
    let recipe = place.resolve(&[]).unwrap().recipe;
    let at = |name: &str| here.join(name).to_string_lossy().into_owned();
    assert_eq!(recipe.model.base, at("up/base"));
    assert_eq!(recipe.model.chat_template.unwrap(), here.join("up/there/chat.jinja"));
    assert_eq!(texts(&recipe.data.train), [at("up/train.jsonl")]);
    assert_eq!(texts(&recipe.data.valid), ["/abs/v.jsonl"]);
    assert_eq!(texts(&recipe.data.test), [at("t1.jsonl"), at("t2.jsonl")]);
    assert_eq!(texts(&recipe.eval[0].data), [at("e.jsonl")]);
}

#[test]
fn paths_of_the_command_line_are_relative_to_where_it_runs() {
    let here = std::env::current_dir().unwrap();
    let place = Place::with(LEAST);
    let sets =
        ["model.base=./base", "data.train=[\"a.jsonl\", \"b/c.jsonl\"]", "model.chat_template=x.jinja"];
    let recipe = place.resolve(&sets).unwrap().recipe;
    assert_eq!(texts(&recipe.data.train), ["a.jsonl", "b/c.jsonl"]);
    assert_eq!(recipe.model.chat_template.unwrap(), Path::new("x.jinja"));
    // What is not there must not be taken for a hub id.
    assert_eq!(Path::new(&recipe.model.base), here.join("base"));
    // A folder that is there needs no `./`.
    assert_eq!(place.resolve(&["model.base=./src"]).unwrap().recipe.model.base, "src");
    assert_eq!(place.resolve(&["model.base=src"]).unwrap().recipe.model.base, "src");
}

#[test]
fn a_hub_id_stays_one_unless_there_is_such_a_folder() {
    let place = Place::with(LEAST);
    assert_eq!(place.resolve(&[]).unwrap().recipe.model.base, "owner/name");
    assert_eq!(place.resolve(&["model.base=owner/name@v1"]).unwrap().recipe.model.base, "owner/name@v1");
    place.write("owner/name/config.json", "{}");
    assert_eq!(Path::new(&place.resolve(&[]).unwrap().recipe.model.base), place.path().join("owner/name"));
    let deep = Place::with(&LEAST.replace("owner/name", "models/tiny/base"));
    let base = deep.resolve(&[]).unwrap().recipe.model.base;
    assert_eq!(Path::new(&base), deep.path().join("models/tiny/base"), "three segments are no hub id");
}

#[test]
fn a_base_that_is_no_model_is_told_with_its_line() {
    let place = Place::with(&LEAST.replace("owner/name", "gpt2"));
    let told = place.problems(&[]);
    assert!(told.len() == 1 && told[0].starts_with("3 model.base model: "), "{told:?}");
    let file = Place::with(&LEAST.replace("owner/name", "x.gguf"));
    let base = file.resolve(&[]).unwrap().recipe.model.base;
    assert_eq!(Path::new(&base), file.path().join("x.gguf"), "a GGUF file is relative to the recipe too");
    let folder = Place::with(&LEAST.replace("owner/name\"", "./base\"\nrevision = \"main\""));
    let told = folder.problems(&[]);
    assert!(told.len() == 1 && told[0].starts_with("4 model.revision model: "), "{told:?}");
}
