//! Fixtures, written and read back.

use candle_core::Tensor;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use taper_export::{GgufOptions, GgufType, WrittenGguf, write_gguf};
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions, ModelConfig, forward_logits, init, load};
use taper_nn::{ForwardContext, SequenceLayout};
use taper_testkit::{golden, read_json};

pub(crate) fn loaded(files: &ModelFiles) -> Box<dyn CausalLm> {
    load(files, LoadOptions::default()).unwrap()
}

pub(crate) fn fixture(name: &str) -> ModelFiles {
    ModelFiles::of_folder(&golden("models").join(name)).unwrap()
}

/// A fixture with another configuration.
pub(crate) fn changed(name: &str, folder: &Path, change: impl Fn(&mut Value)) -> ModelFiles {
    let from = golden("models").join(name);
    fs_err::copy(from.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let mut config = read_json(&from.join("config.json"));
    change(&mut config);
    fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    ModelFiles::of_folder(folder).unwrap()
}

/// A small Llama of random weights with the tokenizer of a folder; `rows` of its embedding.
pub(crate) fn with_tokenizer(
    tokenizer: &Path,
    rows: usize,
    hidden: usize,
    at: &Path,
) -> (Box<dyn CausalLm>, ModelFiles) {
    fs_err::create_dir_all(at).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
    ] {
        if tokenizer.join(name).is_file() {
            fs_err::copy(tokenizer.join(name), at.join(name)).unwrap();
        }
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "initializer_range": 0.08,
    });
    fs_err::write(at.join("config.json"), config.to_string()).unwrap();
    let model = init(&ModelConfig::parse(&config.to_string()).unwrap(), 3, None).unwrap();
    (model, ModelFiles::of_folder(at).unwrap())
}

pub(crate) fn write(
    model: &mut dyn CausalLm,
    files: &ModelFiles,
    path: &Path,
    gguf_type: GgufType,
) -> WrittenGguf {
    write_gguf(model, files, path, &GgufOptions { gguf_type, ..GgufOptions::default() }).unwrap()
}

pub(crate) fn read_back(path: &Path) -> Box<dyn CausalLm> {
    loaded(&ModelFiles::of_gguf(path).unwrap())
}

pub(crate) fn logits(model: &dyn CausalLm, ids: &[u32]) -> Tensor {
    let layout = SequenceLayout::single(ids.len());
    forward_logits(model, ids, &mut ForwardContext::new(&layout)).unwrap()
}

pub(crate) fn adapter_folder(name: &str) -> PathBuf {
    golden("peft").join(name)
}

/// The base of a golden adapter.
pub(crate) fn base_of(name: &str) -> ModelFiles {
    let base = read_json(&adapter_folder(name).join("golden.json"))["base"].as_str().unwrap().to_owned();
    ModelFiles::of_folder(&golden(&base)).unwrap()
}
