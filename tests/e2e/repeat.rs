//! The same recipe and seed give the same adapter, byte for byte (invariant 4).

use crate::desk::{ADAPTER, Desk, said};

fn adapter_of(desk: &Desk, args: &[&str], out: &str) -> Vec<u8> {
    desk.taper(&[args, &["--out", out, "--set", "train.max_steps=20"]].concat());
    desk.bytes(&format!("{out}/adapter/adapter_model.safetensors"))
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let desk = Desk::new();
    let set = ["train", "recipe.toml", "--set", "adapter.lora_dropout=0.1"];
    let first = adapter_of(&desk, &set, "runs/a");
    assert!(first == adapter_of(&desk, &set, "runs/b"));
    let other = adapter_of(&desk, &[&set, ["--set", "train.seed=43"].as_slice()].concat(), "runs/c");
    assert!(first != other);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let desk = Desk::new();
    let with = |threads: &str| {
        let out = format!("runs/{threads}");
        let args = ["train", "recipe.toml", "--out", &out, "--set", "train.max_steps=20"];
        said(desk.command(&args).env("RAYON_NUM_THREADS", threads).output().unwrap(), &args).exits(0);
        desk.bytes(&format!("{out}/adapter/adapter_model.safetensors"))
    };
    let one = with("1");
    assert!(one == with("2") && one == with("5"));
}

#[test]
fn the_resolved_recipe_is_a_recipe_that_gives_the_same_run() {
    let desk = Desk::new();
    // The recipe lies in a folder of its own, stands on another one, and is named from elsewhere.
    desk.write(
        "recipes/common.toml",
        desk.read("recipe.toml")
            .replace("base = \"base\"", "base = \"../base\"")
            .replace("\"train.jsonl\"", "\"../train.jsonl\"")
            .replace("\"valid.jsonl\"", "\"../valid.jsonl\"")
            .replace("\"test.jsonl\"", "\"../test.jsonl\""),
    );
    desk.write(
        "recipes/colours.toml",
        "extends = \"common.toml\"\n[adapter]\nrank_pattern = { q_proj = 4 }\nlora_dropout = 0.05\n",
    );
    let flags = ["--set", "train.max_steps=40", "--set", "adapter.alpha_pattern={ v_proj = 3.5 }"];
    desk.taper(&[&["run", "recipes/colours.toml"], flags.as_slice()].concat()).exits(0);
    let resolved = desk.read("runs/colours/resolved.toml");
    for piece in [
        "r = 8  # common.toml:9",
        "lora_dropout = 0.05  # colours.toml:4",
        "max_steps = 40  # --set",
        "seed = 42  # default",
    ] {
        assert!(resolved.contains(piece), "no `{piece}` in\n{resolved}");
    }
    let bytes = desk.bytes(ADAPTER);
    // Where it is read from must not matter.
    let from = desk.path("base");
    let args = ["run", "../runs/colours/resolved.toml", "--out", "../runs/again"];
    said(desk.command(&args).current_dir(from).output().unwrap(), &args).exits(0).tells(&["recipe colours"]);
    assert!(desk.bytes("runs/again/adapter/adapter_model.safetensors") == bytes);
    assert_eq!(desk.json("runs/again/eval/results.json"), desk.json("runs/colours/eval/results.json"));
    // A fixed point: all that the recipe says is in it.
    let values = |text: &str| -> Vec<String> {
        text.lines().skip(1).map(|l| l.split("  # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(values(&desk.read("runs/again/resolved.toml")), values(&resolved));
}
