//! A recipe that is wrong: all of it is told at once, each fault with its line and its remedy, and nothing is written.

use crate::desk::{Desk, RECIPE, Said};

/// Check and run the recipe: both say the same, and neither leaves anything behind.
fn refused(desk: &Desk, recipe: &str, sets: &[&str]) -> Said {
    desk.write("recipe.toml", recipe);
    let before = desk.files("");
    let flags: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let run = desk.taper(&[&["run", "recipe.toml"], flags.as_slice()].concat()).exits(2);
    let check = desk.taper(&[&["check", "recipe.toml"], flags.as_slice()].concat()).exits(2);
    assert!(check.err.starts_with(run.err.trim_end()), "run says\n{}\ncheck says\n{}", run.err, check.err);
    assert!(run.out.is_empty() && check.out.is_empty());
    let after = desk.files("");
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    run
}

fn snapshot(name: &str, said: &Said) {
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(format!("recipe_errors_{name}"), said.err);
    });
}

#[test]
fn unknown_keys_wrong_types_and_values_out_of_range_are_told_at_once() {
    let recipe = r#"schema = 1
nme = "x"

[model]
base = "base"
learning_rate = 1e-4
dtype = "f23"

[adapter]
rank = 8
r = -1
lora_dropout = 1.5
lora_alpha = "16"

[data]
train = 5
max_lenght = 512
truncation = "wrap"

[train]
batch_size = 2.5
max_steps = 0
seed = 1

[optimiser]
learning_rate = 2

[optimizer]
learning_rate = 7

[schedule]
warmup_ratio = 0.1
warmup_steps = 3

[[eval]]
metrics = ["rouge"]
limt = 3

[gate]
min_exact_match = 90

[export]
formats = ["onnx"]
"#;
    let said = refused(&Desk::new(), recipe, &[]);
    snapshot("all_at_once", &said);
    // However it is worded: these lines have a fault, and no other has.
    let lines = [2, 6, 7, 10, 11, 12, 13, 16, 17, 18, 21, 22, 25, 29, 32, 36, 37, 40, 43];
    let told: Vec<usize> = said
        .err
        .lines()
        .filter_map(|line| line.trim().strip_prefix("--> recipe.toml:")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(told, lines, "{}", said.err);
}

#[test]
fn a_key_in_the_wrong_section_is_told_its_own() {
    let wrong =
        RECIPE.replace("[train]\n", "[train]\nlearning_rate = 1e-3\nmax_length = 3\nmax_new_tokens = 9\n");
    refused(&Desk::new(), &wrong, &[])
        .tells(&[
            "unknown key `train.learning_rate`",
            "recipe.toml:18",
            "`learning_rate` belongs to `[optimizer]`",
        ])
        .tells(&["recipe.toml:19", "`max_length` belongs to `[data]`"])
        .tells(&["recipe.toml:20", "`max_new_tokens` belongs to `[[eval]]`"]);
}

#[test]
fn what_every_recipe_needs_is_asked_for_with_an_example() {
    let said = refused(&Desk::new(), "name = \"x\"\n", &[])
        .tells(&["the recipe has no `schema`", "`schema = 1`"])
        .tells(&["the recipe has no `model.base`", "base = "])
        .tells(&["the recipe has no `data.train`", "train = "]);
    assert_eq!(said.err.matches("recipe.toml").count(), 3, "{}", said.err);
}

#[test]
fn contradictions_between_sections_are_told() {
    let desk = Desk::new();
    let said = |recipe: &str| refused(&desk, recipe, &[]);
    said(&RECIPE.replace("[train]\n", "[train]\nmethod = \"full\"\n")).tells(&[
        "method = \"full\"",
        "recipe.toml:8 `adapter`",
        "remove `[adapter]`",
    ]);
    said(&RECIPE.replace("[adapter]\nr = 8\nlora_alpha = 16\n", ""))
        .tells(&["no `[adapter]`", "help: add `[adapter]`"]);
    said(&RECIPE.replace("min_exact_match_gain", "min_json_fields")).tells(&[
        "`min_json_fields = 0.3` is asked, but no evaluation measures `json_fields`",
        "recipe.toml:31",
    ]);
    said(&RECIPE.replace("[gate]\n", "[gate]\neval = \"held-uot\"\n")).tells(&[
        "no evaluation named `held-uot`",
        "recipe.toml:31",
        "did you mean `held-out`?",
    ]);
    said(&RECIPE.replace("[optimizer]\n", "[schedule]\nwarmup_steps = 60\n[optimizer]\n"))
        .tells(&["the warm-up of 60 steps does not end before the run of 60"]);
}

/// It would be known after the training otherwise.
#[test]
fn full_training_that_shall_export_an_adapter_is_refused_before_it_begins() {
    let full = RECIPE
        .replace("[adapter]\nr = 8\nlora_alpha = 16\n", "")
        .replace("[train]\n", "[train]\nmethod = \"full\"\n");
    refused(&Desk::new(), &full, &[]).tells(&["recipe.toml", "`export.formats", "merged"]);
}

#[test]
fn broken_toml_is_told_with_its_line() {
    let desk = Desk::new();
    refused(&desk, "schema = 1\n[model]\nbase = = 3\n", &[])
        .tells(&["error[toml-syntax]", "--> recipe.toml:3"]);
    refused(&desk, "schema = 1\n[model]\nbase = \"a\"\nbase = \"b\"\n", &[])
        .tells(&["duplicate key", "recipe.toml:4"]);
    refused(&desk, "schema = 1\n\n[model\n", &[]).tells(&["--> recipe.toml:3"]);
}

#[test]
fn recipes_that_extend_each_other_without_end_are_refused() {
    let desk = Desk::new();
    desk.write("other.toml", "extends = \"recipe.toml\"\n");
    refused(&desk, "extends = \"other.toml\"\n", &[]).tells(&["extend each other without end", ".toml"]);
    refused(&desk, "extends = \"recipe.toml\"\n", &[])
        .tells(&["extend each other without end", "recipe.toml"]);
    refused(&desk, "schema = 1\nextends = \"nowhere.toml\"\n", &[]).tells(&["nowhere.toml", "recipe.toml:2"]);
}

#[test]
fn a_fault_in_an_extended_recipe_is_told_by_that_file_and_line() {
    let desk = Desk::new();
    desk.write(
        "common/base.toml",
        RECIPE.replace("max_steps = 60", "max_stps = 60").replace("\"base\"", "\"../base\""),
    );
    refused(&desk, "extends = \"common/base.toml\"\n[train]\nbatch_size = 0\n", &[])
        .tells(&["common/base.toml:18", "did you mean `max_steps`?"])
        .tells(&["`batch_size` is 0", "recipe.toml:3"]);
}

#[test]
fn bad_overrides_are_told_all_at_once_by_what_was_typed() {
    let sets =
        ["train.max_steps", "=3", "train.max_stps=3", "train.batch_size=many", "optimizer.learning_rate=9"];
    let said = refused(&Desk::new(), RECIPE, &sets)
        .tells(&["`--set train.max_steps` has no `=`"])
        .tells(&["`--set =3` names no key"])
        .tells(&["`--set train.max_stps`", "did you mean `max_steps`?"])
        .tells(&["`--set train.batch_size`"])
        .tells(&["`--set optimizer.learning_rate`"]);
    assert_eq!(said.err.matches("error[").count(), sets.len(), "{}", said.err);
}

#[test]
fn an_override_that_could_not_take_effect_is_refused() {
    let desk = Desk::new();
    refused(&desk, RECIPE, &["extends=other.toml"]).tells(&["extends"]);
    refused(&desk, RECIPE, &["eval.5.limit=3"]).tells(&["eval.5.limit"]);
    refused(&desk, RECIPE, &["train.seed.x=3"]).tells(&["train.seed"]);
}

#[test]
fn a_recipe_that_is_not_there_is_told_with_where_recipes_come_from() {
    let desk = Desk::empty();
    let said = desk.taper(&["run", "mine.toml"]).exits(2).tells(&["`mine.toml`", "help:", "taper recipe ls"]);
    assert_eq!(said.err.matches("`mine.toml`").count(), 1, "{}", said.err);
    desk.taper(&["run", "."]).exits(2).tells(&["help:"]);
}

#[test]
fn targets_that_match_nothing_are_told_with_the_nearest_names() {
    let desk = Desk::new();
    desk.taper(&["run", "recipe.toml", "--set", "adapter.target_modules=[\"q_prj\"]"]).exits(2).tells(&[
        "`q_prj`",
        "matches no module",
        "did you mean `q_proj`?",
    ]);
    assert!(!desk.has("runs/colours/checkpoints") && !desk.has("runs/colours/adapter"));
}

#[test]
fn check_gives_the_faults_of_a_recipe_to_scripts_too() {
    let desk = Desk::new();
    desk.write("recipe.toml", RECIPE.replace("max_steps", "max_stps"));
    let report = desk.taper(&["check", "recipe.toml", "--json"]).exits(2).json();
    let problem = &report["problems"][0];
    assert_eq!(report["ready"], false);
    assert_eq!((problem["code"].as_str(), problem["line"].as_u64()), (Some("unknown-key"), Some(18)));
    assert_eq!(problem["hint"], "did you mean `max_steps`?");
}
