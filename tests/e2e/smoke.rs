//! `taper smoke`: what passes, what fails, what is left alone.

use crate::desk::{Desk, RECIPE, Said, questions, said, wait_until};

const FOLDER: &str = "runs/colours-smoke";

/// A template that does not end a turn.
const NEVER_ENDS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The recipe with a `[smoke]` of these lines.
fn with_smoke(lines: &str) -> String {
    format!("{RECIPE}\n[smoke]\nmax_steps = 6\n{lines}\n")
}

fn smoke(desk: &Desk, recipe: &str, flags: &[&str]) -> Said {
    desk.write("recipe.toml", recipe);
    desk.taper(&[&["smoke", "recipe.toml"], flags].concat())
}

/// The line that is printed to be put into the recipe.
fn golden_line(said: &Said) -> String {
    let line = said.err.lines().find(|line| line.trim().starts_with("golden_loss = "));
    line.unwrap_or_else(|| panic!("no line to add in\n{}", said.err)).trim().to_owned()
}

#[test]
fn every_check_is_told_and_the_golden_loss_that_is_printed_passes() {
    let desk = Desk::new();
    let first = smoke(&desk, &with_smoke("limit = 3"), &["--json"]).exits(0).tells(&[
        "smoke recipe and data: passed: train 96 examples",
        "smoke training: passed: 6 steps",
        "interrupted after step 3, as asked; going on from the disk",
        "event=start step=3/6",
        "smoke resume equality: passed: adapter and last checkpoint are the same bytes",
        "smoke golden loss: not compared: the recipe has none; the loss at step 6 is",
        "smoke evaluation: passed: answered and scored: held-out; gates are not held",
        "smoke colours-smoke: passed",
    ]);
    let record = first.json();
    assert_eq!(record, desk.json(&format!("{FOLDER}/smoke.json")));
    assert_eq!((&record["passed"], &record["steps"]), (&true.into(), &6.into()));
    let statuses: Vec<_> =
        record["checks"].as_array().unwrap().iter().map(|c| c["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["passed", "passed", "passed", "not_compared", "passed"]);
    let junit = desk.read(&format!("{FOLDER}/junit.xml"));
    assert!(junit.contains("tests=\"5\" skipped=\"1\" failures=\"0\" errors=\"0\""), "{junit}");
    assert_eq!(desk.json_lines(&format!("{FOLDER}/eval/samples.jsonl")).len(), 3);
    let report = desk.read(&format!("{FOLDER}/report.md"));
    assert!(report.contains("smoke tier") && !report.contains("min_exact_match_gain"), "{report}");
    // The line that was printed, as it stands; the folder is made anew.
    let golden = golden_line(&first);
    let again = smoke(&desk, &with_smoke(&golden), &["--json"])
        .exits(0)
        .tells(&["smoke golden loss: passed: expected"]);
    assert_eq!(again.json()["loss"], record["loss"]);
}

#[test]
fn another_loss_than_the_golden_one_fails_and_both_are_told() {
    let desk = Desk::new();
    desk.write("recipe.toml", with_smoke("golden_loss = 9.5\ntolerance = 0.05"));
    let args = ["smoke", "recipe.toml"];
    let mut command = desk.command(&args);
    command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", desk.path("summary.md"));
    let told = said(command.output().unwrap(), &args).exits(100).tells(&[
        "smoke resume equality: passed",
        "smoke golden loss: FAILED: expected 9.5 within 5e-2 of it, found ",
        "smoke evaluation: passed",
        "::error title=colours-smoke%3A golden loss::expected 9.5",
        "smoke colours-smoke: FAILED",
        "(exit code 100)",
    ]);
    let record = desk.json(&format!("{FOLDER}/smoke.json"));
    let found = record["loss"].as_f64().unwrap();
    assert!(told.err.contains(&format!("found {found:.3}")[..10]), "{}", told.err);
    assert_eq!(record["passed"], false);
    assert!(desk.read(&format!("{FOLDER}/junit.xml")).contains("<failure message=\"expected 9.5"));
    assert!(desk.read("summary.md").contains("| golden loss | FAILED | expected 9.5"));
}

#[test]
fn a_setting_that_changes_the_training_is_seen_by_the_golden_loss() {
    let desk = Desk::new();
    let golden = golden_line(&smoke(&desk, &with_smoke(""), &[]).exits(0));
    let recipe = with_smoke(&golden);
    smoke(&desk, &recipe, &["--set", "train.seed=7"]).exits(100).tells(&["golden loss: FAILED"]);
    smoke(&desk, &recipe, &["--set", "data.supervise=all"]).exits(100).tells(&["golden loss: FAILED"]);
}

#[test]
fn what_is_wrong_with_recipe_or_data_ends_with_2_before_anything_is_written() {
    let desk = Desk::new();
    smoke(&desk, &with_smoke("max_stps = 3"), &[])
        .exits(2)
        .tells(&["unknown key `smoke.max_stps`", "`max_steps`"]);
    smoke(&desk, &with_smoke("tolerance = 2.0\nlimit = 0"), &[])
        .exits(2)
        .tells(&["`tolerance` is 2", "`limit` is 0"]);
    smoke(&desk, &with_smoke(""), &["--set", "train.max_steps=3"])
        .exits(2)
        .tells(&["`--set train.max_steps` has no effect"]);
    let broken = format!("{}{{\"messages\": 1\n", questions(0..8));
    desk.write("train.jsonl", broken);
    smoke(&desk, &with_smoke(""), &[]).exits(2).tells(&["train.jsonl:9"]);
    // The mask: a template that writes the end of a turn where it is not learned.
    desk.write("train.jsonl", questions(0..96));
    desk.write("chat.jinja", NEVER_ENDS);
    smoke(&desk, &with_smoke(""), &["--set", "model.chat_template=chat.jinja"])
        .exits(2)
        .tells(&["error[stop-token-not-supervised]"]);
    // The overlap.
    desk.write("train.jsonl", questions(190..230));
    smoke(&desk, &with_smoke(""), &[]).exits(2).tells(&["error[split-overlap]"]);
    assert!(!desk.has("runs"));
}

#[test]
fn a_small_base_stands_for_the_real_one_whose_revision_is_not_its_own() {
    let desk = Desk::new();
    let real = "base = \"owner/real\"\nrevision = \"abc\"";
    let recipe = with_smoke("base = \"base\"").replacen("base = \"base\"", real, 1);
    smoke(&desk, &recipe, &["--offline"]).exits(0).tells(&["base   base", "smoke training: passed"]);
    let resolved = desk.read(&format!("{FOLDER}/resolved.toml"));
    assert!(
        resolved.contains("max_steps = 6  # --set") && resolved.contains("# revision: not set"),
        "{resolved}"
    );
    smoke(&desk, &with_smoke("base = \"no-model\""), &[]).exits(2).tells(&["smoke.base"]);
}

#[test]
fn results_that_are_somebodys_are_left_alone() {
    let desk = Desk::new();
    desk.write("runs/mine/adapter/adapter_model.safetensors", "kept");
    smoke(&desk, &with_smoke(""), &["--out", "runs/mine"])
        .exits(2)
        .tells(&["`runs/mine` is not the folder of a smoke run", "--out"]);
    assert_eq!(desk.read("runs/mine/adapter/adapter_model.safetensors"), "kept");
}

#[test]
#[cfg(unix)]
fn an_interrupted_smoke_run_has_not_passed() {
    let desk = Desk::new();
    desk.write("recipe.toml", with_smoke("").replace("max_steps = 6", "max_steps = 100000"));
    let child = desk.start(&["smoke", "recipe.toml"]);
    let metrics = desk.path(&format!("{FOLDER}/metrics.jsonl"));
    wait_until("a first line", || {
        fs_err::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 0)
    });
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    said(child.wait_with_output().unwrap(), &["smoke"]).exits(130).tells(&["begins anew each time"]);
    assert!(desk.json(&format!("{FOLDER}/smoke.json"))["passed"].is_null());
    assert!(!desk.has(&format!("{FOLDER}/junit.xml")));
}

#[test]
fn full_training_is_held_to_the_same() {
    let desk = Desk::new();
    let full = with_smoke("")
        .replace("[adapter]\nr = 8\nlora_alpha = 16\n", "")
        .replace("[train]\n", "[train]\nmethod = \"full\"\n")
        .replace("formats = [\"peft\", \"merged\"]", "formats = [\"merged\"]");
    smoke(&desk, &full, &[])
        .exits(0)
        .tells(&["resume equality: passed: merged and last checkpoint are the same bytes"]);
}
