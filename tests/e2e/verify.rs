//! `taper verify`: what a run says, computed again from what it stored.

use crate::desk::{Desk, questions};

#[test]
fn a_run_is_verified_without_its_base_and_a_changed_word_is_found() {
    let desk = Desk::trained();
    // Another machine has neither base nor data, and no cache.
    let elsewhere = Desk::empty();
    for (name, bytes) in desk.files("runs/colours") {
        elsewhere.write(&format!("stored/{name}"), bytes);
    }
    let said = elsewhere.taper(&["verify", "stored", "--json"]).exits(0).tells(&[
        "verified  eval/results.json",
        "verified  eval/samples.jsonl",
        "verified  what was trained",
        "verified  scores and verdict of `held-out` follow from its 32 responses",
        "The adapter is better than the base",
        "min_exact_match_gain = 0.3",
        "passed",
    ]);
    let json = said.json();
    assert_eq!((json["verified"].as_bool(), json["exit_code"].as_u64()), (Some(true), Some(0)));

    // One wrong answer is made a right one, in the samples alone.
    let samples = elsewhere.read("stored/eval/samples.jsonl");
    let (wrong, line) = samples.lines().enumerate().find(|(_, l)| l.contains("\"exact_match\":0.0")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
    value["candidates"]["adapter"]["output"] = value["expected"].clone();
    let mut lines: Vec<String> = samples.lines().map(str::to_owned).collect();
    lines[wrong] = value.to_string();
    elsewhere.write("stored/eval/samples.jsonl", lines.join("\n"));
    elsewhere.taper(&["verify", "stored"]).exits(100).tells(&[
        "FAILED    eval/samples.jsonl",
        "it was changed after the run",
        "no evidence as it stands",
    ]);
    // Whoever changes the hash with it is found by the scores, whether or not that answer was wrong before.
    elsewhere.write("stored/eval/samples.jsonl", "not json\n");
    elsewhere
        .taper(&["verify", "stored"])
        .exits(100)
        .tells(&["FAILED", "line 1 of the samples is no sample"]);
}

#[test]
fn scores_that_do_not_follow_from_the_responses_are_found_behind_right_hashes() {
    let desk = Desk::trained();
    let results = desk.read("runs/colours/eval/results.json");
    let mut value: serde_json::Value = serde_json::from_str(&results).unwrap();
    value["evaluations"][0]["candidates"][1]["measured"][0]["value"] = 0.99.into();
    desk.write("runs/colours/eval/results.json", serde_json::to_string_pretty(&value).unwrap());
    let hash = taper_hub::Fingerprint::of_file(&desk.path("runs/colours/eval/results.json")).unwrap();
    let mut lock = desk.json("runs/colours/eval/lock.json");
    lock["results"]["eval/results.json"] = hash.as_str().into();
    desk.write("runs/colours/eval/lock.json", lock.to_string());
    desk.taper(&["verify", "runs/colours"]).exits(100).tells(&[
        "verified  eval/results.json",
        "FAILED    scores and verdict of `held-out`",
        "`candidates.1.measured.0.value` is another when computed again",
    ]);
}

#[test]
fn with_a_recipe_its_gates_are_held_and_a_stale_run_is_refused() {
    let desk = Desk::trained();
    let verify = |sets: &[&str]| {
        let mut args = vec!["verify", "runs/colours", "--recipe", "recipe.toml"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        desk.taper(&args)
    };
    verify(&[]).exits(0).tells(&["verified  the recipe is that of the stored run", "verified  its data"]);
    // A threshold is no evidence: changing it asks anew of the same run.
    verify(&["gate.min_exact_match_gain=0.99"]).exits(100).tells(&["min_exact_match_gain = 0.99", "FAILED"]);
    verify(&["gate.require=[\"adapter better than nobody\"]"]).exits(2).tells(&["nobody"]);
    verify(&["train.max_steps=61"]).exits(100).tells(&["stale", "`train` changed since"]);
    desk.write("test.jsonl", questions(200..231));
    verify(&[]).exits(100).tells(&["FAILED    its data", "`test.jsonl` changed since"]);
}

#[test]
fn what_is_no_run_is_told() {
    let desk = Desk::new();
    desk.taper(&["verify", "runs/nothing"]).exits(2).tells(&["lock.json", "help: evaluate again"]);
    desk.write("runs/x/eval/lock.json", "[]");
    desk.taper(&["verify", "runs/x"]).exits(2).tells(&["is no record of an evaluation"]);
}
