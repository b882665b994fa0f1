//! Where values come from: the file, what it extends, the command line.

use crate::support::{LEAST, Place, told};
use taper_recipe::{Origin, RecipeError};

fn place() -> Place {
    let place =
        Place::with("extends = \"shared/middle.toml\"\n\n[train]\nseed = 3\n\n[[eval]]\nname = \"own\"\n");
    place.write("shared/middle.toml", "extends = \"../base/base.toml\"\n[train]\nseed = 2\nbatch_size = 2\n[adapter]\n[adapter.rank_pattern]\nq_proj = 2\n");
    place.write(
        "base/base.toml",
        &format!("{LEAST}r = 4\n[adapter.rank_pattern]\nq_proj = 1\nk_proj = 1\n[train]\nseed = 1\nbatch_size = 1\nmax_steps = 1\n[[eval]]\nname = \"one\"\n[[eval]]\nname = \"two\"\n"),
    );
    place.write("base/extra.txt", "");
    place
}

#[test]
fn a_recipe_two_levels_up_fills_in_what_nobody_below_says() {
    let run = place().resolve(&["data.test=x.jsonl", "train.logging_steps=7"]).unwrap();
    let origin = |key: &str| run.origin(key).map(|origin| origin.to_string());
    assert_eq!(run.recipe.train.seed, 3);
    assert_eq!(run.recipe.train.batch_size, 2);
    assert_eq!(run.recipe.train.max_steps, Some(1));
    assert_eq!(run.recipe.adapter.as_ref().unwrap().r, 4);
    assert_eq!(run.recipe.adapter.as_ref().unwrap().rank_pattern["q_proj"], 2);
    assert_eq!(run.recipe.adapter.as_ref().unwrap().rank_pattern["k_proj"], 1);
    assert_eq!(
        run.recipe.eval.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
        ["own"],
        "a list is replaced"
    );
    assert_eq!(origin("train.seed").as_deref(), Some("recipe.toml:4"));
    assert_eq!(origin("train.batch_size").as_deref(), Some("middle.toml:4"));
    assert_eq!(origin("train.max_steps").as_deref(), Some("base.toml:14"));
    assert_eq!(origin("adapter.rank_pattern.q_proj").as_deref(), Some("middle.toml:7"));
    assert_eq!(origin("adapter.rank_pattern.k_proj").as_deref(), Some("base.toml:10"));
    assert_eq!(origin("eval.0.name").as_deref(), Some("recipe.toml:7"));
    assert_eq!(origin("train.logging_steps"), Some(Origin::CommandLine.to_string()));
    assert_eq!(run.origin("train.save_steps"), None);
    assert_eq!(run.location("eval.0.limit").line, Some(6), "a default lies where its table lies");
}

#[test]
fn a_fault_is_told_where_it_stands_and_not_where_it_is_inherited() {
    let place = place();
    place.write(
        "base/base.toml",
        &format!("{LEAST}r = 0\nrr = 1\n[train]\nbatch_size = \"x\"\n[optimizer]\nadam_beta1 = 1.0\n"),
    );
    assert_eq!(
        place.problems(&["data.test=x.jsonl"]),
        [
            "base.toml:7 adapter.r out-of-range: `r` is 0, allowed are 1 to 16384 | 8 to 64 are usual",
            "base.toml:8 adapter.rr unknown-key: unknown key `adapter.rr` | did you mean `r`?",
            "base.toml:12 optimizer.adam_beta1 out-of-range: `adam_beta1` is 1, allowed is 0 to below 1 | 0.9 is usual",
        ]
    );
}

#[test]
fn what_is_extended_must_be_there_and_be_one_path() {
    let missing = Place::with("extends = \"gone.toml\"\n");
    let told = missing.problems(&[]);
    assert!(told.len() == 1 && told[0].starts_with("1 extends extends: cannot read `"), "{told:?}");
    assert!(told[0].contains("gone.toml"), "{told:?}");
    let list = Place::with("schema = 1\nextends = [\"a\"]\n");
    assert_eq!(list.problems(&[]), ["2 extends wrong-type: `extends` is the path of one recipe"]);
    let circle = Place::with("extends = \"b.toml\"\n");
    circle.write("b.toml", "extends = \"./recipe.toml\"\n");
    assert_eq!(
        circle.problems(&[]),
        ["b.toml:1 extends extends-cycle: recipes extend each other without end"]
    );
}

#[test]
fn later_settings_of_the_command_line_go_before_earlier_ones() {
    let run = Place::with(LEAST)
        .resolve(&["train.seed=1", "train.seed=2", "adapter.rank_pattern.q_proj=3"])
        .unwrap();
    assert_eq!(run.recipe.train.seed, 2);
    assert_eq!(run.recipe.adapter.unwrap().rank_pattern["q_proj"], 3);
}

#[test]
fn syntax_is_told_with_its_line_in_the_file_that_has_it() {
    let place = place();
    place.write("shared/middle.toml", "[train]\nseed = 1\nseed = 2\n");
    let Err(RecipeError::Problems(problems)) = place.resolve(&[]) else { panic!("it has an error") };
    let told: Vec<String> = problems.iter().map(told).collect();
    assert!(told[0].starts_with("middle.toml:3 toml-syntax: "), "{told:?}");
}
