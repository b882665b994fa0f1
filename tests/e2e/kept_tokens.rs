//! Tokens are kept between runs, and nothing that is trained or told depends on it.

use crate::desk::{ADAPTER, Desk, questions, row};

const REUSED: &str = "tokens of 144 examples are those that an earlier run kept";

/// A run that trains a little, in a folder of its own.
fn run<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "recipe.toml", "--out", out, "--set", "train.max_steps=10"];
    args.extend(["--set", "gate.min_exact_match_gain=-1"]);
    args.extend(more);
    args
}

#[test]
fn a_second_run_reads_what_the_first_one_kept_and_trains_the_same() {
    let desk = Desk::new();
    let off = ["--set", "data.cache=false"];
    desk.taper(&run("runs/without", &off)).exits(0).never_tells("an earlier run kept");
    assert!(!desk.kept_tokens().exists());
    desk.taper(&run("runs/first", &[])).exits(0).never_tells("an earlier run kept");
    assert_eq!(desk.files(desk.kept_tokens()).len(), 3);
    desk.taper(&run("runs/second", &[])).exits(0).tells(&[REUSED]);
    // A file is broken.
    let (name, mut bytes) = desk.files(desk.kept_tokens()).pop_first().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs_err::write(desk.kept_tokens().join(name), bytes).unwrap();
    desk.taper(&run("runs/broken", &[])).exits(0).tells(&[
        "warning[token-cache]",
        "wrong checksum",
        "kept anew",
    ]);
    desk.taper(&run("runs/mended", &[])).exits(0).tells(&[REUSED]).never_tells("token-cache");
    let expected = desk.bytes(&ADAPTER.replace("colours", "without"));
    for out in ["first", "second", "broken", "mended"] {
        assert!(desk.bytes(&ADAPTER.replace("colours", out)) == expected, "{out}");
        let results = format!("runs/{out}/eval/results.json");
        assert_eq!(desk.json(&results), desk.json("runs/without/eval/results.json"), "{out}");
    }
}

#[test]
fn a_check_tells_the_same_when_the_tokens_were_kept() {
    let desk = Desk::new();
    let long = "a long story ".repeat(60);
    let rows = [questions(0..96), row("item 3 K", "black"), row(&long, "ok"), "[1]".to_owned()].join("\n");
    desk.write("train.jsonl", rows.replace("\n\n", "\n"));
    let args =
        ["check", "recipe.toml", "--json", "--set", "data.on_error=skip", "--set", "data.max_length=100"];
    let args = [args.as_slice(), &["--set", "data.truncation=drop"]].concat();
    let first = desk.taper(&args).exits(0);
    assert!(first.out.contains("dropped-too-long") && first.out.contains("row-not-object"), "{first:?}");
    assert_eq!(desk.taper(&args).exits(0).out, first.out);
    // Another length needs no other tokens.
    let longer = [args.as_slice(), &["--set", "data.max_length=1000"]].concat();
    let files = desk.files(desk.kept_tokens());
    assert_ne!(desk.taper(&longer).exits(0).out, first.out);
    assert!(desk.files(desk.kept_tokens()) == files);
}
