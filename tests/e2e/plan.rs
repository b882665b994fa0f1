//! `taper plan`: what a run will take, without weights; with `--probe` held against two real steps.

use crate::desk::{Desk, RECIPE, row, said, spec};
use serde_json::Value;
use std::path::Path;

fn plan(desk: &Desk, more: &[&str]) -> Value {
    let args: Vec<&str> = ["plan", "recipe.toml", "--json"].iter().chain(more).copied().collect();
    desk.taper(&args).exits(0).json()
}

fn peak(plan: &Value) -> u64 {
    plan["memory"]["peak_bytes"].as_u64().unwrap()
}

fn cause(plan: &Value, phase: &str, cause: &str) -> u64 {
    let phases = plan["memory"]["phases"].as_array().unwrap();
    phases.iter().find(|p| p["name"] == phase).unwrap()["by_cause"][cause].as_u64().unwrap()
}

#[test]
fn a_plan_states_parameters_steps_and_bytes_without_weights() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    let plan = plan(&desk, &[]);
    let spec = spec();
    let (h, i) = (spec.hidden_size, spec.intermediate_size);
    let keys = h * spec.num_key_value_heads / spec.num_attention_heads;
    // A and B of q, k, v, o, gate, up and down, r 8.
    let a_and_b = 8 * ((h + h) * 2 + (h + keys) * 2 + (h + i) * 3) * spec.num_hidden_layers;
    assert_eq!(plan["trained_parameters"], a_and_b);
    assert_eq!(plan["steps"], 60);
    assert_eq!(plan["steps_per_epoch"], 12);
    assert_eq!(plan["longest_batch"]["examples"], 8);
    assert!(plan["longest_batch"]["tokens"].as_f64() >= plan["tokens_per_step"].as_f64());
    for (name, bytes) in [("parameters", 4), ("gradients", 4), ("optimizer", 8)] {
        assert_eq!(cause(&plan, "step", name), bytes * a_and_b as u64, "{name}");
    }
    assert_eq!(plan["memory"]["fits"], true);
    assert_eq!(plan["probe"], Value::Null);
    // Six wins of 32 are the least that McNemar's test takes for more than chance.
    assert_eq!(plan["evaluations"][0]["metrics"]["exact_match"]["least_gain"], 6.0 / 32.0);
    desk.taper(&["plan", "recipe.toml"])
        .exits(0)
        .tells(&["parameters  ", "trained (", "60 in all, 12 an epoch", "8 examples", "at its peak"])
        .tells(&[
            "frozen weights in f32",
            "it fits",
            "resolves    held-out, exact_match: 32 rows",
            "`--probe`",
        ]);
    assert!(!desk.has("runs"));
}

#[test]
fn settings_change_the_plan_as_they_change_the_run() {
    let desk = Desk::new();
    let base = plan(&desk, &[]);
    let with = |set: &str| plan(&desk, &["--set", set]);
    let kept = cause(&base, "step", "activations");
    assert!(cause(&with("train.gradient_checkpointing=true"), "step", "activations") < kept);
    assert!(cause(&with("train.batch_size=2"), "step", "activations") < kept / 2);
    assert_eq!(cause(&with("model.dtype=bf16"), "step", "weights") * 2, {
        let norms = 4 * (2 * spec().num_hidden_layers + 1) as u64 * spec().hidden_size as u64;
        cause(&base, "step", "weights") + norms
    });
    // The peak itself has what the process holds just now, which a few adapters do not stand out of.
    let wide = with("adapter.r=64");
    assert!(cause(&wide, "step", "activations") > kept);
    assert!(cause(&wide, "step", "optimizer") > cause(&base, "step", "optimizer"));
}

#[test]
fn a_probe_makes_two_real_steps_and_leaves_no_file() {
    let desk = Desk::new();
    let before = desk.files(".");
    let plan = plan(&desk, &["--probe"]);
    let probe = &plan["probe"];
    assert!(probe["seconds_per_step"].as_f64().unwrap() > 0.0);
    assert!(probe["estimated_seconds"].as_f64().unwrap() > 0.0);
    assert!(probe["predicted_bytes"].as_u64().unwrap() > 0);
    if cfg!(target_os = "linux") {
        assert!(probe["measured_bytes"].as_u64().unwrap() > 1 << 20);
    }
    desk.taper(&["plan", "recipe.toml", "--probe"]).exits(0).tells(&["probe       planned", "tokens/s"]);
    assert!(desk.files(".") == before, "files were left behind");
}

#[test]
fn a_probe_without_weights_says_what_is_missing() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    desk.taper(&["plan", "recipe.toml", "--probe"]).exits(2).tells(&["no weights", "help:"]);
}

#[test]
fn what_is_wrong_with_the_recipe_is_told_in_place_of_a_plan() {
    let desk = Desk::new();
    let refused = |set: &str, told: &str| {
        let said =
            desk.taper(&["plan", "recipe.toml", "--set", set]).exits(2).tells(&[told]).tells(&["help:"]);
        assert_eq!(said.out, "");
    };
    refused("adapter.target_modules=[\"q_porj\"]", "did you mean `q_proj`?");
    refused("train.batch_size=0", "`batch_size` is 0");
    refused("data.max_length=4", "too-long");
    desk.write("recipe.toml", RECIPE.replace("batch_size", "batchsize"));
    desk.taper(&["plan", "recipe.toml"]).exits(2).tells(&["unknown key `train.batchsize`"]);
    desk.taper(&["plan", "nowhere.toml"]).exits(2).tells(&["nowhere.toml"]);
}

#[test]
#[cfg(target_os = "linux")]
fn what_does_not_fit_is_told_with_settings_that_do() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    // Long texts over a narrow model: activations are nearly all there is.
    let text = "a long story ".repeat(100);
    let rows: Vec<String> = (0..16).map(|n| row(&format!("tell number {n}"), &text)).collect();
    desk.write("train.jsonl", rows.join("\n"));
    let sets = ["--set", "train.batch_size=16", "--set", "data.max_length=2048"];
    let small = plan(&desk, &sets);
    assert_eq!(small["settings_that_fit"].as_array().unwrap().len(), 0);
    // Twice as many blocks as there is memory for.
    let available = small["memory"]["available_bytes"].as_u64().unwrap();
    let of_a_block = cause(&small, "step", "activations") / spec().num_hidden_layers as u64;
    let mut config = desk.json("base/config.json");
    config["num_hidden_layers"] = (2 * available / of_a_block).into();
    desk.write("base/config.json", config.to_string());
    let large = plan(&desk, &sets);
    assert_eq!(large["memory"]["fits"], false);
    let settings = large["settings_that_fit"].as_array().unwrap();
    let all_keys: Vec<&str> =
        settings.iter().flat_map(|s| s["set"].as_array().unwrap()).map(|key| key.as_str().unwrap()).collect();
    assert!(all_keys.contains(&"train.gradient_checkpointing=true"), "{all_keys:?}");
    assert!(all_keys.iter().any(|key| key.starts_with("train.batch_size=")), "{all_keys:?}");
    for setting in settings {
        let keys = setting["set"].as_array().unwrap();
        let flags = keys.iter().flat_map(|key| ["--set", key.as_str().unwrap()]);
        // Cutting texts needs a person who says that they may be cut.
        let flags: Vec<&str> =
            sets.into_iter().chain(flags).chain(["--set", "data.truncation=right"]).collect();
        // Held against what was free when the settings were found: by now others may have taken some of it.
        let free = large["memory"]["available_bytes"].as_u64().unwrap();
        assert!(peak(&plan(&desk, &flags)) <= free, "{keys:?}");
    }
    let flags: Vec<&str> = ["plan", "recipe.toml"].into_iter().chain(sets).collect();
    desk.taper(&flags).exits(0).tells(&["it does not fit", "with --set train.gradient_checkpointing=true"]);
}

#[test]
fn the_quickstart_is_planned_as_it_ships() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let args = ["plan", "recipes/quickstart.toml", "--json"];
    let output = Desk::empty().command(&args).current_dir(root).output().unwrap();
    let plan = said(output, &args).exits(0).json();
    // Three epochs over the shipped data in batches of 16.
    let rows =
        fs_err::read_to_string(root.join("datasets/clinical-deid/train.jsonl")).unwrap().lines().count();
    assert_eq!(plan["steps"].as_u64().unwrap(), 3 * rows.div_ceil(16) as u64);
    assert_eq!(plan["evaluations"][0]["items"], 200);
    assert_eq!(plan["evaluations"][0]["metrics"]["exact_match"]["least_gain"], 0.03);
    assert_eq!(plan["weights"]["held_in"][0], "bf16");
    // The header of the recipe says 1 GB.
    assert!(peak(&plan) < 1_000_000_000);
}

/// No GPU, no driver and no code for GPUs is needed to plan for a card.
#[test]
fn a_card_that_is_elsewhere_is_planned_for() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    let (cpu, gpu) = (plan(&desk, &["--device", "cpu"]), plan(&desk, &["--gpu-memory", "24GiB"]));
    assert_eq!((&gpu["memory"]["on"], &cpu["memory"]["on"]), (&"cuda".into(), &"cpu".into()));
    assert_eq!(gpu["memory"]["available_bytes"], 24u64 << 30);
    assert_eq!((&gpu["memory"]["fits"], &cpu["memory"]["host"]), (&true.into(), &Value::Null));
    for name in ["weights", "parameters"] {
        assert_eq!(cause(&gpu, "step", name), cause(&cpu, "step", name), "{name}");
    }
    // What the driver takes is more than this model.
    assert_eq!(cause(&gpu, "step", "overhead"), 512 << 20);
    assert!(gpu["memory"]["host"]["peak_bytes"].as_u64().unwrap() > cause(&gpu, "load", "weights"));
    desk.taper(&["plan", "recipe.toml", "--gpu-memory", "24GiB"]).exits(0).tells(&[
        "of the GPU's at its peak",
        "an estimate",
        "host        ",
        "it fits",
    ]);
    desk.taper(&["plan", "recipe.toml", "--gpu-memory", "100MB"]).exits(0).tells(&["it does not fit"]);
    // Blocks of a quantised base are on the GPU, and beside it on the host.
    let coded = plan(&desk, &["--gpu-memory", "24GiB", "--set", "model.quantize=nf4"]);
    assert!(cause(&coded, "step", "weights") < cause(&gpu, "step", "weights"));
    let on_host = |plan: &Value| {
        plan["memory"]["host"]["phases"].as_array().unwrap().iter().find(|p| p["name"] == "step").unwrap()["by_cause"]["weights"].as_u64().unwrap()
    };
    assert!(on_host(&gpu) == 0 && on_host(&coded) > 0);
    for wrong in [["--gpu-memory", "lots"], ["--gpu-memory", "24"]] {
        desk.taper(&["plan", "recipe.toml", wrong[0], wrong[1]]).exits(2).tells(&["GiB"]);
    }
    let both = ["plan", "recipe.toml", "--gpu-memory", "24GiB", "--device", "cpu"];
    desk.taper(&both).exits(2).tells(&["leave one of them out"]);
}
