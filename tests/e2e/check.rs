//! `taper check`: what makes a run worthless is found and named before it, without weights (invariant 8).

use crate::desk::{Desk, RECIPE, questions, row};

/// A desk whose base has no weights: neither `check` nor `explain` may want them.
fn without_weights() -> Desk {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    desk
}

fn with_template(desk: &Desk, template: &str) {
    desk.write("base/chat_template.jinja", template);
}

#[test]
fn good_data_is_ready_and_told_in_figures() {
    let desk = without_weights();
    let said = desk
        .taper(&["check", "recipe.toml"])
        .exits(0)
        .tells(&["train", "96 examples", "learned", "train.jsonl: 96 of 96 rows", "`messages` (recognised)"])
        .tells(&["test ", "32 examples", "ready to run: no errors, no warnings"]);
    assert_eq!(said.out, "");
    assert!(!desk.has("runs"));
    // The weights are missed where they are needed, and no sooner.
    desk.taper(&["run", "recipe.toml"]).exits(2).tells(&["no weights", "help:"]);
}

#[test]
fn json_gives_scripts_the_same() {
    let desk = without_weights();
    let said = desk.taper(&["check", "recipe.toml", "--json"]).exits(0);
    let report = said.json();
    assert_eq!((report["ready"].as_bool(), report["problems"].as_array().unwrap().len()), (Some(true), 0));
    let train = &report["data"]["train"];
    assert_eq!(train["examples"], 96);
    assert!(
        train["supervised_tokens"].as_u64() > Some(0)
            && train["tokens"].as_u64() > train["supervised_tokens"].as_u64()
    );
}

#[test]
fn an_example_that_teaches_nothing_is_named() {
    let desk = without_weights();
    // A turn that is marked as not learned is written outside of the assistant's block.
    with_template(
        &desk,
        "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' }}{%- if m['role'] == 'assistant' and not m['quiet'] %}\
         {%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}{%- else %}{%- generation %}{%- endgeneration %}\
         {{- m['content'] + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}\
         {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    );
    let quiet = row("one", "two").replace("\"two\"", "\"two\",\"quiet\":true");
    desk.write("train.jsonl", [row("three", "four"), quiet, row("five", "six")].join("\n"));
    let said = desk.taper(&["check", "recipe.toml"]).exits(2).tells(&[
        "error[no-supervised-token]: no token of the example is learned",
        "--> train.jsonl:2",
        "help: `taper explain` shows",
    ]);
    assert_eq!(said.err.matches("no-supervised-token").count(), 1, "{}", said.err);
}

#[test]
fn a_template_that_never_ends_a_turn_is_an_error() {
    let desk = without_weights();
    with_template(
        &desk,
        "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    );
    desk.taper(&["check", "recipe.toml"]).exits(2).tells(&[
        "error[stop-token-not-supervised]",
        "`<|im_end|>`",
        "--> train.jsonl:1",
        "help: the model would not learn to end",
    ]);
    desk.taper(&["run", "recipe.toml"]).exits(2).tells(&["stop-token-not-supervised"]).never_tells("event=");
    assert!(!desk.has("runs"));
}

#[test]
fn two_beginnings_of_a_sequence_are_an_error() {
    let desk = without_weights();
    with_template(
        &desk,
        "{{- bos_token + bos_token }}{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    );
    desk.taper(&["check", "recipe.toml"])
        .exits(2)
        .tells(&["error[double-bos]: 96 of 96 examples of `train`", "--> train.jsonl:1"]);
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_a_warning() {
    let desk = without_weights();
    // What the user said last is marked: an answer in the middle is learned behind another text than it is generated behind.
    with_template(
        &desk,
        "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{%- if m['role'] == 'user' and loop.index0 >= (messages | length) - 2 %}{{- ' /now' }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    );
    let turns = |n: usize| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"a {n}"}},{{"role":"assistant","content":"b"}},{{"role":"user","content":"c"}},{{"role":"assistant","content":"d"}}]}}"#
        )
    };
    desk.write("train.jsonl", [row("one turn", "only"), turns(1), turns(2)].join("\n"));
    desk.taper(&["check", "recipe.toml"])
        .exits(0)
        .tells(&[
            "warning[template-not-prefix-preserving]",
            "before 2 of 5 answers",
            "--> train.jsonl:2",
            "last_assistant",
        ])
        .tells(&["ready to run: no errors, 1 warning"]);
    desk.taper(&["check", "recipe.toml", "--set", "data.supervise=last_assistant"])
        .exits(0)
        .tells(&["no warnings"]);
}

#[test]
fn truncation_is_told_by_what_it_takes() {
    let desk = without_weights();
    let check = |length: usize, how: &str| {
        let (length, how) = (format!("data.max_length={length}"), format!("data.truncation={how}"));
        desk.taper(&["check", "recipe.toml", "--set", &length, "--set", &how])
    };
    check(10, "error").exits(2).tells(&["error[too-long]", "`max_length` is 10", "--> train.jsonl:1"]);
    check(10, "right").exits(2).tells(&[
        "error[truncation-eats-answer]",
        "--> train.jsonl:1",
        "help: raise `data.max_length`",
    ]);
    check(41, "right").exits(0).tells(&["warning[truncation-cuts-answer]", "stop token", "--> train.jsonl:"]);
    check(10, "drop").exits(2).tells(&["error[no-examples]", "96 are too long"]);
}

#[test]
fn questions_that_are_trained_on_and_tested_are_an_error() {
    let desk = without_weights();
    desk.write("test.jsonl", questions([200, 7, 201, 9]));
    desk.taper(&["check", "recipe.toml"]).exits(2).tells(&[
        "error[split-overlap]: 2 of 4 inputs of `test` occur in `train`",
        "test.jsonl:2 = train.jsonl:8",
        "--> test.jsonl:2",
    ]);
    desk.taper(&["check", "recipe.toml", "--set", "data.on_error=skip"]).exits(0).tells(&[
        "train.jsonl: 96 of 96 rows",
        "skipped 2:",
        "train.jsonl:8",
        "split-overlap",
        "ready to run",
    ]);
}

#[test]
fn an_evaluation_without_data_is_found_before_the_training() {
    let desk = Desk::new();
    for (set, told) in [
        ("data.test=[]", "evaluation `held-out` has no example"),
        ("eval.0.data=nowhere.jsonl", "nowhere.jsonl"),
        ("eval.0.data=train.jsonl", "error[split-overlap]: 96 of 96 inputs of `held-out` occur in `train`"),
    ] {
        for verb in ["check", "run"] {
            desk.taper(&[verb, "recipe.toml", "--set", set])
                .exits(2)
                .tells(&[told, "help:"])
                .never_tells("event=");
        }
        assert!(!desk.has("runs"), "{set}");
    }
}

#[test]
fn conversations_without_a_template_are_told_what_to_do() {
    let desk = without_weights();
    fs_err::remove_file(desk.path("base/chat_template.jinja")).unwrap();
    let config = desk.json("base/tokenizer_config.json");
    let mut config = config.as_object().unwrap().clone();
    config.remove("chat_template");
    desk.write("base/tokenizer_config.json", serde_json::to_string(&config).unwrap());
    desk.taper(&["check", "recipe.toml"]).exits(2).tells(&[
        "no chat template",
        "--> train.jsonl:1",
        "help:",
        "model.chat_template",
    ]);
}

#[test]
fn a_template_that_cannot_be_used_is_told_by_its_file() {
    let desk = without_weights();
    let with = |template: &str| {
        let set = format!("model.chat_template={template}");
        desk.taper(&["check", "recipe.toml", "--set", &set]).exits(2)
    };
    with("nowhere.jinja").tells(&["no chat template `nowhere.jinja`", "help:"]);
    desk.write("broken.jinja", "{% for m in %}");
    with("broken.jinja").tells(&["`broken.jinja` does not parse", "--> broken.jinja:1"]);
    // Time is bounded, whatever a template asks for; each example takes it all.
    desk.write("train.jsonl", row("one", "two"));
    desk.write("recipe.toml", &RECIPE[..RECIPE.find("valid =").unwrap()]);
    let endless = "{% for i in range(90000) %}{% for j in range(90000) %}{% for k in range(90000) %}{% endfor %}{% endfor %}{% endfor %}";
    desk.write("endless.jinja", endless);
    with("endless.jinja").tells(&["`endless.jinja` failed", "out of fuel", "--> train.jsonl:1"]);
}

#[test]
fn repeated_and_contradictory_rows_are_warnings() {
    let desk = without_weights();
    let rows = [row("who", "me"), row("what", "this"), row("who", "me"), row("What", "that")];
    desk.write("train.jsonl", rows.join("\n"));
    desk.taper(&["check", "recipe.toml"])
        .exits(0)
        .tells(&["warning[duplicate-rows]", "train.jsonl:3 = train.jsonl:1"])
        .tells(&["warning[contradictory-rows]", "train.jsonl:4 = train.jsonl:2"]);
}

#[test]
fn a_file_that_is_not_there_is_told_once_with_its_name() {
    let desk = without_weights();
    desk.write("recipe.toml", RECIPE.replace("train.jsonl", "trian.jsonl"));
    let said =
        desk.taper(&["check", "recipe.toml"]).exits(2).tells(&["trian.jsonl", "No such file", "help:"]);
    assert!(said.err.matches("trian.jsonl").count() <= 2, "{}", said.err);
}
