//! `taper run`: from a recipe to an adapter that is proven better, and everything that a run leaves.

use crate::desk::{ADAPTER, Desk, RECIPE};
use serde_json::Value;

#[test]
fn a_run_learns_the_task_and_leaves_every_file() {
    let desk = Desk::new();
    let said = desk.taper(&["run", "recipe.toml"]).exits(0);
    assert_eq!(said.out, "", "people's words go to stderr");
    let said = said
        .tells(&["recipe colours: Name the colour", "base", "train", "96 examples"])
        .tells(&[
            "event=start step=0/60",
            "event=self_test",
            "event=train step=10/60",
            "event=end step=60/60",
        ])
        .tells(&["candidate=base", "candidate=adapter", "better", "min_exact_match_gain", "passed"])
        .tells(&[
            "export merged",
            "report runs/colours/report.html and runs/colours/report.md",
            "taper generate --model",
            "exit code 0",
        ]);
    let files = desk.files("runs/colours");
    for name in [
        "resolved.toml",
        "metrics.jsonl",
        "checkpoints/step-60/trainer_state.json",
        "checkpoints/step-60/optimizer.safetensors",
        "checkpoints/step-60/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "merged/config.json",
        "merged/model.safetensors",
        "merged/tokenizer.json",
        "merged/chat_template.jinja",
        "eval/results.json",
        "eval/samples.jsonl",
        "report.md",
        "run.json",
    ] {
        assert!(files.get(name).is_some_and(|bytes| !bytes.is_empty()), "no `{name}`\n{}", said.err);
    }
    assert!(
        files.keys().all(|name| !name.contains(".tmp") && !name.contains("unfinished")),
        "{:?}",
        files.keys()
    );
}

#[test]
fn the_loss_falls_and_the_adapter_is_better_than_its_base() {
    let desk = Desk::trained();
    let metrics = desk.json_lines("runs/colours/metrics.jsonl");
    let losses: Vec<f64> = metrics.iter().filter_map(|m| m["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 6);
    assert!(losses[5] < 0.8 * losses[0], "{losses:?}");
    assert!(metrics.iter().filter(|m| m["eval_loss"].is_f64()).count() == 3);
    let results = desk.json("runs/colours/eval/results.json");
    assert_eq!((results["verdict"].as_str(), results["exit_code"].as_u64()), (Some("better"), Some(0)));
    let exact = |candidate: &str| {
        let candidates = results["evaluations"][0]["candidates"].as_array().unwrap();
        let measured = &candidates.iter().find(|c| c["name"] == candidate).unwrap()["measured"][0];
        assert_eq!((measured["metric"].as_str(), measured["n"].as_u64()), (Some("exact_match"), Some(32)));
        measured["value"].as_f64().unwrap()
    };
    assert!(exact("adapter") > exact("base") + 0.3);
    let samples = desk.json_lines("runs/colours/eval/samples.jsonl");
    assert_eq!(samples.len(), 32);
    assert!(
        samples.iter().all(|s| s["candidates"]["base"].is_object() && s["candidates"]["adapter"].is_object())
    );
}

#[test]
fn the_adapter_is_in_pefts_format_with_a_card() {
    let desk = Desk::trained();
    let config = desk.json("runs/colours/adapter/adapter_config.json");
    for (key, value) in [
        ("peft_type", Value::from("LORA")),
        ("task_type", "CAUSAL_LM".into()),
        ("r", 8.into()),
        ("lora_alpha", 16.into()),
        ("base_model_name_or_path", "base".into()),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let bytes = desk.bytes(ADAPTER);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    // Two layers of seven linear modules, an A and a B each.
    assert_eq!(tensors.len(), 28);
    let a = tensors.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
    assert_eq!((a.shape(), a.dtype()), ([8usize, 64].as_slice(), safetensors::Dtype::F32));
    let card = desk.read("runs/colours/adapter/README.md");
    assert!(card.starts_with("---\n") && card.contains("library_name: peft"), "{card}");
    assert!(
        card.contains("# colours") && card.contains("exact match") && card.contains("taper chat"),
        "{card}"
    );
}

#[test]
fn the_report_and_the_record_of_the_run_say_what_was_done() {
    let desk = Desk::trained();
    let report = desk.read("runs/colours/report.md");
    for piece in [
        "# colours",
        "The adapter is better than the base",
        "exact match",
        "32",
        "## Gates",
        "passed",
        "## Setup",
        "## Training",
        "taper chat",
    ] {
        assert!(report.contains(piece), "no `{piece}` in\n{report}");
    }
    // A step that was logged and validated is one row.
    assert_eq!(report.matches("| 60 |").count(), 1, "{report}");
    let run = desk.json("runs/colours/run.json");
    assert_eq!((run["name"].as_str(), run["exit_code"].as_u64()), (Some("colours"), Some(0)));
    let hashes =
        [&run["recipe"]["sha256"], &run["base"]["sha256"], &run["data"][0]["sha256"], &run["adapter_sha256"]];
    assert!(hashes.iter().all(|hash| hash.as_str().is_some_and(|hash| hash.len() == 64)), "{run:#}");
    assert_eq!(run["data"].as_array().unwrap().len(), 3);
}

#[test]
fn json_prints_the_results_and_nothing_else_on_stdout() {
    let desk = Desk::new();
    let said = desk.taper(&["run", "recipe.toml", "--json"]).exits(0);
    assert_eq!(said.json(), desk.json("runs/colours/eval/results.json"));
    let said = desk.taper(&["train", "recipe.toml", "--json", "--out", "runs/t"]).exits(0);
    assert_eq!(said.json()["steps"], 60);
    assert!(desk.has("runs/t/adapter") && !desk.has("runs/t/eval"));
}

#[test]
fn in_ci_progress_is_lines_of_keys_and_values_without_control_characters() {
    let said = Desk::new().taper(&["run", "recipe.toml"]).exits(0);
    assert!(!said.err.chars().any(|c| c.is_control() && c != '\n'), "{:?}", said.err);
    let lines: Vec<&str> = said.err.lines().filter(|line| line.starts_with("event=")).collect();
    assert!(lines.len() > 10, "{}", said.err);
    for line in lines {
        assert!(
            line.split(' ')
                .all(|pair| pair.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty())),
            "{line}"
        );
    }
}

#[test]
fn a_failed_gate_ends_with_100_and_exports_nothing() {
    let desk = Desk::new();
    let flags = ["run", "recipe.toml", "--set", "gate.min_exact_match=1.0", "--set", "train.max_steps=2"];
    desk.taper(&flags)
        .exits(100)
        .tells(&[
            "nothing exported",
            "taper export recipe.toml --set gate.min_exact_match=1.0 --set train.max_steps=2",
        ])
        .tells(&["min_exact_match", "FAILED", "exit code 100"]);
    assert!(!desk.has("runs/colours/merged"));
    assert!(desk.has("runs/colours/adapter"), "what was trained is kept");
    assert_eq!(desk.json("runs/colours/run.json")["exit_code"], 100);
    assert!(desk.read("runs/colours/report.md").contains("**failed**"));
}

#[test]
fn too_few_examples_to_say_end_with_5() {
    let desk = Desk::new();
    desk.taper(&["run", "recipe.toml", "--set", "eval.0.limit=3"])
        .exits(5)
        .tells(&["nothing exported", "inconclusive"]);
    assert!(!desk.has("runs/colours/merged"));
}

#[test]
fn a_run_without_evaluations_says_so_and_exports() {
    let desk = Desk::new();
    let (head, tail) = RECIPE.split_once("[[eval]]").unwrap();
    let export = &tail[tail.find("[export]").unwrap()..];
    desk.write("recipe.toml", format!("{head}{export}"));
    desk.taper(&["run", "recipe.toml"]).exits(0);
    assert!(desk.read("runs/colours/report.md").contains("Nothing was evaluated"));
    assert!(desk.has("runs/colours/merged/model.safetensors"));
}

#[test]
fn a_second_run_into_the_folder_is_refused_and_changes_nothing() {
    let desk = Desk::trained();
    let before = desk.files("runs");
    for extra in [["--set", "train.seed=7"].as_slice(), &[]] {
        desk.taper(&[&["run", "recipe.toml"], extra].concat()).exits(2).tells(&[
            "checkpoints of an earlier run",
            "runs/colours/checkpoints/step-60",
            "help:",
            "--resume",
            "--overwrite",
            "--out",
        ]);
        assert!(desk.files("runs") == before, "a refused run wrote into the folder");
    }
    desk.taper(&["run", "recipe.toml", "--resume", "--overwrite"]).exits(2).tells(&["cannot be used with"]);
}

#[test]
fn overwrite_begins_again_and_leaves_nothing_of_the_old_run() {
    let desk = Desk::trained();
    let old = desk.bytes(ADAPTER);
    let flags = ["--set", "train.max_steps=40", "--set", "export.formats=[\"peft\"]"];
    desk.taper(&[&["run", "recipe.toml", "--overwrite"], flags.as_slice()].concat()).exits(0);
    assert_ne!(desk.bytes(ADAPTER), old);
    assert!(!desk.has("runs/colours/checkpoints/step-60") && !desk.has("runs/colours/merged"));
    let last = desk.json_lines("runs/colours/metrics.jsonl").pop().unwrap();
    assert_eq!(last["step"], 40);
}

#[test]
fn what_cannot_begin_overwrites_nothing() {
    let desk = Desk::trained();
    let before = desk.files("runs");
    for set in
        ["data.train=nowhere.jsonl", "adapter.target_modules=[\"nothing\"]", "model.base=nowhere/at/all"]
    {
        desk.taper(&["run", "recipe.toml", "--overwrite", "--offline", "--set", set]).exits(2);
        assert!(desk.files("runs") == before, "{set}: the old run was removed for one that cannot begin");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told_by_its_name() {
    let desk = Desk::new();
    desk.write("taken", "a file");
    desk.taper(&["run", "recipe.toml", "--out", "taken"]).exits(2).tells(&["taken"]);
    assert_eq!(desk.read("taken"), "a file");
}

#[test]
fn full_training_from_random_weights_writes_a_model_that_generates() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    desk.write(
        "full.toml",
        r#"schema = 1
[model]
base = "base"
init = "random"
[data]
train = "train.jsonl"
test = "test.jsonl"
[train]
method = "full"
max_steps = 30
[optimizer]
learning_rate = 1e-2
[[eval]]
max_new_tokens = 8
"#,
    );
    desk.taper(&["run", "full.toml"]).exits(0).tells(&[
        "trained_parameters=",
        "wrote runs/full/merged",
        "candidate=trained",
    ]);
    assert!(!desk.has("runs/full/adapter"));
    let losses = desk.json_lines("runs/full/metrics.jsonl");
    assert!(losses[2]["loss"].as_f64() < losses[0]["loss"].as_f64());
    let said = desk.taper(&[
        "generate",
        "--model",
        "runs/full/merged",
        "--prompt",
        "item 3 K",
        "--max-new-tokens",
        "8",
        "--json",
    ]);
    assert!(said.exits(0).json()["usage"]["completion_tokens"].as_u64() > Some(0));
    // It is the only copy of what was trained: proven where it lies, and not written over.
    let export = |more: &[&str]| desk.taper(&[&["export", "full.toml"], more].concat());
    let before = desk.bytes("runs/full/merged/model.safetensors");
    export(&["--format", "merged"]).exits(0).tells(&["export merged: "]);
    export(&["--format", "merged", "--set", "export.merged_dtype=f16"]).exits(2).tells(&["the only copy"]);
    assert!(desk.bytes("runs/full/merged/model.safetensors") == before);
    export(&["--format", "mlx"]).exits(2).tells(&["\"mlx\"", "full training makes no adapter"]);
    // The model that was written is a base like any other.
    let sets = ["--set", "model.base=runs/full/merged", "--set", "gate.min_exact_match_gain=-1"];
    desk.taper(&[&["run", "recipe.toml"], sets.as_slice()].concat()).exits(0);
}

#[test]
fn the_self_test_can_be_switched_off_and_bf16_and_packing_train() {
    let desk = Desk::new();
    let sets = [
        "train.self_test=false",
        "model.dtype=bf16",
        "data.packing=true",
        "data.max_length=128",
        "gate.min_exact_match_gain=-1",
    ];
    let flags: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    desk.taper(&[&["run", "recipe.toml"], flags.as_slice()].concat()).exits(0).never_tells("event=self_test");
    assert_eq!(safetensors::SafeTensors::deserialize(&desk.bytes(ADAPTER)).unwrap().len(), 28);
}
