//! Model folders small enough to train in a test.

use crate::golden;
use candle_core::{DType, Tensor};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use taper_hub::ModelFiles;
use taper_models::{ModelConfig, init, state_tensors};

/// What a tiny Llama looks like. Its tokenizer is the ChatML one of `tests/golden/chat`.
#[derive(Debug, Clone, PartialEq)]
pub struct TinySpec {
    /// H.
    pub hidden_size: usize,
    /// I.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// N.
    pub num_attention_heads: usize,
    /// K.
    pub num_key_value_heads: usize,
    /// Whether the head is the embedding's table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the random weights.
    pub initializer_range: f64,
    /// The type that weights are stored in.
    pub dtype: DType,
    /// The seed of the weights.
    pub seed: u64,
}

impl Default for TinySpec {
    fn default() -> Self {
        Self {
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            tie_word_embeddings: true,
            initializer_range: 0.08,
            dtype: DType::F32,
            seed: 1,
        }
    }
}

/// Write a model folder as `save_pretrained` would: config, weights, tokenizer and chat template.
///
/// # Panics
/// When it cannot be written.
pub fn tiny_checkpoint(folder: &Path, spec: &TinySpec) -> ModelFiles {
    fs_err::create_dir_all(folder).expect("a folder that can be made");
    let copy = |from: &str, to: &str| {
        fs_err::copy(golden("chat").join(from), folder.join(to)).expect("a fixture that can be copied");
    };
    copy("tokenizer_chatml/tokenizer.json", "tokenizer.json");
    copy("tokenizer_chatml/tokenizer_config.json", "tokenizer_config.json");
    copy("templates/chatml.jinja", "chat_template.jinja");
    let write = |name: &str, value: &serde_json::Value| {
        let text = serde_json::to_string_pretty(value).expect("JSON that can be written");
        fs_err::write(folder.join(name), text).expect("a file that can be written");
    };
    write("generation_config.json", &json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}));
    let config = config_json(spec, vocab_size(&folder.join("tokenizer.json")));
    write("config.json", &config);
    let config = ModelConfig::parse(&config.to_string()).expect("a sound configuration");
    write_weights(&folder.join("model.safetensors"), &config, spec);
    ModelFiles::of_folder(folder).expect("a model folder")
}

fn config_json(spec: &TinySpec, vocab_size: usize) -> serde_json::Value {
    let dtype = match spec.dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "hidden_act": "silu",
        "initializer_range": spec.initializer_range,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0
    })
}

fn write_weights(path: &Path, config: &ModelConfig, spec: &TinySpec) {
    let mut model = init(config, spec.seed, Some(spec.dtype)).expect("a model");
    let tensors: HashMap<String, Tensor> = state_tensors(model.as_mut())
        .expect("its tensors")
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(spec.dtype).expect("a float type")))
        .collect();
    candle_core::safetensors::save(&tensors, path).expect("a file that can be written");
}

/// One more than the largest id.
fn vocab_size(tokenizer: &Path) -> usize {
    let tokenizer = crate::read_json(tokenizer);
    let words = tokenizer["model"]["vocab"].as_object().expect("a vocabulary").values();
    let added = tokenizer["added_tokens"].as_array().expect("added tokens").iter().map(|token| &token["id"]);
    let largest = words.chain(added).filter_map(serde_json::Value::as_u64).max();
    largest.map_or(0, |id| id as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_models::{LoadOptions, forward_logits, load};
    use taper_nn::{ForwardContext, SequenceLayout};

    #[test]
    fn a_tiny_checkpoint_loads_and_computes_and_is_the_same_each_time() {
        let here = tempfile::tempdir().unwrap();
        let spec = TinySpec { tie_word_embeddings: false, dtype: DType::BF16, ..TinySpec::default() };
        let files = tiny_checkpoint(&here.path().join("a"), &spec);
        assert!(files.tokenizer.is_some() && files.chat_template.is_some());
        let model = load(&files, LoadOptions::default()).unwrap();
        let layout = SequenceLayout::single(3);
        let logits = forward_logits(model.as_ref(), &[1, 5, 322], &mut ForwardContext::new(&layout)).unwrap();
        assert_eq!(logits.dims(), [3, 323]);
        let again = tiny_checkpoint(&here.path().join("b"), &spec);
        assert_eq!(files.fingerprint().unwrap(), again.fingerprint().unwrap());
        let other = tiny_checkpoint(&here.path().join("c"), &TinySpec { seed: 2, ..spec });
        assert_ne!(files.fingerprint().unwrap(), other.fingerprint().unwrap());
    }
}
