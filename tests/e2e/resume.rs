//! A run that is killed at any instant and resumed is the uninterrupted run, byte for byte (invariant 4), and no reader ever sees half a
//! file (invariant 9).

use crate::desk::{ADAPTER, Desk, RECIPE, Said, said, wait_until};
use serde_json::Value;
use std::process::Command;

/// Long enough to be killed in the middle; dropout and the best checkpoint are things that a resumed run can get wrong.
fn long_recipe() -> String {
    RECIPE
        .replace("max_steps = 60", "max_steps = 240\nlogging_steps = 1")
        .replace("eval_steps = 20", "eval_steps = 30")
        .replace("save_steps = 20", "save_steps = 7")
        .replace("lora_alpha = 16", "lora_alpha = 16\nlora_dropout = 0.1")
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("recipe.toml", long_recipe());
    desk
}

fn lines(desk: &Desk) -> usize {
    fs_err::read_to_string(desk.path("runs/colours/metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Begin or go on, and kill -9 once `instant` has come; whether the kill came before the end.
fn killed(desk: &Desk, args: &[&str], what: &str, instant: impl FnMut() -> bool) -> bool {
    let mut child = desk.start(args);
    wait_until(what, instant);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    // On a busy machine the run may have been faster than we were.
    let code = output.status.code();
    assert!(matches!(code, None | Some(0)), "{code:?}: {}", String::from_utf8_lossy(&output.stderr));
    whole(desk);
    code.is_none()
}

/// Everything under its final name can be read to its end.
fn whole(desk: &Desk) {
    for (name, bytes) in desk.files("runs/colours") {
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        if !hidden && name.ends_with(".json") {
            assert!(serde_json::from_slice::<Value>(&bytes).is_ok(), "half of `{name}`");
        }
        if !hidden && name.ends_with(".safetensors") {
            assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok(), "half of `{name}`");
        }
        assert!(hidden || !name.ends_with(".tmp"), "`{name}` is no final file");
    }
}

/// Lines of the log without what a clock says.
fn timeless(desk: &Desk) -> Vec<Value> {
    let mut lines = desk.json_lines("runs/colours/metrics.jsonl");
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("tokens_per_second");
    }
    lines
}

fn resume(desk: &Desk) -> Said {
    desk.taper(&["run", "recipe.toml", "--resume"])
}

#[test]
fn a_run_killed_at_many_instants_ends_with_the_same_bytes() {
    let (one, many) = (desk(), desk());
    one.taper(&["run", "recipe.toml"]).exits(0);
    let run = ["run", "recipe.toml"];
    let resume_args = ["run", "recipe.toml", "--resume"];
    let folder = many.path("runs/colours");
    let mut kills = 0;
    kills += u32::from(killed(&many, &run, "the folder", || folder.join("resolved.toml").exists()));
    kills += u32::from(killed(&many, &resume_args, "the first lines", || lines(&many) > 2));
    let first = || folder.join("checkpoints").exists();
    kills += u32::from(killed(&many, &resume_args, "the first checkpoint", first));
    for target in [40, 41, 95, 160] {
        kills += u32::from(killed(&many, &resume_args, "more lines", || lines(&many) > target));
    }
    let last = || folder.join("checkpoints/step-240").exists();
    kills += u32::from(killed(&many, &resume_args, "the last checkpoint", last));
    kills += u32::from(killed(&many, &resume_args, "the adapter", || folder.join("adapter").exists()));
    assert!(kills >= 5, "only {kills} of 9 kills came in time");
    resume(&many).exits(0).tells(&["event=start", "exit code 0"]);
    whole(&many);
    assert!(many.bytes(ADAPTER) == one.bytes(ADAPTER), "the adapters differ");
    assert_eq!(timeless(&many), timeless(&one));
    assert_eq!(many.json("runs/colours/eval/results.json"), one.json("runs/colours/eval/results.json"));
    let (checkpoints, expected) =
        (many.files("runs/colours/checkpoints"), one.files("runs/colours/checkpoints"));
    assert_eq!(checkpoints.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(checkpoints[&name] == bytes, "`{name}` differs");
    }
}

#[test]
fn a_run_killed_at_once_can_be_resumed_or_begun() {
    let desk = desk();
    let mut child = desk.start(&["run", "recipe.toml"]);
    child.kill().unwrap();
    child.wait_with_output().unwrap();
    if !desk.has("runs") {
        // Nothing was begun: there is nothing to resume, and the hint says what to do.
        resume(&desk).exits(2).tells(&["no complete checkpoint", "help: start the run without `--resume`"]);
        assert!(!desk.has("runs"));
    }
    killed(&desk, &["run", "recipe.toml"], "the folder", || desk.has("runs/colours/resolved.toml"));
    resume(&desk).exits(0).tells(&["beginning at step 1", "event=start step=0/240"]);
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_a_checkpoint_and_prints_the_command_that_goes_on() {
    let (one, two) = (desk(), desk());
    let args = ["--set", "train.max_grad_norm=0.9", "--out", "runs/it's here"];
    one.taper(&[&["run", "recipe.toml"], args.as_slice()].concat()).exits(0);
    let child = two.start(&[&["run", "recipe.toml"], args.as_slice()].concat());
    wait_until("a few steps", || {
        fs_err::read_to_string(two.path("runs/it's here/metrics.jsonl"))
            .is_ok_and(|text| text.lines().count() > 9)
    });
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let told = said(child.wait_with_output().unwrap(), &["run"]).exits(130).tells(&[
        "interrupted: ending at the next step",
        "event=checkpoint",
        "To go on:",
    ]);
    let command = told.err.lines().last().unwrap().trim();
    assert!(command.starts_with("taper run recipe.toml --resume "), "{command}");
    let step =
        two.files("runs/it's here/checkpoints").keys().any(|name| name.ends_with("trainer_state.json"));
    assert!(step, "no checkpoint");
    // The very command, in a shell.
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_taper")).parent().unwrap();
    let path = std::env::join_paths(
        [binary.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let output = two.program("sh", &["-c", command]).env("PATH", path).output().unwrap();
    said(output, &[command]).exits(0).tells(&["event=end step=240/240"]);
    let adapter = "runs/it's here/adapter/adapter_model.safetensors";
    assert!(two.bytes(adapter) == one.bytes(adapter), "the adapters differ");
}

#[test]
fn a_changed_recipe_is_not_gone_on_with_and_told_by_what_differs() {
    let desk = Desk::new();
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=20"]).exits(0);
    let before = desk.files("runs");
    for (set, told) in [
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate` was `0.01`, is `0.001`"),
        ("train.seed=1", "seed"),
        ("train.max_steps=40", "train.max_steps` was `20`, is `40`"),
        ("train.batch_size=4", "train.batch_size` was `8`, is `4`"),
        ("adapter.r=4", "adapter.r` was `8`, is `4`"),
        ("data.supervise=all", "data"),
        ("data.valid=test.jsonl", "validation data"),
        ("data.train=test.jsonl", "data"),
        ("model.dtype=bf16", "model.dtype"),
    ] {
        let flags = [
            "train",
            "recipe.toml",
            "--resume",
            "--set",
            "train.max_steps=20",
            "--set",
            "data.test=[]",
            "--set",
            "eval=[]",
            "--set",
            "gate={}",
            "--set",
            set,
        ];
        desk.taper(&flags).exits(2).tells(&["belongs to another run", told, "help:"]);
        assert!(desk.files("runs") == before, "{set}: a refused run wrote into the folder");
    }
    let other = taper_testkit::TinySpec { seed: 9, ..crate::desk::spec() };
    taper_testkit::tiny_checkpoint(&desk.path("base"), &other);
    desk.taper(&["train", "recipe.toml", "--resume", "--set", "train.max_steps=20"])
        .exits(2)
        .tells(&["belongs to another run", "the base was"]);
}

#[test]
fn a_finished_run_can_be_resumed_and_stays_as_it_is() {
    let desk = Desk::trained();
    let before = desk.bytes(ADAPTER);
    desk.taper(&["run", "recipe.toml", "--resume"])
        .exits(0)
        .tells(&["event=start step=60/60", "exit code 0"]);
    assert!(desk.bytes(ADAPTER) == before);
}

#[test]
fn resume_in_a_folder_without_a_run_is_told() {
    let desk = Desk::new();
    desk.taper(&["run", "recipe.toml", "--resume", "--out", "elsewhere"]).exits(2).tells(&[
        "no complete checkpoint",
        "--> elsewhere",
        "help:",
    ]);
    assert!(!desk.has("elsewhere"));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    let (one, two) = (desk(), desk());
    one.taper(&["train", "recipe.toml", "--set", "train.save_total_limit=99"]).exits(0);
    two.taper(&["train", "recipe.toml", "--set", "train.save_total_limit=99"]).exits(0);
    fs_err::remove_dir_all(two.path("runs/colours/adapter")).unwrap();
    two.write("runs/colours/checkpoints/step-240/optimizer.safetensors", "short");
    fs_err::remove_file(two.path("runs/colours/checkpoints/step-238/trainer_state.json")).unwrap();
    two.taper(&["train", "recipe.toml", "--resume", "--set", "train.save_total_limit=99"])
        .exits(0)
        .tells(&["event=start step=231/240"]);
    assert!(two.bytes(ADAPTER) == one.bytes(ADAPTER), "the adapters differ");
}
