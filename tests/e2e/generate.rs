//! `taper generate`: one prompt, one answer.

use crate::desk::{Desk, Said};

fn generate(desk: &Desk, flags: &[&str]) -> Said {
    desk.taper(&[&["generate", "--model", "base", "--max-new-tokens", "16"], flags].concat())
}

#[test]
fn greedy_answers_repeat_and_end_with_a_line_break() {
    let desk = Desk::new();
    let first = generate(&desk, &["--prompt", "Hello"]).exits(0);
    assert!(first.out.ends_with('\n') && first.out.trim_end().len() > 1, "{first:?}");
    assert_eq!(generate(&desk, &["--prompt", "Hello"]).exits(0).out, first.out);
    // Greedy means greedy: a seed changes nothing.
    assert_eq!(generate(&desk, &["--prompt", "Hello", "--seed", "5"]).exits(0).out, first.out);
}

#[test]
fn sampled_answers_are_those_of_their_seed() {
    let desk = Desk::new();
    let sampled = |seed: &str| {
        generate(
            &desk,
            &[
                "--prompt",
                "Hello",
                "--temperature",
                "1",
                "--top-p",
                "0.9",
                "--top-k",
                "50",
                "--min-p",
                "0.01",
                "--seed",
                seed,
            ],
        )
        .exits(0)
        .out
    };
    let answers: Vec<String> = ["1", "2", "3"].map(sampled).into();
    assert_eq!(answers, ["1", "2", "3"].map(sampled));
    assert!(answers[0] != answers[1] || answers[1] != answers[2], "{answers:?}");
}

#[test]
fn json_tells_the_text_the_end_and_the_tokens() {
    let desk = Desk::new();
    let plain = generate(&desk, &["--prompt", "Hello"]).exits(0);
    let json = generate(&desk, &["--prompt", "Hello", "--json"]).exits(0).json();
    assert_eq!(json["text"].as_str().unwrap(), plain.out.strip_suffix('\n').unwrap());
    let one = generate(&desk, &["--prompt", "Hello", "--json", "--max-new-tokens", "1"]);
    // A flag that is given twice is no flag to guess about.
    one.exits(2);
    let args = ["generate", "--model", "base", "--prompt", "Hello", "--json", "--max-new-tokens", "1"];
    let one = desk.taper(&args).exits(0).json();
    assert_eq!(
        (one["finish_reason"].as_str(), one["usage"]["completion_tokens"].as_u64()),
        (Some("length"), Some(1))
    );
    assert!(one["usage"]["prompt_tokens"].as_u64() > Some(10));
}

#[test]
fn a_dash_reads_the_prompt_from_stdin() {
    let desk = Desk::new();
    let typed = generate(&desk, &["--prompt", "two\nlines"]).exits(0);
    let args = ["generate", "--model", "base", "--max-new-tokens", "16", "--prompt", "-"];
    assert_eq!(desk.taper_reading(&args, b"two\nlines\n").exits(0).out, typed.out);
    desk.taper_reading(&args, b"caf\xe9").exits(2).tells(&["not UTF-8"]);
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let desk = Desk::new();
    let whole = generate(&desk, &["--prompt", "Hello", "--raw"]).exits(0).out;
    let whole = whole.trim_end_matches('\n');
    // A piece from the middle of the answer.
    let chars: Vec<char> = whole.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let cut = generate(&desk, &["--prompt", "Hello", "--raw", "--stop", &stop, "--json"]).exits(0).json();
    assert_eq!(cut["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(cut["finish_reason"], "stop");
}

#[test]
fn the_system_message_and_the_template_matter() {
    let desk = Desk::new();
    let prompt_tokens = |flags: &[&str]| {
        generate(&desk, &[&["--prompt", "Hello", "--json"], flags].concat()).exits(0).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let (plain, system, raw) =
        (prompt_tokens(&[]), prompt_tokens(&["--system", "Be"]), prompt_tokens(&["--raw"]));
    assert!(raw < system && system < plain, "{raw} {system} {plain}");
    generate(&desk, &["--prompt", "Hello", "--raw", "--system", "Be"])
        .exits(2)
        .tells(&["`--system` needs a chat template", "help:"]);
}

#[test]
fn flags_out_of_range_are_told_all_at_once_before_the_model_is_read() {
    let desk = Desk::empty();
    let args = [
        "generate",
        "--model",
        "nowhere",
        "--prompt",
        "x",
        "--max-new-tokens",
        "0",
        "--temperature",
        "-1",
        "--top-p",
        "3",
        "--min-p",
        "2",
    ];
    let said = desk.taper(&args).exits(2);
    for flag in ["`--max-new-tokens`", "`--temperature`", "`--top-p`", "`--min-p`"] {
        assert!(said.err.contains(flag), "{}", said.err);
    }
}

#[test]
fn a_base_or_adapter_that_is_not_one_is_told_with_what_is_missing() {
    let desk = Desk::new();
    let with = |flags: &[&str]| desk.taper(&[&["generate", "--prompt", "x"], flags].concat()).exits(2);
    with(&["--model", "./nowhere"]).tells(&["no folder `./nowhere`", "help:"]);
    with(&["--model", "nowhere"]).tells(&["`nowhere` is neither a folder nor a hub id", "help:"]);
    with(&["--model", "recipe.toml"]).tells(&["`recipe.toml` is a file", "help:"]);
    with(&["--model", "base", "--adapter", "nowhere"]).tells(&[
        "adapter_model.safetensors",
        "nowhere",
        "help:",
    ]);
    with(&["--model", "base", "--adapter", "base"]).tells(&[
        "folder of a model",
        "base",
        "help:",
        "`--model`",
    ]);
    fs_err::remove_file(desk.path("base/tokenizer.json")).unwrap();
    with(&["--model", "base"]).tells(&["no `tokenizer.json`", "help:"]);
    fs_err::remove_file(desk.path("base/config.json")).unwrap();
    with(&["--model", "base"]).tells(&["no `config.json`", "help:"]);
}

#[test]
fn broken_weights_are_told_by_their_file() {
    let desk = Desk::new();
    let weights = desk.bytes("base/model.safetensors");
    for broken in [&weights[..100], &weights[..weights.len() - 7], b"", b"not safetensors at all"] {
        desk.write("base/model.safetensors", broken);
        generate(&desk, &["--prompt", "x"]).exits(2).tells(&["model.safetensors"]);
    }
    desk.write("base/model.safetensors", weights);
    desk.write("base/config.json", desk.read("base/config.json").replace("\"llama\"", "\"lama\""));
    generate(&desk, &["--prompt", "x"]).exits(2).tells(&["`lama`", "`llama`"]);
}

#[test]
fn a_prompt_over_the_models_context_is_told() {
    let desk = Desk::new();
    let long = "word ".repeat(3000);
    let args = ["generate", "--model", "base", "--prompt", "-"];
    desk.taper_reading(&args, long.as_bytes()).exits(2).tells(&["2048", "help:"]);
}

#[test]
fn an_answer_that_nobody_reads_is_no_fault() {
    let desk = Desk::new();
    let mut child = desk.start(&["generate", "--model", "base", "--prompt", "x", "--max-new-tokens", "400"]);
    drop(child.stdout.take());
    crate::desk::said(child.wait_with_output().unwrap(), &["generate"]).exits(0);
}
