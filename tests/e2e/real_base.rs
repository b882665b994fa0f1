//! A base that others trained, as a folder and as GGUF files: a LoRA on stories260K over Shakespeare lowers the loss on lines that it did not
//! see, and by as much whichever file the base lies in.

use crate::desk::Desk;
use serde_json::json;
use std::path::Path;

/// Characters of an example.
const CHUNK: usize = 400;
/// How far apart the mean losses (nats) of runs over Q8_0 and over the original may end. Measured: the codes move the base's loss by 6.2e-4,
/// that of the trained model by 1.2e-3.
const NOISE_OF_Q8_0: f64 = 2e-3;

/// Held-out perplexity before and after, and the adapter's bytes.
struct Trained {
    before: f64,
    after: f64,
    adapter: Vec<u8>,
}

fn train_over(real: &Path, base: &str) -> Trained {
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
    desk.write(
        "recipe.toml",
        format!(
            "schema = 1\n[model]\nbase = {:?}\n[adapter]\nr = 8\n[data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\n\
             max_length = 512\n[train]\nmax_steps = 40\nbatch_size = 8\n[optimizer]\nlearning_rate = 5e-3\n\
             [[eval]]\nmetrics = [\"perplexity\"]\n[gate]\nmax_perplexity_ratio = 0.8\n",
            real.join(base).to_str().expect("a path in UTF-8")
        ),
    );
    desk.taper(&["run", "recipe.toml", "--out", "out"]).exits(0);
    let results = desk.json("out/eval/results.json");
    let comparison = &results["evaluations"][0]["comparisons"][0];
    let (before, after) = (comparison["base"].as_f64().unwrap(), comparison["value"].as_f64().unwrap());
    assert!(after < 0.8 * before, "{base}: perplexity {before} before, {after} after");
    Trained { before, after, adapter: desk.bytes("out/adapter/adapter_model.safetensors") }
}

#[test]
fn a_lora_on_a_real_base_lowers_the_held_out_loss_by_as_much_over_its_gguf_files() {
    let Some(real) = taper_testkit::real_data_or_skip("LoRAs over tinyshakespeare") else { return };
    let folder = train_over(&real, "models/stories260K-hf");
    let float = train_over(&real, "gguf/stories260K-f32.gguf");
    assert!(folder.adapter == float.adapter, "the same weights and ids give the same adapter");
    let quantised = train_over(&real, "gguf/stories260K-q8_0.gguf");
    let apart = |a: f64, b: f64| (a.ln() - b.ln()).abs();
    let (base, ended) = (apart(quantised.before, folder.before), apart(quantised.after, folder.after));
    eprintln!("Q8_0 moves the mean loss of the base by {base:.1e}, of the trained model by {ended:.1e}");
    assert!(base < NOISE_OF_Q8_0 && ended < NOISE_OF_Q8_0, "{base} {ended}");
}
