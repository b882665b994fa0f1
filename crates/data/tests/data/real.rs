//! Real files with real faults: each loads as it should, or gets the error that is documented for it.
//!
//! `TAPER_REAL_DATA`, or `../shared/real` beside the workspace, holds them; without it these tests say so and pass.

use std::path::PathBuf;
use taper_data::{DataSection, Dataset, DatasetFormat, Error, ExampleKind, OnError, load};
use taper_diagnostics::Problems;

fn real(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TAPER_REAL_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/real")),
        PathBuf::from,
    );
    let path = folder.join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: `{}` is not there; set TAPER_REAL_DATA", path.display());
    None
}

fn read(file: &str, section: &DataSection) -> Option<Result<Dataset, Problems>> {
    let path = real(file)?;
    Some(load(&[path], section).map_err(|error| match error {
        Error::Problems(problems) => problems,
        other => panic!("{other}"),
    }))
}

/// What a file gives: examples and format, or code, line and column of the first problem and their number.
#[derive(Debug, PartialEq)]
enum Gives {
    Examples(usize, DatasetFormat),
    Problem(&'static str, Option<usize>, Option<usize>, usize),
}

fn outcome(file: &str, section: &DataSection) -> Option<Gives> {
    Some(match read(file, section)? {
        Ok(dataset) => Gives::Examples(dataset.examples.len(), dataset.report.files[0].format.unwrap()),
        Err(problems) => {
            let first = problems.iter().next().unwrap();
            let at = first.location.as_ref().unwrap();
            Gives::Problem(first.code, at.line, at.column, problems.len())
        }
    })
}

fn skipping() -> DataSection {
    DataSection { on_error: OnError::Skip, ..DataSection::default() }
}

fn mapped(columns: &[(&str, &str)]) -> DataSection {
    let columns = columns.iter().map(|(column, name)| ((*column).into(), (*name).into())).collect();
    DataSection { columns, ..DataSection::default() }
}

#[test]
fn wild_files_load_or_get_their_documented_error() {
    use DatasetFormat::{Messages, Text};
    let at = |code, line| Gives::Problem(code, Some(line), None, 1);
    for (file, expected) in [
        ("blank-between-rows-no-final-newline", Gives::Examples(10, Messages)),
        ("content-is-list-of-parts", Gives::Problem("not-text", Some(1), None, 20)),
        ("crlf-mtbench", at("unknown-format", 1)),
        // The escapes in line 781 are `\\ud83d`: a backslash and letters, no surrogate. The file is valid.
        ("lone-surrogate-escape", Gives::Examples(904, Text)),
        ("nan-literal", Gives::Problem("unknown-format", Some(1), None, 2)),
        ("openai-drone_training-excerpt", at("tool-arguments", 3)),
        ("openai-toy_chat_fine_tuning", Gives::Examples(5, Messages)),
        ("rows-are-arrays", Gives::Problem("row-not-object", Some(1), None, 5)),
        ("sharegpt-role-Customer", Gives::Problem("unknown-role", Some(1), None, 10)),
    ] {
        let file = format!("jsonl-wild/{file}.jsonl");
        if let Some(given) = outcome(&file, &DataSection::default()) {
            assert_eq!(given, expected, "{file}");
        }
    }
}

#[test]
fn the_nan_literal_is_found_at_its_column() {
    let section = mapped(&[("prompt", "input"), ("completion", "ideal")]);
    if let Some(given) = outcome("jsonl-wild/nan-literal.jsonl", &section) {
        assert_eq!(given, Gives::Problem("nan-literal", Some(200), Some(42), 1));
    }
    let skip = DataSection { on_error: OnError::Skip, ..section };
    if let Some(dataset) = read("jsonl-wild/nan-literal.jsonl", &skip) {
        assert_eq!(dataset.unwrap().examples.len(), 199);
    }
}

#[test]
fn an_escaped_backslash_before_a_surrogates_digits_stays_text() {
    let Some(dataset) = read("jsonl-wild/lone-surrogate-escape.jsonl", &DataSection::default()) else {
        return;
    };
    let example = &dataset.unwrap().examples[780];
    assert_eq!(example.place.line, 781);
    assert!(matches!(&example.kind, ExampleKind::Text(text) if text.contains(r"\ud83d\ude42")));
}

#[test]
fn skipping_keeps_the_good_rows_of_a_wild_file() {
    let Some(dataset) = read("jsonl-wild/openai-drone_training-excerpt.jsonl", &skipping()) else { return };
    let dataset = dataset.unwrap();
    assert_eq!((dataset.examples.len(), dataset.report.skipped.len()), (2, 1));
    let skipped = dataset.report.skipped.iter().next().unwrap();
    let key = skipped.location.as_ref().unwrap().key.as_deref();
    assert_eq!(key, Some("messages[2].tool_calls[0].function.arguments"));
}

#[test]
fn real_datasets_load_as_they_are_documented() {
    use DatasetFormat::{Alpaca, Messages, PromptCompletion, Sharegpt, Text};
    let plain = DataSection::default();
    let gsm8k = mapped(&[("prompt", "question"), ("completion", "answer")]);
    for (file, section, expected) in [
        ("gsm8k/train.jsonl", &gsm8k, Gives::Examples(7473, PromptCompletion)),
        ("gsm8k/test.jsonl", &gsm8k, Gives::Examples(1319, PromptCompletion)),
        ("gsm8k/test.jsonl", &plain, Gives::Problem("unknown-format", Some(1), None, 1)),
        ("wikisql-mlx/train.jsonl", &plain, Gives::Examples(1000, Text)),
        ("wikisql-mlx/valid.jsonl", &plain, Gives::Examples(100, Text)),
        ("wikisql-mlx/test.jsonl", &plain, Gives::Examples(100, Text)),
        ("llamafactory-demo/identity.json", &plain, Gives::Examples(91, Alpaca)),
        ("llamafactory-demo/glaive_toolcall_en_demo.json", &plain, Gives::Examples(300, Sharegpt)),
        ("llamafactory-demo/v1_sft_demo.jsonl", &plain, Gives::Examples(500, Messages)),
        ("mt-bench/question.jsonl", &plain, Gives::Problem("unknown-format", Some(1), None, 1)),
        ("banking77/train.csv", &plain, Gives::Problem("not-jsonl", None, None, 1)),
        ("tinyshakespeare/input.txt", &plain, Gives::Problem("json-syntax", Some(1), Some(1), 20)),
    ] {
        let file = format!("datasets/{file}");
        if let Some(given) = outcome(&file, section) {
            assert_eq!(given, expected, "{file}");
        }
    }
}
