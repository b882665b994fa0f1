//! Files as they come: what is harmless is accepted and told, everything else is an exact error with file and line.

use crate::desk::{Desk, questions, row};

/// Check with this file as training data.
fn check(desk: &Desk, bytes: impl AsRef<[u8]>, flags: &[&str]) -> crate::desk::Said {
    desk.write("train.jsonl", bytes);
    desk.taper(&[&["check", "recipe.toml"], flags].concat())
}

/// A good row before and after the bad one: faults are told by their line, and reading goes on.
fn around(bad: &str) -> String {
    format!("{}\n{bad}\n{}\n", row("before", "yes"), row("after", "yes"))
}

#[test]
fn each_bad_row_is_told_by_what_is_wrong_with_it_and_where() {
    let desk = Desk::new();
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(500), "]".repeat(500));
    for (bad, told, place) in [
        (r#"{"messages": NaN}"#, "`NaN` is not JSON", "train.jsonl:2:14"),
        (
            r#"{"messages": [{"role": "user", "content": "\ud83d"}]}"#,
            r"`\ud83d` is half of a surrogate pair",
            "train.jsonl:2:44",
        ),
        ("[1, 2]", "the row is an array, expected an object", "train.jsonl:2"),
        ("null", "the row is null", "train.jsonl:2"),
        ("{'messages': 1}", "not JSON", "train.jsonl:2:2"),
        (r#"{"messages": [1]} {}"#, "not JSON: trailing characters", "train.jsonl:2:19"),
        (r#"{"messages": 1, "messages": 2}"#, "the key `messages` stands twice", "train.jsonl:2"),
        (r#"{"messages": "hello"}"#, "a string where a list of messages belongs", "train.jsonl:2 `messages`"),
        (r#"{"messages": []}"#, "the list of messages is empty", "train.jsonl:2 `messages`"),
        (
            r#"{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "unknown role `usr`",
            "train.jsonl:2 `messages[0].role`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            "the last message is from `user`",
            "train.jsonl:2 `messages[0]`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}"#,
            "the content of the message is empty",
            "train.jsonl:2 `messages[1]`",
        ),
        (r#"{"text": "t"}"#, "the row is `text`, but the file is `messages` since line 1", "train.jsonl:2"),
        (deep.as_str(), "nested", "train.jsonl:2"),
    ] {
        let said = check(&desk, around(bad), &[]).exits(2).tells(&[
            "error[",
            told,
            place,
            "not ready to run: 1 error,",
        ]);
        assert_eq!(said.err.matches("error[").count(), 1, "{}", said.err);
    }
}

#[test]
fn harmless_oddities_are_accepted_and_told() {
    let desk = Desk::new();
    let rows = [row("one", "yes"), String::new(), row("two", "no")].join("\r\n");
    check(&desk, format!("\u{feff}{rows}"), &[]).exits(0).tells(&[
        "train.jsonl: 2 of 2 rows",
        "warning[byte-order-mark]",
        "warning[crlf]",
        "warning[blank-lines]",
        "3 warnings",
    ]);
}

#[test]
fn files_that_are_no_jsonl_are_refused_by_what_they_are() {
    let desk = Desk::new();
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, told) in [
        (utf16.as_slice(), "error[utf16]: the file is UTF-16"),
        (b"".as_slice(), "the file is empty"),
        (b"\x1f\x8b\x08\0".as_slice(), "the file is gzip"),
        (b"PAR1....".as_slice(), "the file is Parquet"),
        (b"<!DOCTYPE html>".as_slice(), "the file is a web page"),
        (b"[\n {}\n]\n".as_slice(), "one JSON array over many lines"),
        (b"version https://git-lfs.github.com/spec/v1\n".as_slice(), "git LFS pointer"),
        (b"\n\n".as_slice(), "the file has no rows"),
    ] {
        check(&desk, bytes, &[]).exits(2).tells(&[told, "--> train.jsonl"]);
    }
    check(&desk, b"{\"text\": \"caf\xe9\"}\n", &[]).exits(2).tells(&[
        "byte 0xe9 at offset 13",
        "train.jsonl:1:14",
        "iconv",
    ]);
    desk.taper(&["check", "recipe.toml", "--set", "data.train=base"]).exits(2).tells(&["a folder"]);
}

#[test]
fn a_line_over_the_cap_is_told_and_not_kept_in_memory() {
    let desk = Desk::new();
    let long = row(&"a".repeat(9 << 20), "b");
    check(&desk, around(&long), &[]).exits(2).tells(&[
        "error[row-too-long]",
        "at most 8388608 are read",
        "--> train.jsonl:2",
    ]);
}

#[test]
fn many_faults_are_cut_at_twenty() {
    let said = check(&Desk::new(), "[]\n".repeat(500), &[]).exits(2);
    assert_eq!(said.err.matches("error[row-not-object]").count(), 20, "{}", said.err);
}

#[test]
fn faulty_rows_can_be_skipped_and_are_then_counted_and_listed() {
    let desk = Desk::new();
    let bad = format!("[1]\n{{\"messages\": NaN}}\n{}\nnull\n", row("", "no question"));
    let text = format!("{}{bad}", questions(0..8));
    let said = check(&desk, &text, &["--set", "data.on_error=skip"])
        .exits(0)
        .tells(&[
            "train.jsonl: 8 of 12 rows",
            "skipped 4:",
            "train.jsonl:9:",
            "train.jsonl:10:14",
            "train.jsonl:11",
            "train.jsonl:12",
        ])
        .tells(&["ready to run"]);
    assert_eq!(said.out, "");
    let report = check(&desk, &text, &["--set", "data.on_error=skip", "--json"]).exits(0).json();
    let lines: Vec<_> =
        report["skipped"].as_array().unwrap().iter().map(|p| p["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [9, 10, 11, 12]);
    // A run tells them, too, and so does its report.
    let flags = [
        "run",
        "recipe.toml",
        "--set",
        "data.on_error=skip",
        "--set",
        "train.max_steps=2",
        "--set",
        "gate.min_exact_match_gain=-1",
    ];
    desk.taper(&flags).exits(0).tells(&["skipped 4:", "train.jsonl:9", "event=start"]);
    assert!(desk.read("runs/colours/report.md").contains("4 rows of `train` were skipped"));
}

#[test]
fn every_format_is_recognised_and_told() {
    let desk = Desk::new();
    for (rows, format) in [
        (r#"{"prompt": "q", "completion": "a"}"#, "prompt_completion"),
        (r#"{"instruction": "i", "input": "", "output": "o"}"#, "alpaca"),
        (
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            "sharegpt",
        ),
        (r#"{"text": "words"}"#, "text"),
    ] {
        check(&desk, rows, &["--set", "data.valid=[]"])
            .exits(0)
            .tells(&[&format!("`{format}` (recognised)")]);
    }
    check(&desk, r#"{"question": "q", "answer": "a"}"#, &[])
        .exits(2)
        .tells(&["no known format", "columns = { prompt = \"question\", completion = \"answer\" }"]);
    check(
        &desk,
        r#"{"question": "q", "answer": "a"}"#,
        &["--set", r#"data.columns={prompt="question",completion="answer"}"#],
    )
    .exits(0);
}
