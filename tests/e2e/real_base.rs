//! A base that others trained: a LoRA on stories260K over Shakespeare lowers the loss on lines that it did not see.

use crate::desk::Desk;
use serde_json::json;

/// Characters of an example.
const CHUNK: usize = 400;

#[test]
fn a_lora_on_a_real_base_lowers_the_held_out_loss() {
    let Some(real) = taper_testkit::real_data_or_skip("a LoRA over tinyshakespeare") else { return };
    let desk = Desk::empty();
    let text = fs_err::read_to_string(real.join("datasets/tinyshakespeare/input.txt")).unwrap();
    let chunks: Vec<&str> = text.as_bytes()[..120_000]
        .chunks_exact(CHUNK)
        .map(|chunk| std::str::from_utf8(chunk).expect("the text is ASCII"))
        .collect();
    let rows = |chunks: &[&str]| -> String {
        chunks.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect()
    };
    let (test, train) = chunks.split_at(40);
    desk.write("train.jsonl", rows(train));
    desk.write("test.jsonl", rows(test));
    let base = real.join("models/stories260K-hf");
    desk.write(
        "recipe.toml",
        format!(
            "schema = 1\n[model]\nbase = {:?}\n[adapter]\nr = 8\n[data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\n\
             max_length = 512\n[train]\nmax_steps = 40\nbatch_size = 8\n[optimizer]\nlearning_rate = 5e-3\n\
             [[eval]]\nmetrics = [\"perplexity\"]\n[gate]\nmax_perplexity_ratio = 0.8\n",
            base.to_str().expect("a path in UTF-8")
        ),
    );
    desk.taper(&["run", "recipe.toml", "--out", "out"]).exits(0);
    let results = desk.json("out/eval/results.json");
    let comparison = &results["evaluations"][0]["comparisons"][0];
    let (before, after) = (comparison["base"].as_f64().unwrap(), comparison["candidate"].as_f64().unwrap());
    assert!(after < 0.8 * before, "perplexity {before} before, {after} after");
}
