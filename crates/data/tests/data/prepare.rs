//! `prepare`: everything of a `[data]` section at once.

use crate::fake::FakeEncoder;
use fs_err as fs;
use std::collections::BTreeSet;
use taper_data::{DataSection, OnError, PreparedData, Split, Truncation, prepare};
use taper_diagnostics::{Problem, Severity};
use tempfile::TempDir;

/// A folder with the files, and a section that names `train`, `valid` and `test` where they are among them.
fn folder(files: &[(&str, &str)]) -> (TempDir, DataSection) {
    let folder = tempfile::tempdir().unwrap();
    let mut section = DataSection::default();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
        let list = std::iter::once(*name).collect();
        match name.split('.').next().unwrap() {
            "train" => section.train = list,
            "valid" => section.valid = list,
            "test" => section.test = list,
            other => panic!("{other}"),
        }
    }
    (folder, section)
}

fn pair(prompt: &str, completion: &str) -> String {
    format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n")
}

fn pairs(range: std::ops::Range<usize>) -> String {
    range.map(|i| pair(&format!("question {i}"), &format!("answer {i}"))).collect()
}

fn codes(data: &PreparedData) -> Vec<(Severity, &'static str)> {
    data.problems.iter().map(|problem| (problem.severity, problem.code)).collect()
}

fn only<'a>(data: &'a PreparedData, code: &str) -> &'a Problem {
    let found: Vec<&Problem> = data.problems.iter().filter(|problem| problem.code == code).collect();
    assert_eq!(found.len(), 1, "{code} in {}", data.problems);
    found[0]
}

fn with_encoder(encoder: FakeEncoder) -> PreparedData {
    let (folder, section) = folder(&[("train.jsonl", &pairs(0..4))]);
    prepare(&section, folder.path(), 1, &encoder)
}

#[test]
fn clean_data_has_no_problems_and_its_tokens_are_counted() {
    let (folder, section) =
        folder(&[("train.jsonl", &pairs(0..4)), ("valid.jsonl", &pairs(4..6)), ("test.jsonl", &pairs(6..9))]);
    let data = prepare(&section, folder.path(), 1, &FakeEncoder::default()).into_result().unwrap();
    assert!(data.problems.is_empty());
    let counts: Vec<(&str, usize)> = data.splits().map(|split| (split.name, split.tokenized.len())).collect();
    assert_eq!(counts, [("train", 4), ("valid", 2), ("test", 3)]);
    let words: Vec<usize> = data.splits().map(|split| split.examples.len()).collect();
    assert_eq!(words, [0, 0, 3], "an evaluation asks for those of `test` alone");
    // <s>, then <turn> u "question 0" </s>, then <turn> a "answer 0" </s>; learned are "answer 0" and </s>.
    let stats = data.train.stats();
    assert_eq!((stats.max_length, stats.tokens, stats.supervised_tokens), (25, 100, 36));
}

#[test]
fn an_example_that_teaches_nothing_is_an_error_for_each_row() {
    let data = with_encoder(FakeEncoder { learns_nothing: true, ..FakeEncoder::default() });
    let lines: Vec<usize> = data
        .problems
        .iter()
        .filter(|problem| problem.code == "no-supervised-token")
        .map(|problem| problem.location.as_ref().unwrap().line.unwrap())
        .collect();
    assert_eq!(lines, [1, 2, 3, 4]);
    assert!(data.into_result().is_err());
}

#[test]
fn a_stop_token_that_is_never_learned_is_an_error() {
    let data = with_encoder(FakeEncoder { learns_no_stop: true, ..FakeEncoder::default() });
    let problem = only(&data, "stop-token-not-supervised");
    assert_eq!(problem.severity, Severity::Error);
    assert!(problem.message.contains("`</s>`"), "{problem}");
}

#[test]
fn a_second_bos_is_an_error() {
    let data = with_encoder(FakeEncoder { writes_two_bos: true, ..FakeEncoder::default() });
    let problem = only(&data, "double-bos");
    assert_eq!(problem.message, "4 of 4 examples of `train` begin with two `<s>`");
}

#[test]
fn a_template_that_is_not_prefix_preserving_is_a_warning() {
    let data = with_encoder(FakeEncoder { changes_prefix: true, ..FakeEncoder::default() });
    assert_eq!(codes(&data), [(Severity::Warning, "template-not-prefix-preserving")]);
}

#[test]
fn conversations_without_a_chat_template_are_one_error_not_one_for_each_row() {
    let data = with_encoder(FakeEncoder { has_no_template: true, ..FakeEncoder::default() });
    assert_eq!(codes(&data), [(Severity::Error, "needs-chat-template")]);
}

#[test]
fn a_conversation_that_the_template_refuses_is_told_with_its_row() {
    let row = "{\"prompt\": \"q\", \"completion\": \"a\", \"tools\": [{\"name\": \"f\"}]}\n";
    let (folder, section) = folder(&[("train.jsonl", &(pairs(0..1) + row))]);
    let encoder = FakeEncoder { raises_on_tools: true, ..FakeEncoder::default() };
    let data = prepare(&section, folder.path(), 1, &encoder);
    assert_eq!(only(&data, "cannot-render").location.as_ref().unwrap().line, Some(2));
    let skipping = DataSection { on_error: OnError::Skip, ..section };
    let data = prepare(&skipping, folder.path(), 1, &encoder).into_result().unwrap();
    assert_eq!((data.train.tokenized.len(), data.train.report.skipped.len()), (1, 1));
}

fn long_rows(truncation: Truncation, max_length: usize) -> PreparedData {
    // 10 tokens around prompt and answer; the answer starts after 8 + the prompt's bytes.
    let text = pair("q", "a") + &pair("qq", &"a".repeat(30)) + &pair(&"q".repeat(30), "a");
    let (folder, mut section) = folder(&[("train.jsonl", &text)]);
    (section.truncation, section.max_length) = (truncation, max_length);
    prepare(&section, folder.path(), 1, &FakeEncoder::default())
}

#[test]
fn an_example_over_max_length_is_an_error_dropped_or_cut_as_the_recipe_says() {
    let data = long_rows(Truncation::Error, 20);
    assert_eq!(codes(&data), [(Severity::Error, "too-long"); 2]);
    assert!(
        data.problems.to_string().contains("the example has 39 tokens, `max_length` is 20"),
        "{}",
        data.problems
    );

    let data = long_rows(Truncation::Drop, 20);
    assert_eq!(codes(&data), [(Severity::Warning, "dropped-too-long")]);
    assert_eq!((data.train.dropped, data.train.keys.len(), data.train.tokenized.len()), (2, 1, 1));

    let data = long_rows(Truncation::Right, 20);
    assert_eq!(
        codes(&data),
        [(Severity::Error, "truncation-eats-answer"), (Severity::Warning, "truncation-cuts-answer")]
    );
    assert_eq!((data.train.truncated, data.train.tokenized[1].input_ids.len()), (1, 20));

    let data = long_rows(Truncation::Drop, 3);
    assert_eq!(only(&data, "no-examples").severity, Severity::Error);
}

#[test]
fn overlap_of_train_with_valid_and_test_is_an_error_with_the_lines() {
    let valid = pair("Question  1", "x") + &pairs(10..12);
    let test = pairs(11..14) + &pairs(2..4);
    let (folder, section) =
        folder(&[("train.jsonl", &pairs(0..4)), ("valid.jsonl", &valid), ("test.jsonl", &test)]);
    let data = prepare(&section, folder.path(), 1, &FakeEncoder::default());
    assert_eq!(
        codes(&data),
        [
            (Severity::Error, "split-overlap"),
            (Severity::Error, "split-overlap"),
            (Severity::Warning, "split-overlap")
        ]
    );
    let messages: Vec<&str> = data.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(
        messages[0].starts_with("1 of 3 inputs of `valid` occur in `train` (0 to the byte"),
        "{}",
        messages[0]
    );
    assert!(
        messages[1].ends_with("test.jsonl:4 = train.jsonl:3, test.jsonl:5 = train.jsonl:4"),
        "{}",
        messages[1]
    );

    let skipping = DataSection { on_error: OnError::Skip, ..section };
    let data = prepare(&skipping, folder.path(), 1, &FakeEncoder::default()).into_result().unwrap();
    assert_eq!(
        (data.train.tokenized.len(), data.valid.tokenized.len(), data.test.tokenized.len()),
        (1, 3, 5)
    );
    assert_eq!(data.train.report.skipped.len(), 3);
}

#[test]
fn repeated_and_contradictory_rows_are_warnings() {
    let text = pairs(0..2) + &pairs(0..1) + &pair("question 1", "something else");
    let (folder, section) = folder(&[("train.jsonl", &text)]);
    let data = prepare(&section, folder.path(), 1, &FakeEncoder::default()).into_result().unwrap();
    assert_eq!(
        codes(&data),
        [(Severity::Warning, "duplicate-rows"), (Severity::Warning, "contradictory-rows")]
    );
}

#[test]
fn faults_of_all_files_are_told_at_once() {
    let (folder, mut section) = folder(&[("train.jsonl", "[1]\n"), ("valid.jsonl", "")]);
    section.test = ["absent.jsonl"].into_iter().collect();
    section.max_length = 0;
    let data = prepare(&section, folder.path(), 1, &FakeEncoder::default());
    let found: Vec<&str> = data.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(found, ["out-of-range", "row-not-object", "empty-file", "unreadable-file"]);
}

/// The ids stand for the inputs here: equal inputs have equal answers.
fn inputs(split: &Split) -> BTreeSet<Vec<u32>> {
    split.tokenized.iter().map(|example| example.input_ids.clone()).collect()
}

#[test]
fn a_validation_split_is_drawn_by_the_seed_and_never_tears_equal_inputs_apart() {
    let text = pairs(0..40) + &pairs(0..40);
    let (folder, mut section) = folder(&[("train.jsonl", &text)]);
    section.validation_split = 0.25;
    let split = |seed| prepare(&section, folder.path(), seed, &FakeEncoder::default());
    let data = split(1);
    assert_eq!((data.train.tokenized.len(), data.valid.tokenized.len()), (60, 20));
    assert!(inputs(&data.train).is_disjoint(&inputs(&data.valid)));
    assert_eq!(inputs(&data.valid), inputs(&split(1).valid));
    assert_ne!(inputs(&data.valid), inputs(&split(2).valid));
    let lines: Vec<usize> = data.valid.keys.iter().map(|example| example.place.line).collect();
    assert!(lines.is_sorted());
}

#[test]
fn a_validation_split_of_one_input_is_an_error() {
    let (folder, mut section) = folder(&[("train.jsonl", &pairs(0..1).repeat(5))]);
    section.validation_split = 0.5;
    let data = prepare(&section, folder.path(), 1, &FakeEncoder::default());
    assert_eq!(only(&data, "empty-validation").severity, Severity::Error);
}

#[test]
fn the_number_of_threads_does_not_change_the_tokens() {
    // More than a chunk.
    let (folder, section) = folder(&[("train.jsonl", &pairs(0..4200))]);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| prepare(&section, folder.path(), 1, &FakeEncoder::default()).train.tokenized)
    };
    let one = with(1);
    assert_eq!(one, with(5));
    assert!(one.iter().map(|example| example.source.line).eq(1..=4200));
}
