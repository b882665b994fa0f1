//! What merging holds in memory: its largest matrix, not the model. A binary of its own, since its heap counts.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use candle_core::DType;
use peak_alloc::PeakAlloc;
use serde_json::json;
use std::path::Path;
use taper_export::{MergeOptions, MergedDtype, write_merged};
use taper_hub::ModelFiles;
use taper_models::{LoadOptions, ModelConfig, Quantize, load, load_on_disk};
use taper_peft::{AdapterSection, InitLoraWeights, LoadMode};
use taper_quant::BlockFormat;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// 12 blocks of 7 matrices, the largest of which has 1024 x 384 numbers; 20 million in all.
const LARGEST: usize = 1024 * 384;

fn config() -> serde_json::Value {
    json!({
        "model_type": "llama", "vocab_size": 1024, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": false,
        "rms_norm_eps": 1e-5, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
    })
}

/// A base of random weights and an adapter on all of its layers, both on the disk.
fn made(folder: &Path) -> ModelFiles {
    let text = config().to_string();
    let source = folder.join("source");
    fs_err::create_dir(&source).unwrap();
    fs_err::write(source.join("config.json"), &text).unwrap();
    let parsed = ModelConfig::parse(&text).unwrap();
    let mut model = taper_models::init(&parsed, 1, Some(DType::BF16)).unwrap();
    let files = ModelFiles::of_folder(&source).unwrap();
    write_merged(model.as_mut(), &files, &folder.join("base"), &MergeOptions::default()).unwrap();
    let section = AdapterSection { init_lora_weights: InitLoraWeights::Random, ..AdapterSection::default() };
    let adapter = taper_peft::attach(model.as_mut(), &section.to_config("base"), "llama", 3).unwrap();
    adapter.save(&folder.join("adapter")).unwrap();
    ModelFiles::of_folder(&folder.join("base")).unwrap()
}

/// The most bytes alive while `body` runs, beyond those before.
fn grown(body: impl FnOnce()) -> usize {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    body();
    HEAP.peak_usage() - before
}

fn merged(folder: &Path, files: &ModelFiles, name: &str, options: LoadOptions, from_disk: bool) -> usize {
    grown(|| {
        let read = if from_disk { load_on_disk } else { load };
        let mut model = read(files, options).unwrap();
        taper_peft::load(&folder.join("adapter"), model.as_mut(), LoadMode::Inference).unwrap();
        let options = MergeOptions { dtype: MergedDtype::Bf16, ..MergeOptions::default() };
        let options = MergeOptions { max_shard_bytes: 8 << 20, ..options };
        write_merged(model.as_mut(), files, &folder.join(name), &options).unwrap();
    })
}

fn same_files(one: &Path, other: &Path) {
    let names = |folder: &Path| {
        let entries = fs_err::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(one), names(other));
    assert!(names(one).len() > 4, "several shards, their index and the configuration");
    for name in names(one) {
        assert!(fs_err::read(one.join(&name)).unwrap() == fs_err::read(other.join(&name)).unwrap());
    }
}

#[test]
fn merging_from_the_disk_holds_one_matrix_and_writes_the_same_bytes() {
    let here = tempfile::tempdir().unwrap();
    let folder = here.path();
    let files = made(folder);
    let model_bytes: usize =
        files.weights.iter().map(|path| fs_err::metadata(path).unwrap().len() as usize).sum();
    let adapter = fs_err::metadata(folder.join("adapter/adapter_model.safetensors")).unwrap().len() as usize;
    let quantize =
        Quantize { format: BlockFormat::Nf4 { block_size: 64, double_quant: false }, embeddings: false };
    let quantized = LoadOptions { quantize: Some(quantize), ..LoadOptions::default() };
    for (case, options) in [("dense", LoadOptions::default()), ("nf4", quantized)] {
        let whole = merged(folder, &files, &format!("{case}-whole"), options, false);
        let streamed = merged(folder, &files, &format!("{case}-streamed"), options, true);
        eprintln!(
            "{case}: model {model_bytes}, adapter {adapter}, in memory {whole}, from the disk {streamed}"
        );
        same_files(&folder.join(format!("{case}-whole")), &folder.join(format!("{case}-streamed")));
        // The adapter once as it is read and once as tensors; the matrix as read, in f32, merged, and a piece as bytes.
        let bound = 2 * adapter + 16 * LARGEST + (12 << 20);
        assert!(streamed < bound, "{case}: {streamed} bytes, the bound is {bound}");
        assert!(bound < model_bytes, "the bound says nothing: {bound} of {model_bytes}");
        if case == "dense" {
            assert!(whole > model_bytes, "{whole} bytes in memory for a model of {model_bytes}");
        }
    }
}
