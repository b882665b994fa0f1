//! `taper adapter`: an adapter is looked at, and held against a base.

use crate::desk::{ADAPTER, Desk, Said, spec};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use taper_testkit::TinySpec;

const DIR: &str = "runs/colours/adapter";

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The trained adapter in another folder, its tensors changed.
fn changed(desk: &Desk, folder: &str, change: impl Fn(&str, &Tensor) -> Tensor) {
    let all: HashMap<String, Tensor> =
        tensors(&desk.path(ADAPTER)).into_iter().map(|(name, t)| (name.clone(), change(&name, &t))).collect();
    desk.write(&format!("{folder}/adapter_config.json"), desk.read(&format!("{DIR}/adapter_config.json")));
    candle_core::safetensors::save(&all, desk.path(folder).join("adapter_model.safetensors")).unwrap();
}

fn check(desk: &Desk, folder: &str) -> Said {
    desk.taper(&["adapter", "check", folder, "--base", "base", "--json"])
}

#[track_caller]
fn prints(said: &Said, pieces: &[&str]) {
    for piece in pieces {
        assert!(said.out.contains(piece), "`{piece}` is not in\n{}", said.out);
    }
}

#[test]
fn show_tells_what_it_is_and_where_what_is_lost() {
    let desk = Desk::trained();
    let said = desk.taper(&["adapter", "show", DIR]).exits(0);
    prints(
        &said,
        &["method     LoRA\n", "rank       8\n", "scale      2\n", "layers 0 to 1", "0 of 14 are zero"],
    );
    prints(
        &said,
        &[
            "what would be lost where",
            "PEFT          reads it",
            "vLLM          reads it",
            "MLX           refuses",
        ],
    );
    prints(&said, &["more, `--modules` lists all"]);
    let all = desk.taper(&["adapter", "show", DIR, "--modules"]).exits(0);
    prints(&all, &["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]);
    let json = desk.taper(&["adapter", "show", DIR, "--json"]).exits(0).json();
    assert_eq!(json["modules"].as_array().unwrap().len(), 14);
    assert_eq!(json["bytes"].as_u64().unwrap(), desk.bytes(ADAPTER).len() as u64);
    assert!(json["modules"][0]["norm"].as_f64().unwrap() > 0.0);

    let config = desk.read(&format!("{DIR}/adapter_config.json"));
    desk.write(
        &format!("{DIR}/adapter_config.json"),
        config.replace("\"use_rslora\": false", "\"use_rslora\": true"),
    );
    let said = desk.taper(&["adapter", "show", DIR]).exits(0);
    prints(
        &said,
        &["method     rsLoRA", "llama.cpp     loses: 14 of 14 modules would be scaled by 0.354 times"],
    );
}

#[test]
fn a_trained_adapter_is_sound_and_an_untrained_one_is_not() {
    let desk = Desk::trained();
    let json = check(&desk, DIR).exits(0).json();
    assert_eq!(json["sound"], true);
    assert!(
        json["shift"]["max_abs"].as_f64() > Some(0.1) && json["shift"]["mean_kl"].as_f64() > Some(1e-3),
        "{json}"
    );
    let said = desk.taper(&["adapter", "check", DIR, "--base", "base", "--prompt", "item 5 G"]).exits(0);
    prints(&said, &["fits       14 modules", "logits     moved by", "what would be lost where"]);

    changed(
        &desk,
        "zero",
        |name, t| if name.contains("lora_B") { t.zeros_like().unwrap() } else { t.clone() },
    );
    let said = check(&desk, "zero").exits(100);
    let json = said.json();
    assert!(json["unsound"][0].as_str().unwrap().contains("every B is zero"), "{json}");
    assert_eq!(json["shift"]["max_abs"], 0.0);
    // One module of many that was not trained is told, and is no failure.
    changed(&desk, "partly", |name, t| {
        if name.contains("layers.1.mlp.up_proj.lora_B") { t.zeros_like().unwrap() } else { t.clone() }
    });
    let json = check(&desk, "partly").exits(0).json();
    assert!(json["notes"][0].as_str().unwrap().contains("1 of 14 modules are zero"), "{json}");
    changed(&desk, "huge", |_, t| (t.ones_like().unwrap() * 1e30).unwrap());
    let json = check(&desk, "huge").exits(100).json();
    assert!(json["unsound"][0].as_str().unwrap().contains("NaN or infinite"), "{json}");
}

#[test]
fn what_cannot_be_used_ends_with_2_and_the_reason() {
    let desk = Desk::trained();
    changed(&desk, "nan", |_, t| (t * f64::NAN).unwrap());
    check(&desk, "nan").exits(2).tells(&["are NaN or infinite", "lora_A"]);
    check(&desk, "base").exits(2).tells(&["folder of a model", "help:"]);
    check(&desk, "runs/colours").exits(2).tells(&["adapters inside it", "runs/colours/adapter"]);
    check(&desk, "nowhere").exits(2).tells(&["no such folder", "nowhere"]);
    check(&desk, ADAPTER).exits(2).tells(&["an adapter is a folder", "help:"]);
    let wide = TinySpec { hidden_size: 96, ..spec() };
    taper_testkit::tiny_checkpoint(&desk.path("wide"), &wide);
    desk.taper(&["adapter", "check", DIR, "--base", "wide"]).exits(2).tells(&[
        "other widths",
        "help:",
        "another base",
    ]);
    desk.taper(&["adapter", "check", DIR, "--base", DIR])
        .exits(2)
        .tells(&["is not a model folder", "an adapter is not a base"]);
    desk.write(
        &format!("{DIR}/adapter_model.safetensors"),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    );
    for verb in [&["adapter", "show", DIR][..], &["adapter", "check", DIR, "--base", "base"]] {
        desk.taper(verb).exits(2).tells(&["git-lfs pointer", "git lfs pull"]);
    }
    fs_err::remove_file(desk.path(ADAPTER)).unwrap();
    desk.write("runs/colours/adapter/adapter_model.bin", "x");
    desk.taper(&["adapter", "show", DIR]).exits(2).tells(&["a pickle", "help:"]);
}

#[test]
fn an_adapter_of_mlx_answers_as_pefts() {
    let desk = Desk::trained();
    let turned: HashMap<String, Tensor> = tensors(&desk.path(ADAPTER))
        .into_iter()
        .map(|(name, t)| {
            let name = name
                .replace("base_model.model.", "")
                .replace("lora_A.weight", "lora_a")
                .replace("lora_B.weight", "lora_b");
            (name, t.t().unwrap().contiguous().unwrap().to_dtype(DType::F32).unwrap())
        })
        .collect();
    desk.write(
        "mlx/adapter_config.json",
        r#"{"fine_tune_type": "lora", "num_layers": 2, "model": "base", "lora_parameters": {"rank": 8, "scale": 2.0, "dropout": 0.0}}"#,
    );
    candle_core::safetensors::save(&turned, desk.path("mlx/adapters.safetensors")).unwrap();
    let answer = |flags: &[&str]| {
        let args = ["generate", "--model", "base", "--prompt", "item 401 R", "--max-new-tokens", "8"];
        desk.taper(&[&args, flags].concat()).exits(0).out
    };
    assert_eq!(answer(&["--adapter", "mlx"]), answer(&["--adapter", DIR]));
    assert_ne!(answer(&["--adapter", "mlx"]), answer(&[]));
    prints(
        &desk.taper(&["adapter", "show", "mlx"]).exits(0),
        &["written by mlx-lm", "PEFT          refuses", "MLX           reads it"],
    );
    let [ours, theirs] =
        [check(&desk, DIR), check(&desk, "mlx")].map(|said| said.exits(0).json()["shift"].clone());
    assert_eq!(ours, theirs);
}

/// Half of an adapter and half of it are the adapter: in one pass from two folders, and as an adapter that was made of them.
#[test]
fn several_adapters_are_summed_with_their_weights_and_can_be_made_one() {
    let desk = Desk::trained();
    let said = |adapters: &[&str]| {
        let mut args =
            vec!["generate", "--model", "base", "--prompt", "red", "--max-new-tokens", "8", "--json"];
        args.extend(adapters.iter().flat_map(|adapter| ["--adapter", adapter]));
        desk.taper(&args).exits(0)
    };
    let half = format!("{DIR}=0.5");
    let (alone, halves) = (said(&[DIR]), said(&[&half, &half]));
    assert_eq!(alone.json()["text"], halves.json()["text"]);
    assert!(halves.err.contains("0.5 x runs/colours/adapter + 0.5 x"), "{}", halves.err);

    let combine = |out: &str, more: &[&str]| {
        let mut args = vec!["adapter", "combine", half.as_str(), half.as_str(), "--out", out];
        args.extend(more);
        desk.taper(&args)
    };
    combine("both", &[]).exits(0).tells(&["(cat), r = 16"]);
    assert_eq!(alone.json()["text"], said(&["both"]).json()["text"]);
    combine("both", &[]).exits(2).tells(&["is there already"]);
    combine("cut", &["--combination-type", "svd", "--svd-rank", "8"]).exits(0);
    assert_eq!(alone.json()["text"], said(&["cut"]).json()["text"]);
    combine("pruned", &["--combination-type", "ties"]).exits(2).tells(&["density"]);
    assert!(!desk.has("pruned"));
}
