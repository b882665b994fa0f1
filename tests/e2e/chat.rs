//! `taper chat`: a conversation, here through a pipe.

use crate::desk::{Desk, Said};

fn chat(desk: &Desk, input: &str, flags: &[&str]) -> Said {
    let args = [&["chat", "--model", "base", "--max-new-tokens", "6"], flags].concat();
    desk.taper_reading(&args, input.as_bytes())
}

/// The conversation as it ended.
fn messages(said: &Said) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    said.json()["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (text(&m["role"]), text(&m["content"])))
        .collect()
}

#[test]
fn each_line_is_answered_and_the_end_of_the_input_ends_the_chat() {
    let desk = Desk::new();
    let said = chat(&desk, "Hello\nAgain\n", &["--json"]).exits(0);
    let told = messages(&said);
    let roles: Vec<&str> = told.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!((told[0].1.as_str(), told[2].1.as_str()), ("Hello", "Again"));
    // Without --json the same answers are what is printed.
    let plain = chat(&desk, "Hello\nAgain", &[]).exits(0).tells(&["Ctrl-D ends the chat"]);
    assert_eq!(plain.out, format!("{}\n{}\n", told[1].1, told[3].1));
    assert_eq!(chat(&desk, "", &[]).exits(0).out, "");
}

#[test]
fn the_first_answer_is_that_of_generate_and_the_second_knows_the_first() {
    let desk = Desk::new();
    let said = messages(&chat(&desk, "Hello\nHello\n", &["--json"]).exits(0));
    let alone =
        desk.taper(&["generate", "--model", "base", "--prompt", "Hello", "--max-new-tokens", "6"]).exits(0);
    assert_eq!(format!("{}\n", said[1].1), alone.out);
    let fresh = messages(&chat(&desk, "Hello\n/new\nHello\n", &["--json"]).exits(0).tells(&["forgotten"]));
    assert_eq!(fresh.len(), 2);
    assert_eq!(fresh[1], said[1]);
}

#[test]
fn an_empty_line_ends_the_chat() {
    let desk = Desk::new();
    let said = messages(&chat(&desk, "Hello\n\nnever read\n", &["--json", "--system", "Be brief."]).exits(0));
    let roles: Vec<&str> = said.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
}

#[test]
fn sampled_conversations_repeat_with_their_seed() {
    let desk = Desk::new();
    let sampled = |seed: &str| {
        messages(&chat(&desk, "Hello\nAgain\n", &["--json", "--temperature", "1.2", "--seed", seed]).exits(0))
    };
    assert_eq!(sampled("3"), sampled("3"));
    assert!(["4", "5", "6"].iter().any(|seed| sampled(seed) != sampled("3")));
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let desk = Desk::new();
    fs_err::remove_file(desk.path("base/chat_template.jinja")).unwrap();
    let mut config = desk.json("base/tokenizer_config.json");
    config.as_object_mut().unwrap().remove("chat_template");
    desk.write("base/tokenizer_config.json", config.to_string());
    chat(&desk, "Hello\n", &[]).exits(2).tells(&["no chat template", "help:", "taper generate"]);
}
