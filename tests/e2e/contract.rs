//! `taper.json`: an adapter is not used over something else unnoticed.

use crate::desk::{ADAPTER, Desk, spec};
use taper_testkit::TinySpec;

const CONTRACT: &str = "runs/colours/adapter/taper.json";
const ASK: [&str; 7] =
    ["generate", "--model", "base", "--adapter", "runs/colours/adapter", "--prompt", "item 401 R"];

fn ask<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ASK.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn a_run_leaves_a_contract_that_says_what_was_trained_over_what() {
    let desk = Desk::trained();
    let contract = desk.json(CONTRACT);
    assert_eq!(contract["schema"], 1);
    assert_eq!(contract["base"]["name"], "base");
    assert_eq!(contract["base"]["weights"][0]["file"], "model.safetensors");
    let run = desk.json("runs/colours/run.json");
    let train = &contract["data"][0];
    assert_eq!((train["split"].as_str(), train["examples"].as_u64()), (Some("train"), Some(96)));
    assert_eq!(train["files"][0]["sha256"], run["data"][0]["sha256"]);
    let layer = &contract["scale"]["layers"]["model.layers.1.mlp.down_proj"];
    assert_eq!((layer["r"].as_u64(), layer["scale"].as_f64()), (Some(8), Some(2.0)));
    assert_eq!(contract["scale"]["layers"].as_object().unwrap().len(), 14);
    assert_eq!(contract["golden"].as_array().unwrap().len(), 3);
    assert!(contract["chat_template"]["source"].as_str().unwrap().contains("im_start"));
    // What the evaluation found stands in it, and nothing of the data does.
    assert_eq!(contract["evaluation"][0]["metric"], "exact_match");
    assert!(contract["evaluation"][0]["adapter"].as_f64() > contract["evaluation"][0]["base"].as_f64());
    assert!(!desk.read(CONTRACT).contains("item "));
    desk.taper(&ask(&[])).exits(0).never_tells("taper.json");
    // Coded in fewer bits while it is loaded, the base is the same base.
    desk.taper(&ask(&["--quantize", "nf4"])).exits(0).never_tells("not trained over");
}

#[test]
fn another_base_is_refused_by_every_verb_with_what_differs() {
    let desk = Desk::trained();
    fs_err::remove_dir_all(desk.path("base")).unwrap();
    taper_testkit::tiny_checkpoint(&desk.path("base"), &TinySpec { seed: 2, ..spec() });
    let differs = ["was not trained over `base` as it is", "`model.safetensors` has the SHA-256 ", "--force"];
    desk.taper(&ask(&[])).exits(2).tells(&differs);
    let chat = ["chat", "--model", "base", "--adapter", "runs/colours/adapter"];
    desk.taper_reading(&chat, b"item 401 R\n").exits(2).tells(&differs);
    desk.taper(&["eval", "recipe.toml"]).exits(2).tells(&differs);
    desk.taper(&["export", "recipe.toml"]).exits(2).tells(&differs);
    desk.taper(&ask(&["--force"])).exits(0).tells(&["warning: ", "SHA-256", "it is used all the same"]);
    desk.taper(&["eval", "recipe.toml", "--force"]).exits(100).tells(&["warning: ", "SHA-256"]);
    // Forced, what is exported is still held against what was trained.
    desk.taper(&["export", "recipe.toml", "--force", "--format", "peft"])
        .exits(2)
        .tells(&["warning: ", "does not give what was trained"]);
    desk.taper(&["generate", "--model", "base", "--force", "--prompt", "x"]).exits(2);
}

#[test]
fn another_template_or_special_token_is_named() {
    let desk = Desk::trained();
    let template = desk.read("base/chat_template.jinja");
    desk.write("base/chat_template.jinja", template.replace("<|im_start|>assistant", "<|im_start|>helper"));
    desk.taper(&ask(&[])).exits(2).tells(&["chat template: line ", "helper", "trained with", "assistant"]);
    desk.write("base/chat_template.jinja", template);
    desk.taper(&ask(&[])).exits(0);
    let config = desk.read("base/tokenizer_config.json");
    let changed = config.replace("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": \"<|endoftext|>\"");
    assert_ne!(changed, config);
    desk.write("base/tokenizer_config.json", changed);
    desk.taper(&ask(&[])).exits(2).tells(&["tokenizer: the special token `eos_token` is `<|endoftext|>`"]);
}

#[test]
fn an_adapter_without_a_contract_is_used_and_that_is_said() {
    let desk = Desk::trained();
    fs_err::remove_file(desk.path(CONTRACT)).unwrap();
    desk.taper(&ask(&[])).exits(0).tells(&["no taper.json", "cannot be checked"]);
    // Exported, it has one again.
    desk.taper(&["export", "recipe.toml", "--format", "peft"]).exits(0);
    assert_eq!(desk.json(CONTRACT)["evaluation"][0]["metric"], "exact_match");
    desk.write(CONTRACT, "{\"schema\": 9}");
    desk.taper(&ask(&[])).exits(2).tells(&["taper.json", "its layout is 9"]);
    desk.taper(&ask(&["--force"])).exits(0).tells(&["warning: ", "used unchecked"]);
}

#[test]
fn an_adapter_that_was_trained_with_a_template_of_its_own_brings_it_along() {
    let desk = Desk::new();
    let template = desk.read("base/chat_template.jinja").replace("<|im_start|>system", "<|im_start|>rules");
    desk.write("own.jinja", &template);
    desk.taper(&["train", "recipe.toml", "--set", "model.chat_template=own.jinja"]).exits(0);
    assert_eq!(desk.read("runs/colours/adapter/chat_template.jinja"), template);
    let own = desk.taper(&ask(&["--json", "--system", "x"])).exits(0).json();
    fs_err::remove_file(desk.path("runs/colours/adapter/chat_template.jinja")).unwrap();
    desk.taper(&ask(&["--system", "x"])).exits(2).tells(&["chat template: line "]);
    let forced = desk.taper(&ask(&["--json", "--system", "x", "--force"])).exits(0).json();
    assert!(own["usage"]["prompt_tokens"].is_u64() && forced["usage"]["prompt_tokens"].is_u64());
}

#[test]
fn an_adapter_whose_weights_were_changed_is_not_exported_as_what_was_trained() {
    let desk = Desk::trained();
    let mut bytes = desk.bytes(ADAPTER);
    let length = bytes.len();
    // The last tensors in the file are zeros now.
    bytes[length - 4096..].fill(0);
    desk.write(ADAPTER, bytes);
    desk.taper(&["export", "recipe.toml", "--format", "peft"])
        .exits(2)
        .tells(&["does not give what was trained", "golden prompts"]);
}
