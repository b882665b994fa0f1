//! `taper eval` with every kind of metric and candidate: what is measured, how it is told, and what is refused.

use crate::desk::{Desk, RECIPE, Said, row};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A desk with other data, on which `sections` (from `[[eval]]` on) are tried.
pub(crate) fn desk_with(train: &str, test: &str, sections: &str) -> Desk {
    let desk = Desk::new();
    desk.write("train.jsonl", train);
    desk.write(
        "valid.jsonl",
        train.lines().take(8).map(|line| line.replace("item ", "unit ") + "\n").collect::<String>(),
    );
    desk.write("test.jsonl", test);
    write_recipe(&desk, sections);
    desk
}

/// The desk's recipe with `sections` in place of its evaluation, gates and exports.
pub(crate) fn write_recipe(desk: &Desk, sections: &str) {
    let head = &RECIPE[..RECIPE.find("[[eval]]").unwrap()];
    desk.write("recipe.toml", format!("{head}{sections}"));
}

/// `taper eval` with some `--set`.
pub(crate) fn eval(desk: &Desk, sets: &[&str]) -> Said {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    desk.taper(&["eval", "recipe.toml"].into_iter().chain(sets).collect::<Vec<_>>())
}

pub(crate) fn results(desk: &Desk) -> Value {
    desk.json("runs/colours/eval/results.json")
}

/// A candidate of the first evaluation.
pub(crate) fn candidate(results: &Value, name: &str) -> Value {
    let candidates = results["evaluations"][0]["candidates"].as_array().unwrap();
    candidates.iter().find(|candidate| candidate["name"] == name).unwrap_or(&Value::Null).clone()
}

/// What a candidate reached on the first evaluation.
pub(crate) fn value(results: &Value, name: &str, metric: &str) -> f64 {
    let candidate = candidate(results, name);
    let measured = candidate["measured"].as_array().unwrap();
    measured.iter().find(|m| m["metric"] == metric).unwrap()["value"].as_f64().unwrap()
}

/// The letter of a question stands for a colour; the answer is made of both.
fn rows(numbers: impl IntoIterator<Item = usize>, answer: impl Fn(usize, &str) -> String) -> String {
    let mut rows = String::new();
    for number in numbers {
        let (question, colour) = crate::desk::question(number);
        writeln!(rows, "{}", row(&question, &answer(number, colour))).unwrap();
    }
    rows
}

/// The same with more fields in each row.
fn rows_with(numbers: impl IntoIterator<Item = usize>, fields: impl Fn(usize) -> Value) -> String {
    let mut text = String::new();
    for number in numbers {
        let (question, colour) = crate::desk::question(number);
        let mut row: Value = serde_json::from_str(&row(&question, colour)).unwrap();
        row.as_object_mut().unwrap().extend(fields(number).as_object().unwrap().clone());
        writeln!(text, "{row}").unwrap();
    }
    text
}

const SCHEMA: &str = r#"{
  "type": "object",
  "properties": {
    "colour": { "enum": ["red", "green", "blue", "black"] },
    "lamp": { "type": "object", "properties": { "dark": { "type": "boolean" } } }
  },
  "required": ["colour"]
}"#;

const EXTRACTION: &str = r#"[[eval]]
name = "held-out"
metrics = ["document_match", "field_f1", "json_valid"]
schema = "answer.schema.json"
max_new_tokens = 40
"#;

fn document(_: usize, colour: &str) -> String {
    json!({ "colour": colour, "lamp": { "dark": colour == "black" } }).to_string()
}

fn extraction_desk() -> Desk {
    let desk = desk_with(&rows(0..96, document), &rows(200..232, document), EXTRACTION);
    desk.write("answer.schema.json", SCHEMA);
    desk
}

#[test]
fn extraction_is_told_field_by_field() {
    let desk = extraction_desk();
    desk.taper(&["run", "recipe.toml", "--set", "train.max_steps=120"])
        .exits(0)
        .tells(&["document_match", "better"]);
    let results = results(&desk);
    let fields = &candidate(&results, "adapter")["fields"];
    assert_eq!(fields["documents"], 32);
    let right = fields["correct"].as_u64().unwrap() as f64 / 32.0;
    assert!(
        (value(&results, "adapter", "document_match") - right).abs() < 1e-12 && right > 0.1,
        "{fields:#}"
    );
    // The sums of the table are the score.
    let of = |path: &str, how: &str| fields["fields"][path][how].as_u64().unwrap() as f64;
    let sum = |how: &str| of("colour", how) + of("lamp.dark", how);
    assert!((sum("equal") + sum("wrong") + sum("missing") - 64.0).abs() < 1e-12, "{fields:#}");
    let mut f1 = [2.0 * sum("equal"), 2.0 * (sum("equal") + sum("wrong")) + sum("missing") + sum("invented")];
    if let Some(more) = fields["fields"]["*"].as_object() {
        f1[1] += more["invented"].as_u64().unwrap() as f64;
    }
    assert!((value(&results, "adapter", "field_f1") - f1[0] / f1[1]).abs() < 1e-12);
    let valid = fields["valid"].as_u64().unwrap() as f64 / 32.0;
    assert!((value(&results, "adapter", "json_valid") - valid).abs() < 1e-12);
    let base = &candidate(&results, "base")["fields"];
    assert_eq!((&base["valid"], &base["fields"]["colour"]["missing"]), (&json!(0), &json!(32)));
    let report = desk.read("runs/colours/report.md");
    for piece in
        ["### Fields, adapter", "answers are JSON", "right as a whole", "| lamp.dark |", "documents right"]
    {
        assert!(report.contains(piece), "no `{piece}` in\n{report}");
    }
    let sample = &desk.json_lines("runs/colours/eval/samples.jsonl")[0]["candidates"]["adapter"];
    assert!(sample["fields"]["colour"].is_string() && sample["scores"]["field_f1"].is_number(), "{sample}");
    let signature = results["evaluations"][0]["metrics"][1]["signature"].as_str().unwrap();
    assert!(
        signature.starts_with("extraction|score:field_f1|schema:")
            && signature.contains("|version:1|greedy|")
    );
}

#[test]
fn a_schema_that_cannot_be_used_is_told_with_its_place() {
    let desk = extraction_desk();
    let check = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        desk.taper(&["check", "recipe.toml"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    check(&[]).exits(0);
    check(&["eval.0.schema=nowhere.json"]).exits(2).tells(&["nowhere.json", "help: `schema` names a file"]);
    for (schema, told) in [
        ("{", "not JSON"),
        (r#"{ "type": "objekt" }"#, "objekt"),
        (
            r#"{ "properties": { "colour": { "x-compare": { "as": "nearly" } } } }"#,
            "`/properties/colour/x-compare`",
        ),
        (r#"{ "$ref": "https://example.com/other.json" }"#, "schema"),
    ] {
        desk.write("answer.schema.json", schema);
        check(&[]).exits(2).tells(&["error[", told]);
    }
    // An expected answer that breaks the schema is told by its line, without its words.
    desk.write("answer.schema.json", SCHEMA.replace("\"black\"", "\"white\""));
    check(&[])
        .exits(2)
        .tells(&["breaks the schema", "/colour: enum", "test.jsonl:", "help:"])
        .never_tells("black");
    desk.write("answer.schema.json", SCHEMA);
    desk.write("test.jsonl", rows(200..204, |_, colour| colour.to_owned()));
    check(&[]).exits(2).tells(&["the expected answer is not JSON", "test.jsonl:1", "test.jsonl:2"]);
    let recipe = EXTRACTION.replace("schema = \"answer.schema.json\"\n", "");
    write_recipe(&desk, &recipe);
    check(&[]).exits(2).tells(&["there is no `schema`", "help: set `schema`"]);
}

#[test]
fn classification_counts_what_names_no_label_as_wrong() {
    let desk = Desk::trained();
    write_recipe(&desk, "[[eval]]\nmetrics = [\"accuracy\", \"macro_f1\"]\nmax_new_tokens = 8\n");
    eval(&desk, &[]).exits(0).tells(&["accuracy base 0.0000", "macro_f1"]);
    let results = results(&desk);
    for name in ["base", "adapter"] {
        let classes = &candidate(&results, name)["classes"];
        assert_eq!(classes["labels"], json!(["black", "blue", "green", "red"]));
        let counts: Vec<Vec<u64>> = serde_json::from_value(classes["counts"].clone()).unwrap();
        assert!(counts.len() == 4 && counts.iter().all(|row| row.len() == 5 && row.iter().sum::<u64>() == 8));
        let right: u64 = (0..4).map(|label| counts[label][label]).sum();
        assert!((value(&results, name, "accuracy") - right as f64 / 32.0).abs() < 1e-12);
        let f1 = |label: usize| {
            let named: u64 = counts.iter().map(|row| row[label]).sum();
            2.0 * counts[label][label] as f64 / (8 + named) as f64
        };
        let mean = (0..4).map(f1).sum::<f64>() / 4.0;
        assert!((value(&results, name, "macro_f1") - mean).abs() < 1e-12);
    }
    assert!(value(&results, "adapter", "accuracy") > 0.3);
    // Nothing the base writes is a label.
    let counts = &candidate(&results, "base")["classes"]["counts"];
    assert!(counts.as_array().unwrap().iter().all(|row| row[4] == 8), "{counts}");
    assert!(desk.read("runs/colours/report.md").contains("### Labels, adapter"));
    eval(&desk, &["eval.0.labels=[\"red\", \"green\"]"]).exits(2).tells(&["none of `labels`", "test.jsonl:"]);
}

#[test]
fn choices_are_chosen_by_likelihood() {
    let desk = Desk::trained();
    let with = |n: usize| json!({ "choices": if n.is_multiple_of(2) { ["red", "green", "blue", "black"] } else { ["black", "blue", "green", "red"] } });
    desk.write("choices.jsonl", rows_with(200..232, with));
    write_recipe(&desk, "[[eval]]\ndata = \"choices.jsonl\"\nmetrics = [\"acc\", \"acc_norm\"]\n");
    eval(&desk, &[]).exits(0);
    let results = results(&desk);
    let samples = desk.json_lines("runs/colours/eval/samples.jsonl");
    for name in ["base", "adapter"] {
        // Both scores again, from the likelihoods that were written.
        let chosen = |sample: &Value, by_length: bool| {
            let likelihoods = sample["candidates"][name]["choices"].as_array().unwrap();
            let choices: Vec<&str> =
                sample["choices"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
            let of = |i: usize| {
                likelihoods[i].as_f64().unwrap() / if by_length { choices[i].len() as f64 } else { 1.0 }
            };
            let best = (0..4).rev().max_by(|a, b| of(*a).total_cmp(&of(*b))).unwrap();
            sample["expected"] == choices[best]
        };
        for (metric, by_length) in [("acc", false), ("acc_norm", true)] {
            let right = samples.iter().filter(|sample| chosen(sample, by_length)).count();
            assert!((value(&results, name, metric) - right as f64 / 32.0).abs() < 1e-12, "{name} {metric}");
        }
    }
    assert!(value(&results, "adapter", "acc") > value(&results, "base", "acc"));
    // Nothing is written for it.
    assert_eq!(samples[0]["candidates"]["adapter"]["completion_tokens"], 0);
    eval(&desk, &["eval.0.data=test.jsonl"])
        .exits(2)
        .tells(&["no list of two choices or more in `choices`", "test.jsonl:1"]);
    eval(&desk, &["eval.0.choices=options"]).exits(2).tells(&["in `options`"]);
}

#[test]
fn texts_are_measured_in_many_ways_at_once() {
    let answer = |n: usize, colour: &str| format!("The lamp is {colour}, {} watts.", 10 + n % 4);
    let metrics = "[\"normalised_match\", \"exact_match\", \"contains\", \"regex\", \"numeric\", \"token_f1\", \"rouge_l\", \"bleu\", \"chrf\", \"bits_per_byte\", \"perplexity\"]";
    let sections = format!("[[eval]]\nmetrics = {metrics}\npattern = '(\\d+ watts)'\nmax_new_tokens = 40\n");
    let desk = desk_with(&rows(0..96, answer), &rows(200..232, answer), &sections);
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=120"]).exits(0);
    // A group of the pattern is held against the whole expected answer: none is equal.
    eval(&desk, &[]).exits(0);
    let results_of = results(&desk);
    let signatures: Vec<(String, String)> = results_of["evaluations"][0]["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["metric"].as_str().unwrap().to_owned(), m["signature"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(signatures.len(), 11);
    for (metric, signature) in &signatures {
        assert!(signature.contains("version:"), "{metric}: {signature}");
        let decodes = !matches!(metric.as_str(), "perplexity" | "bits_per_byte");
        assert_eq!(signature.contains("greedy|max_new_tokens:40"), decodes, "{metric}: {signature}");
    }
    let of = |metric: &str| value(&results_of, "adapter", metric);
    assert_eq!(of("regex"), 0.0);
    // An answer that is equal is so to every metric that compares whole texts.
    let samples = desk.json_lines("runs/colours/eval/samples.jsonl");
    let is_right = |sample: &&Value| sample["candidates"]["adapter"]["scores"]["exact_match"] == 1.0;
    let right: Vec<&Value> = samples.iter().filter(is_right).collect();
    assert!(!right.is_empty(), "nothing was learned");
    for sample in right {
        let scores = &sample["candidates"]["adapter"]["scores"];
        for metric in ["normalised_match", "contains", "numeric", "token_f1", "rouge_l"] {
            assert_eq!(scores[metric], 1.0, "{metric}: {scores}");
        }
        assert!(
            ["bleu", "chrf"].iter().all(|m| (scores[m].as_f64().unwrap() - 100.0).abs() < 1e-9),
            "{scores}"
        );
    }
    // Without a group the pattern has only to be found; a number may be off by the tolerance.
    eval(&desk, &["eval.0.pattern=\\d+ watts", "eval.0.tolerance=3"]).exits(0);
    let wider = results(&desk);
    assert!(value(&wider, "adapter", "regex") > 0.5);
    assert!(value(&wider, "adapter", "numeric") >= of("numeric"));
    assert_ne!(
        wider["evaluations"][0]["metrics"][4]["signature"],
        results_of["evaluations"][0]["metrics"][4]["signature"]
    );
    eval(&desk, &["eval.0.pattern=("]).exits(2).tells(&["`pattern` cannot be used", "unclosed group"]);
    eval(&desk, &["eval.0.metrics=[\"rouge\"]"]).exits(2).tells(&["rouge"]);
}

#[test]
fn scores_are_told_by_slices_and_items_of_a_document_count_together() {
    let desk = Desk::trained();
    let with = |n: usize| json!({ "meta": { "site": if n % 4 < 2 { "north" } else { "south" } }, "document": n / 8 });
    desk.write("fields.jsonl", rows_with(200..232, with));
    write_recipe(&desk, "[[eval]]\ndata = \"fields.jsonl\"\nmax_new_tokens = 8\nslices = [\"meta.site\"]\n");
    eval(&desk, &[]).exits(0);
    let plain = results(&desk);
    let slices = plain["evaluations"][0]["slices"].as_array().unwrap();
    assert_eq!(slices.len(), 2);
    let exact = |slice: &Value| slice["measured"]["adapter"][0]["value"].as_f64().unwrap();
    assert_eq!(
        (&slices[0]["field"], &slices[0]["value"], &slices[1]["value"]),
        (&json!("meta.site"), &json!("north"), &json!("south"))
    );
    assert!(slices.iter().all(|slice| slice["n"] == 16 && slice["comparisons"][0]["n"] == 16));
    // Halves of equal size: their mean is the whole.
    assert!(
        ((exact(&slices[0]) + exact(&slices[1])) / 2.0 - value(&plain, "adapter", "exact_match")).abs()
            < 1e-12
    );
    assert!(desk.read("runs/colours/report.md").contains("| meta.site = north | 16 |"));
    // Six documents of eight items are the fewest of which one could.
    eval(&desk, &["eval.0.cluster_by=document", "gate.require=[\"adapter better than base\"]"])
        .exits(5)
        .tells(&["not enough data", "About 48 items"]);
    let clustered = results(&desk);
    let comparison = |results: &Value| results["evaluations"][0]["comparisons"][0].clone();
    assert_eq!(comparison(&plain)["test"], "exact McNemar");
    // Of four documents no verdict can come.
    assert_eq!(
        (&comparison(&clustered)["test"], &comparison(&clustered)["p_value"]),
        (&json!("permutation"), &json!(0.125))
    );
    assert_eq!(comparison(&clustered)["value"], comparison(&plain)["value"]);
    eval(&desk, &["eval.0.slices=[\"meta.sit\"]"]).exits(2).tells(&["has the field `meta.sit`", "help:"]);
    eval(&desk, &["eval.0.cluster_by=paper"]).exits(2).tells(&["no field `paper`", "fields.jsonl:1"]);
}
