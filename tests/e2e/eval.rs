//! `taper eval`: what a run trained, measured again from the disk.

use crate::desk::{Desk, RECIPE, questions};

#[test]
fn measured_again_from_the_disk_the_numbers_are_those_of_the_run() {
    let desk = Desk::trained();
    let during = (desk.json("runs/colours/eval/results.json"), desk.read("runs/colours/eval/samples.jsonl"));
    let adapter = desk.files("runs/colours/adapter");
    fs_err::remove_dir_all(desk.path("runs/colours/eval")).unwrap();
    let said = desk.taper(&["eval", "recipe.toml", "--json"]).exits(0).tells(&[
        "candidate=base",
        "candidate=adapter",
        "better",
    ]);
    assert_eq!(said.json(), during.0);
    assert_eq!(desk.json("runs/colours/eval/results.json"), during.0);
    assert_eq!(desk.read("runs/colours/eval/samples.jsonl"), during.1);
    assert!(desk.files("runs/colours/adapter").keys().eq(adapter.keys()));
}

#[test]
fn other_data_can_be_measured_without_training_again() {
    let desk = Desk::trained();
    let resolved = desk.read("runs/colours/resolved.toml");
    desk.write("more.jsonl", questions(300..316));
    desk.taper(&["eval", "recipe.toml", "--set", "eval.0.data=more.jsonl", "--set", "eval.0.name=more"])
        .exits(0)
        .tells(&["eval=\"more\" candidate=adapter n=16"]);
    assert_eq!(desk.read("runs/colours/resolved.toml"), resolved, "the record of the training stays");
}

#[test]
fn a_gate_is_held_here_too() {
    let desk = Desk::new();
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=1"]).exits(0);
    desk.taper(&["eval", "recipe.toml", "--set", "gate.min_exact_match=1.0"]).exits(100).tells(&["FAILED"]);
}

#[test]
fn a_recipe_without_evaluations_ends_with_4() {
    let desk = Desk::new();
    let recipe = &RECIPE[..RECIPE.find("[[eval]]").unwrap()];
    desk.write("recipe.toml", recipe);
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=1"]).exits(0);
    desk.taper(&["eval", "recipe.toml"]).exits(4).tells(&["no `[[eval]]`", "help:"]);
}

#[test]
fn before_a_training_there_is_nothing_to_measure() {
    let desk = Desk::new();
    desk.taper(&["eval", "recipe.toml"])
        .exits(2)
        .tells(&["nothing has been trained yet", "help: train first: taper train recipe.toml"])
        .never_tells("candidate=base");
    assert!(!desk.has("runs"));
}
