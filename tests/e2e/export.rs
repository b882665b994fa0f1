//! `taper export`: artefacts that are proven to be what was trained.

use crate::desk::{ADAPTER, Desk};

#[test]
fn each_format_is_written_with_its_proof() {
    let desk = Desk::trained();
    fs_err::remove_dir_all(desk.path("runs/colours/merged")).unwrap();
    let adapter = desk.bytes(ADAPTER);
    let said = desk
        .taper(&["export", "recipe.toml", "--format", "merged,peft"])
        .exits(0)
        .tells(&["export merged: runs/colours/merged", "mean KL", "limit"])
        .tells(&["export peft: runs/colours/adapter", "mean KL", "limit"]);
    assert_eq!(said.out, "");
    assert!(desk.bytes(ADAPTER) == adapter);
    let bytes = desk.bytes("runs/colours/merged/model.safetensors");
    let names = safetensors::SafeTensors::deserialize(&bytes).unwrap().names().len();
    let base = desk.bytes("base/model.safetensors");
    assert_eq!(names, safetensors::SafeTensors::deserialize(&base).unwrap().names().len());
    let exported = desk.taper(&["export", "recipe.toml", "--format", "merged", "--json"]).exits(0).json();
    assert_eq!(exported[0]["format"], "merged");
    assert!(exported[0]["proof"].is_object(), "{exported}");
}

#[test]
fn merged_and_adapter_say_the_same() {
    let desk = Desk::trained();
    let generate = |flags: &[&str], prompt: &str| {
        let args = [&["generate", "--prompt", prompt, "--max-new-tokens", "12", "--json"], flags].concat();
        desk.taper(&args).exits(0).json()
    };
    for prompt in ["item 401 R", "item 402 G", "item 403 B", "something else"] {
        let adapted = generate(&["--model", "base", "--adapter", "runs/colours/adapter"], prompt);
        assert_eq!(generate(&["--model", "runs/colours/merged"], prompt), adapted);
        assert_ne!(generate(&["--model", "base"], prompt), adapted);
    }
}

#[test]
fn a_merged_model_can_be_held_in_fewer_bits() {
    let desk = Desk::trained();
    desk.taper(&["export", "recipe.toml", "--format", "merged", "--set", "export.merged_dtype=bf16"])
        .exits(0)
        .tells(&["export merged", "mean KL"]);
    let bytes = desk.bytes("runs/colours/merged/model.safetensors");
    let merged = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(merged.tensors().iter().all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::BF16));
}

#[test]
fn an_unknown_format_is_told_with_those_there_are() {
    let desk = Desk::new();
    desk.taper(&["export", "recipe.toml", "--format", "merged,ggfu"])
        .exits(2)
        .tells(&["no export format is named `ggfu`", "help: there are `peft`, `merged`"]);
    assert!(!desk.has("runs"));
}

#[test]
fn before_a_training_there_is_nothing_to_export() {
    let desk = Desk::new();
    desk.taper(&["export", "recipe.toml"])
        .exits(2)
        .tells(&["nothing has been trained yet", "taper train recipe.toml"]);
    assert!(!desk.has("runs"));
}

#[test]
fn an_adapter_that_was_tampered_with_is_refused() {
    let desk = Desk::trained();
    let config = desk.read("runs/colours/adapter/adapter_config.json");
    desk.write(
        "runs/colours/adapter/adapter_config.json",
        config.replace("\"use_dora\": false", "\"use_dora\": true"),
    );
    desk.taper(&["export", "recipe.toml"]).exits(2).tells(&["lora_magnitude_vector"]);
    desk.write("runs/colours/adapter/adapter_config.json", config.replace("\"r\": 8", "\"r\": 4"));
    desk.taper(&["export", "recipe.toml"]).exits(2).tells(&["lora_A"]);
    let bytes = desk.bytes(ADAPTER);
    desk.write("runs/colours/adapter/adapter_config.json", config);
    desk.write(ADAPTER, &bytes[..bytes.len() / 2]);
    desk.taper(&["export", "recipe.toml"]).exits(2).tells(&["adapter_model.safetensors"]);
}
