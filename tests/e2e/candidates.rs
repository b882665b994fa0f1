//! `[[candidate]]` and `[gate]` in `taper eval` and `taper run`: who is measured beside base and adapter, and what a run is held to.

use crate::desk::{Desk, said, wait_until};
use crate::evaluation::{candidate, eval, results, value, write_recipe};
use serde_json::{Value, json};
use std::process::Command;

const HELD_OUT: &str = "[[eval]]\nname = \"held-out\"\nmax_new_tokens = 8\n";

fn names(results: &Value) -> Vec<String> {
    let candidates = results["evaluations"][0]["candidates"].as_array().unwrap();
    candidates.iter().map(|candidate| candidate["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn examples_shown_and_another_adapter_are_candidates() {
    let desk = Desk::trained();
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=5", "--out", "runs/short"]).exits(0);
    let candidates = "[[candidate]]\nname = \"shots\"\nfew_shot = 2\n\n[[candidate]]\nname = \"short\"\nadapter = \"runs/short/adapter\"\n\n\
                      [gate]\nrequire = [\"adapter better than short\", \"adapter better than shots on exact_match\", \"short better than shots on perplexity\", \"short.perplexity < 1e9\"]\n";
    write_recipe(&desk, &format!("{HELD_OUT}{candidates}"));
    eval(&desk, &[]).exits(0).tells(&[
        "candidate=base",
        "candidate=shots",
        "candidate=adapter",
        "candidate=short",
        "passed",
    ]);
    let results = results(&desk);
    assert_eq!(names(&results), ["base", "shots", "adapter", "short"]);
    assert_eq!(candidate(&results, "shots")["about"], "base, 2 examples shown");
    assert_eq!(
        candidate(&results, "short")["about"].as_str().map(|about| about.ends_with("runs/short/adapter")),
        Some(true)
    );
    let tokens = |name: &str| candidate(&results, name)["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens("shots") > 2 * tokens("base") && tokens("short") == tokens("adapter"));
    assert!(value(&results, "short", "perplexity") < value(&results, "base", "perplexity"));
    // Everyone against the base, then the trained one against everyone else.
    let comparisons = results["evaluations"][0]["comparisons"].as_array().unwrap();
    let pairs: Vec<_> = comparisons
        .iter()
        .map(|c| format!("{} {}", c["reference"], c["candidate"]).replace('"', ""))
        .collect();
    assert_eq!(
        pairs,
        [
            "base shots",
            "base shots",
            "base adapter",
            "base adapter",
            "base short",
            "base short",
            "shots adapter",
            "shots adapter",
            "short adapter",
            "short adapter"
        ]
    );
    // The prompt that is stored is the base's: no examples in it.
    let sample = &desk.json_lines("runs/colours/eval/samples.jsonl")[0];
    assert_eq!(sample["prompt"].as_str().unwrap().matches("item ").count(), 1);
    // Shown in every prompt when the evaluation says so, from other files and under another system prompt.
    desk.write("shots.jsonl", crate::desk::row("which is Q?", "quartz"));
    let sets = [
        "eval.0.few_shot=1",
        "eval.0.few_shot_data=shots.jsonl",
        "eval.0.system=Be brief.",
        "candidate=[]",
        "gate={}",
    ];
    eval(&desk, &sets).exits(0);
    let prompt = desk.json_lines("runs/colours/eval/samples.jsonl")[0]["prompt"].as_str().unwrap().to_owned();
    for piece in ["Be brief.", "which is Q?", "quartz", "item 200 R"] {
        assert!(prompt.contains(piece), "no `{piece}` in {prompt}");
    }
}

#[test]
fn a_candidate_that_cannot_be_asked_is_refused() {
    let desk = Desk::trained();
    for (candidate, told) in [
        ("name = \"x\"", "`x` is the base again"),
        ("name = \"base\"\nfew_shot = 1", "`base` is a candidate already"),
        ("name = \"a.b\"\nfew_shot = 1", "quote"),
        ("name = \"x\"\nadapter = \"nowhere\"", "nowhere"),
        ("name = \"x\"\nmodel = \"nowhere/at/all\"", "nowhere/at/all"),
        (
            "name = \"x\"\nfew_shot = 1000",
            "1000 examples are to be shown before a question, and there are 96",
        ),
        ("name = \"x\"\nexport = \"gguf\"", "help: add \"gguf\" to `export.formats`"),
        ("name = \"x\"\nfew_shots = 1", "did you mean `few_shot`"),
    ] {
        write_recipe(&desk, &format!("{HELD_OUT}\n[[candidate]]\n{candidate}\n"));
        eval(&desk, &["--offline"][..0]).exits(2).tells(&[told]);
    }
    write_recipe(&desk, &format!("{HELD_OUT}few_shot_data = \"test.jsonl\"\n"));
    eval(&desk, &[]).exits(2).tells(&["`few_shot_data` is set, but no examples are shown"]);
}

#[test]
fn what_is_exported_is_measured_after_the_export_and_keeps_the_gain() {
    let desk = Desk::new();
    let exported = "[[candidate]]\nname = \"whole\"\nexport = \"merged\"\n\n[[candidate]]\nname = \"file\"\nexport = \"gguf\"\n\n\
                    [gate]\nmin_gain_kept = 0.9\nrequire = [\"adapter better than base\", \"file not worse than adapter by 0.2\"]\n\n\
                    [export]\nformats = [\"merged\", \"gguf\"]\ngguf_type = \"f16\"\n";
    write_recipe(&desk, &format!("{HELD_OUT}{exported}"));
    desk.taper(&["train", "recipe.toml"]).exits(0);
    eval(&desk, &[])
        .exits(2)
        .tells(&["has not been exported yet", "help: export first: taper export recipe.toml"]);
    desk.taper(&["run", "recipe.toml", "--overwrite"]).exits(0).tells(&[
        "candidate=adapter",
        "export merged: ",
        "export gguf: ",
        "candidate=whole",
        "candidate=file",
        "min_gain_kept = 0.9 by whole: keeps 1.0000",
        "min_gain_kept = 0.9 by file: keeps ",
    ]);
    let during = results(&desk);
    assert_eq!(names(&during), ["base", "adapter", "whole", "file"]);
    assert!(
        (value(&during, "whole", "perplexity") / value(&during, "adapter", "perplexity") - 1.0).abs() < 0.01
    );
    let gates = during["gates"].as_array().unwrap();
    assert!(gates.len() == 4 && gates.iter().all(|gate| gate["status"] == "passed"), "{gates:#?}");
    assert_eq!(during["kept"], json!(["whole", "file"]));
    // Measured again from the disk.
    eval(&desk, &[]).exits(0);
    assert_eq!(results(&desk), during);
    // A run whose own gates fail exports nothing, and its exports keep nothing.
    desk.taper(&[
        "run",
        "recipe.toml",
        "--overwrite",
        "--set",
        "train.max_steps=1",
        "--set",
        "gate.min_exact_match=1.0",
    ])
    .exits(100)
    .tells(&["nothing exported", "`whole` was not evaluated: nothing evaluated"]);
}

#[test]
fn gates_in_words_pass_fail_or_are_not_decided() {
    let desk = Desk::trained();
    write_recipe(&desk, HELD_OUT);
    let gate = |require: &str, sets: &[&str]| {
        let require = format!("gate.require=[{}]", serde_json::to_string(require).unwrap());
        eval(&desk, &[&[require.as_str()], sets].concat())
    };
    for passed in [
        "adapter.exact_match >= 0.5",
        "exact_match>0.5",
        "base.exact_match <= 0",
        "\"held-out\".adapter.perplexity < 2",
        "adapter better than base",
        "adapter better than base by 0.3 on exact_match",
        "held-out.exact_match better than base",
        "adapter not worse than base by 0.02 on exact_match",
        "adapter.error_rate <= 0",
        "adapter.p95_latency_ms <= 60000",
    ] {
        gate(passed, &[]).exits(0).tells(&["gate held-out: ", ": passed"]);
    }
    for failed in [
        "adapter.exact_match > 1",
        "base better than adapter",
        "base not worse than adapter by 0.1",
        "adapter better than base by 0.99",
        "p50_latency_ms <= 0.000001",
    ] {
        gate(failed, &[]).exits(100).tells(&[failed, ": FAILED"]);
        assert_eq!(results(&desk)["exit_code"], 100);
    }
    gate("adapter better than base", &["eval.0.limit=3"]).exits(5).tells(&["not decided"]);
    gate("adapter better than base by 0.8", &[]).exits(5).tells(&["asked 0.8", "not decided"]);
    // Nothing is written, so there are no times.
    gate("p95_latency_ms <= 300", &["eval.0.metrics=[\"perplexity\"]", "eval.0.max_new_tokens=256"])
        .exits(4)
        .tells(&["it was not measured: nothing evaluated"]);
    for (unreadable, told) in [
        ("adapter.exact_mach >= 0.8", "did you mean `exact_match`?"),
        ("adaptor.exact_match >= 0.8", "did you mean `adapter`?"),
        ("adapter.exact_match >= much", "`much` is no number"),
        ("adapter not worse than base", "by 0.02"),
        ("adapter.exact_match = 0.8", "`=`"),
        ("adapter.bleu >= 10", "no evaluation measures `bleu`"),
    ] {
        gate(unreadable, &[]).exits(2).tells(&["error[", told, "help:"]);
    }
    // Of several the worst counts: failed before not decided.
    let both = "gate.require=[\"adapter better than base\", \"adapter.exact_match > 1\"]";
    eval(&desk, &[both, "eval.0.limit=3"]).exits(100).tells(&["not decided", "FAILED"]);
}

#[test]
fn rows_that_were_trained_on_are_refused_or_told_with_scores_without_them() {
    let desk = Desk::trained();
    let words: Vec<String> = (0..40).map(|n| format!("word{n}")).collect();
    let long = |last: &str| crate::desk::row(&format!("{} {last}", words.join(" ")), "red");
    let train = format!("{}{}\n", desk.read("train.jsonl"), long("one"));
    desk.write("train.jsonl", train);
    // Six rows to the byte, one but for case, one nearly.
    let rows = format!(
        "{}{}\n{}\n{}",
        crate::desk::questions(90..96),
        crate::desk::row("ITEM 3 k", "black"),
        long("two"),
        crate::desk::questions(200..224)
    );
    desk.write("mixed.jsonl", rows);
    write_recipe(&desk, HELD_OUT);
    let data = "eval.0.data=mixed.jsonl";
    eval(&desk, &[data]).exits(2).tells(&["error[", "proves nothing"]);
    eval(&desk, &[data, "data.overlap=report"]).exits(0).tells(&[
        "warning[",
        "warning[near-duplicates]",
        "1 of 32 inputs",
    ]);
    let results = results(&desk);
    let overlap = &results["evaluations"][0]["overlap"];
    let counted = ["touched", "exact", "normalised", "near"].map(|key| overlap[key].as_u64().unwrap());
    assert_eq!(counted, [8, 6, 1, 1], "{overlap:#}");
    assert_eq!(overlap["without"]["n"], 24);
    // The scores without them, from the samples.
    let samples = desk.json_lines("runs/colours/eval/samples.jsonl");
    let untouched: Vec<&Value> = samples.iter().filter(|sample| sample["touched"].is_null()).collect();
    let right =
        untouched.iter().filter(|s| s["candidates"]["adapter"]["scores"]["exact_match"] == 1.0).count();
    let without = overlap["without"]["measured"]["adapter"][0]["value"].as_f64().unwrap();
    assert!(untouched.len() == 24 && (without - right as f64 / 24.0).abs() < 1e-12);
    let report = desk.read("runs/colours/report.md");
    assert!(
        report.contains("8 of 32 items have an input that was trained on")
            && report.contains("Without them (n = 24)"),
        "{report}"
    );
}

#[test]
fn what_was_answered_is_not_asked_again() {
    let desk = Desk::trained();
    let first = desk.files("runs/colours/eval");
    for _ in 0..2 {
        eval(&desk, &[])
            .exits(0)
            .tells(&["candidate=base n=32 cached=32", "candidate=adapter n=32 cached=32"]);
        assert!(desk.files("runs/colours/eval") == first, "kept answers give other results");
    }
    // Other metrics of the same answers ask nothing; other answers do.
    eval(&desk, &["eval.0.normalize=lenient"]).exits(0).tells(&["candidate=adapter n=32 cached=32"]);
    eval(&desk, &["eval.0.max_new_tokens=7"]).exits(0).never_tells("cached=");
    eval(&desk, &["data.cache=false"]).exits(0).never_tells("cached=");
    assert!(desk.files("runs/colours/eval") == first);
}

#[test]
#[cfg(unix)]
fn an_evaluation_that_is_interrupted_goes_on_where_it_was() {
    let (one, two) = (Desk::trained(), Desk::trained());
    for desk in [&one, &two] {
        desk.write("many.jsonl", crate::desk::questions(1000..1640));
    }
    let sets = ["eval.0.data=many.jsonl", "eval.0.max_new_tokens=32"];
    eval(&one, &sets).exits(0);
    let args: Vec<&str> =
        ["eval", "recipe.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect();
    let responses = two.kept_tokens().with_file_name("responses");
    let kept = || fs_err::read_dir(&responses).map_or(0, |entries| entries.count());
    let before = kept();
    let child = two.start(&args);
    wait_until("some answers", || kept() > before + 1);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    said(child.wait_with_output().unwrap(), &args)
        .exits(130)
        .tells(&["interrupted; what was trained is in runs/colours", "taper eval recipe.toml"]);
    eval(&two, &sets).exits(0).tells(&["candidate=base n=640 cached="]);
    for name in ["results.json", "samples.jsonl"] {
        let of = |desk: &Desk| desk.bytes(&format!("runs/colours/eval/{name}"));
        assert!(of(&one) == of(&two), "`{name}` differs");
    }
}
