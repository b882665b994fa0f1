//! QLoRA as a user runs it: a recipe that quantises its base while loading, from training to the merged model.

use crate::desk::{ADAPTER, Desk, RECIPE};

fn quantising(format: &str) -> String {
    RECIPE.replace("base = \"base\"\n", &format!("base = \"base\"\n{format}\n"))
}

#[test]
fn a_recipe_trains_evaluates_and_exports_over_a_quantised_base() {
    let desk = Desk::new();
    desk.write("recipe.toml", quantising("quantize = \"nf4\"\ndouble_quant = true"));
    desk.taper(&["run", "recipe.toml"]).exits(0);
    let results = desk.json("runs/colours/eval/results.json");
    let comparison = &results["evaluations"][0]["comparisons"][0];
    assert!(comparison["value"].as_f64().unwrap() > 0.6, "{comparison}");
    // The merged folder is dense and answers as the adapter over the codes does.
    assert!(desk.json("runs/colours/merged/config.json").get("quantization_config").is_none());
    let ask = |model: &[&str]| {
        let prompt = ["generate", "--prompt", "R", "--max-new-tokens", "6"];
        desk.taper(&[&prompt[..], model].concat()).exits(0).out
    };
    let over_codes =
        ask(&["--model", "base", "--adapter", "runs/colours/adapter", "--quantize", "nf4", "--double-quant"]);
    assert_eq!(over_codes, ask(&["--model", "runs/colours/merged"]));
}

#[test]
fn an_adapter_trained_over_codes_is_another_than_one_over_the_stored_weights() {
    let adapters = ["", "quantize = \"nf4\"", "quantize = \"int8\""].map(|format| {
        let desk = Desk::new();
        desk.write("recipe.toml", quantising(format));
        desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=3"]).exits(0);
        desk.bytes(ADAPTER)
    });
    assert!(adapters[0] != adapters[1] && adapters[1] != adapters[2]);
}

#[test]
fn a_format_that_does_not_fit_the_base_is_refused_before_training() {
    let desk = Desk::new();
    desk.write("recipe.toml", quantising("quantize = \"q4_k\""));
    let said = desk.taper(&["train", "recipe.toml"]).exits(2);
    for part in ["q_proj.weight", "256", "Q4_K", "nf4"] {
        assert!(said.err.contains(part), "`{part}` is not in: {}", said.err);
    }
    desk.write("recipe.toml", quantising("quantize = \"nf5\""));
    let said = desk.taper(&["check", "recipe.toml"]).exits(2);
    assert!(said.err.contains("nf5") && said.err.contains("nf4"), "{}", said.err);
}

/// A run goes on where it stopped only over the same codes.
#[test]
fn a_run_is_resumed_with_the_same_quantisation_only() {
    let desk = Desk::new();
    desk.write("recipe.toml", quantising("quantize = \"nf4\""));
    desk.taper(&["train", "recipe.toml", "--set", "train.max_steps=20"]).exits(0);
    desk.write("recipe.toml", quantising("quantize = \"fp4\""));
    let said = desk.taper(&["train", "recipe.toml", "--resume", "--set", "train.max_steps=20"]).exits(2);
    assert!(said.err.contains("`model.quantize`"), "{}", said.err);
}
