//! Configurations that were made from GGUF files are those of the checkpoints that the files were made from. (That every architecture
//! computes the same from both is held where such files are written, in `export`.)

use crate::support::logits;
use serde_json::json;
use taper_hub::ModelFiles;
use taper_hub::gguf::{Architecture, GgufWriter, Keys, PlannedTensor, stored_name, unpermuted_row};
use taper_models::{LoadOptions, ModelConfig, Quantize, init_with, load, state_tensors};
use taper_nn::{SequenceLayout, to_vec_f32};
use taper_quant::{BlockFormat, GgmlType, Parts, QuantizedTensor};
use taper_testkit::{golden, real_data_or_skip};

#[test]
fn the_golden_files_have_the_configuration_of_their_checkpoint() {
    let expected = ModelConfig::read(&golden("models/llama_untied/config.json").into()).unwrap();
    for name in ["llama_f32", "llama_q8_0", "llama_mixed"] {
        let files = ModelFiles::of_gguf(&golden(&format!("gguf/{name}.gguf"))).unwrap();
        let config = ModelConfig::read(&files.config).unwrap();
        // The type is the file's own.
        assert_eq!(ModelConfig { dtype: expected.dtype, ..config }, expected, "{name}");
    }
}

#[test]
fn a_real_file_has_the_configuration_of_its_folder() {
    let Some(real) = real_data_or_skip("the configuration of stories260K") else { return };
    let expected = ModelConfig::read(&real.join("models/stories260K-hf/config.json").into()).unwrap();
    for kind in ["f32", "q8_0"] {
        let files = ModelFiles::of_gguf(&real.join(format!("gguf/stories260K-{kind}.gguf"))).unwrap();
        let config = ModelConfig::read(&files.config).unwrap();
        let tied = expected.tie_word_embeddings || kind != "f32";
        assert_eq!(
            ModelConfig { dtype: expected.dtype, tie_word_embeddings: tied, ..config },
            ModelConfig { tie_word_embeddings: tied, ..expected.clone() },
            "{kind}"
        );
    }
}

/// Files of K-quants have no fixture at hand: blocks coded here, under Llama's names and with its rows in pairs, are read as what
/// quantising while loading gives, bit for bit.
#[test]
fn k_quants_of_a_gguf_file_are_those_that_are_coded_while_loading() {
    let config = json!({"model_type": "llama", "vocab_size": 96, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}});
    let parsed = ModelConfig::parse(&config.to_string()).unwrap();
    let dense = state_tensors(init_with(&parsed, 5, LoadOptions::default()).unwrap().as_mut()).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 96).collect();
    let keys = llama_keys(&parsed);
    for ggml_type in [GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
        let format = BlockFormat::Ggml(ggml_type);
        let quantize = Some(Quantize { format, embeddings: false });
        let coded = init_with(&parsed, 5, LoadOptions { quantize, ..LoadOptions::default() }).unwrap();
        let (mut planned, mut parts) = (Vec::new(), Vec::new());
        for (hub, tensor) in &dense {
            let name = stored_name(Architecture::Llama, hub).unwrap().name;
            let ggml_type = if hub.contains("_proj") { ggml_type } else { GgmlType::F32 };
            let columns = *tensor.dims().last().unwrap();
            let rows = tensor.elem_count() / columns;
            let format = BlockFormat::Ggml(ggml_type);
            let blocks =
                QuantizedTensor::quantize(&to_vec_f32(tensor).unwrap(), rows, columns, format).unwrap();
            let Parts::Ggml(_, bytes) = blocks.parts() else { panic!("{format:?}") };
            let bytes = match hub {
                _ if hub.contains("q_proj") => paired(bytes, rows, 8),
                _ if hub.contains("k_proj") => paired(bytes, rows, 4),
                _ => bytes.to_vec(),
            };
            planned.push(PlannedTensor { name: name.clone(), ggml_type, shape: tensor.dims().to_vec() });
            parts.push((name, bytes));
        }
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("model.gguf");
        let mut writer = GgufWriter::create(&path, &keys, &planned).unwrap();
        parts.iter().for_each(|(name, bytes)| writer.push(name, bytes).unwrap());
        writer.finish().unwrap();
        let read = load(&ModelFiles::of_gguf(&path).unwrap(), LoadOptions::default()).unwrap();
        let [read, coded] = [read, coded].map(|model| {
            to_vec_f32(&logits(model.as_ref(), &ids, &SequenceLayout::single(ids.len()))).unwrap()
        });
        assert!(read == coded, "{ggml_type}");
    }
}

fn llama_keys(config: &ModelConfig) -> Keys {
    let mut keys = Keys::new();
    keys.text("general.architecture", "llama");
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ] {
        keys.number(&format!("llama.{key}"), value as u32);
    }
    keys.number("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps as f32);
    keys
}

/// Rows of the Hub's order in pairs.
fn paired(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let length = bytes.len() / rows;
    let mut paired = vec![0; bytes.len()];
    for (row, from) in bytes.chunks_exact(length).enumerate() {
        let to = unpermuted_row(heads, rows / heads, row) * length;
        paired[to..to + length].copy_from_slice(from);
    }
    paired
}
