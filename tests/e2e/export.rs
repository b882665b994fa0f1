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

/// The base is stored in bf16 and the adapter is so small that its deltas are lost when the merged weights are rounded to bf16 again: the
/// model is near the trained one, and nothing that was trained is left in it.
#[test]
fn a_merge_that_rounds_the_adapter_away_fails_and_says_what_to_try() {
    let desk = Desk::new();
    fs_err::remove_dir_all(desk.path("base")).unwrap();
    taper_testkit::tiny_checkpoint(
        &desk.path("base"),
        &taper_testkit::TinySpec { dtype: candle_core::DType::BF16, ..crate::desk::spec() },
    );
    desk.taper(&["train", "recipe.toml", "--set", "optimizer.learning_rate=3e-6"]).exits(0);
    let export = |more: &[&str]| {
        let args = ["export", "recipe.toml", "--set", "optimizer.learning_rate=3e-6", "--format", "merged"];
        desk.taper(&[&args, more].concat())
    };
    let lost = export(&["--json"]).exits(100).tells(&[
        "export merged: runs/colours/merged",
        "gain kept",
        "(at least 0.9)",
        "does not keep enough of what the adapter gained",
        "export.merged_dtype",
    ]);
    let proof = &lost.json()[0];
    assert_eq!(proof["passed"], false);
    assert!(proof["proof"]["gain"]["kept"].as_f64().unwrap() < 0.9, "{proof}");
    assert!(proof["proof"]["mean_kl"].as_f64() < proof["proof"]["kl_limit"].as_f64());
    let kept = export(&["--json", "--set", "export.merged_dtype=f32"]).exits(0).json();
    assert!((kept[0]["proof"]["gain"]["kept"].as_f64().unwrap() - 1.0).abs() < 0.05, "{kept}");
    assert_eq!(kept[0]["proof"]["min_gain_kept"], 0.9);
    // A run that ends so has its report all the same, and says how it ended.
    let run = ["run", "recipe.toml", "--overwrite", "--set", "optimizer.learning_rate=3e-6"];
    let sets = ["--set", "gate.min_exact_match_gain=-1", "--set", "export.formats=[\"merged\"]"];
    desk.taper(&[&run[..], &sets[..]].concat()).exits(100).tells(&["exit code 100", "does not keep enough"]);
    assert_eq!(desk.json("runs/colours/run.json")["exit_code"], 100);
    assert!(desk.read("runs/colours/report.md").contains("gain kept"));
    export(&["--set", "export.min_gain_kept=0.0"]).exits(0);
    export(&["--set", "export.min_gain_kept=1.5"]).exits(2).tells(&["from 0 to 1", "export.min_gain_kept"]);
}

#[test]
fn cards_and_the_record_of_the_run_hold_the_proofs() {
    let desk = Desk::trained();
    let adapter = desk.read("runs/colours/adapter/README.md");
    let merged = desk.read("runs/colours/merged/README.md");
    for card in [&adapter, &merged] {
        for piece in ["model-index:", "| peft | 100.0 % |", "| merged | ", "## Intended use", "exact match"] {
            assert!(card.contains(piece), "no `{piece}` in\n{card}");
        }
    }
    assert!(adapter.contains("library_name: peft") && merged.contains("library_name: transformers"));
    let run = desk.json("runs/colours/run.json");
    assert_eq!(run["exports"][1]["format"], "merged");
    assert!(run["exports"][1]["proof"]["gain"]["kept"].as_f64().unwrap() > 0.99, "{run:#}");
    assert!(desk.read("runs/colours/report.md").contains("gain kept"));
    // Exported again in another type, the record and the card say so.
    desk.taper(&["export", "recipe.toml", "--format", "merged", "--set", "export.merged_dtype=bf16"])
        .exits(0);
    let again = desk.json("runs/colours/run.json");
    // What was exported before and is still there stays on the record.
    assert_eq!(again["exports"].as_array().unwrap().len(), 2);
    assert_eq!(again["exports"][0], run["exports"][0]);
    assert!(again["exports"][1]["proof"]["kl_limit"] == 5e-3 && again["name"] == "colours");
    let card = desk.read("runs/colours/merged/README.md");
    assert!(card != merged && card.contains("| peft | 100.0 % |"), "{card}");
}

#[test]
fn a_format_that_cannot_hold_the_adapter_leaves_what_the_run_has_besides() {
    let desk = Desk::new();
    let sets = [
        "adapter.target_modules=[\"embed_tokens\", \"q_proj\"]",
        "gate.min_exact_match_gain=-1",
        "export.formats=[\"merged\", \"mlx\"]",
    ];
    let flags: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    desk.taper(&[&["run", "recipe.toml"], flags.as_slice()].concat()).exits(2).tells(&[
        "exit code 2",
        "mlx",
        "embed_tokens",
    ]);
    let run = desk.json("runs/colours/run.json");
    assert_eq!((&run["exit_code"], run["exports"].as_array().unwrap().len()), (&2.into(), 1));
    assert!(desk.has("runs/colours/eval/results.json") && desk.has("runs/colours/merged/README.md"));
    assert!(desk.read("runs/colours/report.md").contains("gain kept"));
}

/// The same adapter for llama.cpp, mlx-lm and Ollama: each is read back and says what base and adapter say.
#[test]
fn llama_cpp_mlx_and_ollama_get_files_that_say_the_same() {
    let desk = Desk::trained();
    let formats = "gguf,gguf-adapter,mlx,ollama";
    desk.taper(&["export", "recipe.toml", "--format", formats, "--gguf-type", "F16"])
        .exits(0)
        .tells(&["export gguf: runs/colours/gguf/colours-f16.gguf", "export gguf-adapter: ", "export mlx: "])
        .tells(&["export ollama: runs/colours/ollama"]);
    let modelfile = desk.read("runs/colours/ollama/Modelfile");
    assert!(modelfile.starts_with("FROM ./model.gguf\n"), "{modelfile}");
    let generate = |flags: &[&str]| {
        let args =
            [&["generate", "--prompt", "item 401 R", "--max-new-tokens", "8", "--json"], flags].concat();
        desk.taper(&args).exits(0).json()["text"].clone()
    };
    let adapted = generate(&["--model", "base", "--adapter", "runs/colours/adapter"]);
    assert_eq!(generate(&["--model", "runs/colours/gguf/colours-f16.gguf"]), adapted);
    assert_eq!(generate(&["--model", "base", "--adapter", "runs/colours/mlx"]), adapted);

    let base = "export.ollama_base=\"llama3.2:1b\"";
    desk.taper(&["export", "recipe.toml", "--format", "ollama", "--set", base]).exits(0);
    let modelfile = desk.read("runs/colours/ollama/Modelfile");
    assert!(modelfile.starts_with("FROM llama3.2:1b\nADAPTER ./adapter.gguf\n"), "{modelfile}");
}

#[test]
fn what_has_no_effect_on_the_formats_is_an_error() {
    let desk = Desk::trained();
    desk.taper(&["export", "recipe.toml", "--format", "peft", "--gguf-type", "q8_0"]).exits(0);
    desk.taper(&["export", "recipe.toml", "--format", "peft", "--gguf-type", "q4_0"])
        .exits(2)
        .tells(&["`gguf_type` is set", "\"gguf\""]);
    desk.taper(&["export", "recipe.toml", "--format", "gguf", "--gguf-type", "q3"])
        .exits(2)
        .tells(&["gguf_type"]);
}
