//! Configurations that were made from GGUF files are those of the checkpoints that the files were made from.

use crate::support::{changed_config, logits};
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use taper_hub::ModelFiles;
use taper_hub::gguf::unpermuted_row;
use taper_models::{LoadOptions, ModelConfig, Quantize, init_with, load, state_tensors};
use taper_nn::{SequenceLayout, to_vec_f32};
use taper_quant::{BlockFormat, GgmlType, Parts, QuantizedTensor};
use taper_testkit::{GgufFile, assert_close, golden, read_safetensors, real_data_or_skip};

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

/// A fixture, and what GGUF calls its architecture.
const ARCHITECTURES: [(&str, &str); 9] = [
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("phi3", "phi3"),
    ("phi3_longrope", "phi3"),
    ("olmo2", "olmo2"),
    ("granite", "granite"),
];

/// Written as llama.cpp's converter lays it out and read back, every architecture gives the logits of its folder: names, rows, norms, and
/// each key of the configuration found their places.
#[test]
fn every_architecture_is_the_same_from_a_gguf_file_and_from_its_folder() {
    for (name, architecture) in ARCHITECTURES {
        let here = tempfile::tempdir().unwrap();
        let folder = changed_config(name, here.path(), |config| {
            // GGUF has no key for it: llama.cpp goes by the size of a head.
            if architecture.starts_with("gemma") {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
            }
        });
        let config = taper_testkit::read_json(&here.path().join("config.json"));
        let path = here.path().join("model.gguf");
        fs_err::write(&path, gguf_of(name, architecture, &config).bytes()).unwrap();
        let files = ModelFiles::of_gguf(&path).unwrap();
        let [of_file, of_folder] = [files, folder].map(|files| load(&files, LoadOptions::default()).unwrap());
        // Longer than every window and than the texts that Phi's short factors are for.
        for length in [9, 24] {
            let ids: Vec<u32> = (0..length).map(|i| i * 37 % 251).collect();
            let layout = SequenceLayout::single(ids.len());
            let given = logits(of_file.as_ref(), &ids, &layout);
            let error = assert_close(name, &given, &logits(of_folder.as_ref(), &ids, &layout), 2e-5);
            eprintln!("{name}, {length} tokens: {error:.1e}");
        }
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
    for ggml_type in [GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
        let format = BlockFormat::Ggml(ggml_type);
        let quantize = Some(Quantize { format, embeddings: false });
        let coded = init_with(&parsed, 5, LoadOptions { quantize, ..LoadOptions::default() }).unwrap();
        let mut file = keys_of("llama", &config);
        for (hub, tensor) in &dense {
            let tensor = match hub {
                _ if hub.contains("q_proj") => paired(tensor, 8),
                _ if hub.contains("k_proj") => paired(tensor, 4),
                _ => tensor.clone(),
            };
            let name = gguf_name(hub, "llama");
            if !hub.contains("_proj") {
                file = add(file, &name, &tensor);
                continue;
            }
            let (rows, columns) = tensor.dims2().unwrap();
            let blocks =
                QuantizedTensor::quantize(&to_vec_f32(&tensor).unwrap(), rows, columns, format).unwrap();
            let Parts::Ggml(_, bytes) = blocks.parts() else { panic!("{format:?}") };
            file = file.tensor(&name, ggml_type.id(), &[rows, columns], bytes);
        }
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("model.gguf");
        fs_err::write(&path, file.bytes()).unwrap();
        let read = load(&ModelFiles::of_gguf(&path).unwrap(), LoadOptions::default()).unwrap();
        let [read, coded] = [read, coded].map(|model| {
            to_vec_f32(&logits(model.as_ref(), &ids, &SequenceLayout::single(ids.len()))).unwrap()
        });
        assert!(read == coded, "{ggml_type}");
    }
}

/// The keys that the converter writes for these fixtures.
fn gguf_of(name: &str, architecture: &str, config: &Value) -> GgufFile {
    let mut file = keys_of(architecture, config);
    file = rotary_keys(file, name, architecture, &config["rope_parameters"]);
    if name == "gemma3" {
        let types = config["layer_types"].as_array().unwrap();
        let slides: Vec<bool> = types.iter().map(|t| t == "sliding_attention").collect();
        file = file.flags("gemma3.attention.sliding_window_pattern", &slides);
    }
    with_tensors(file, name, architecture, config)
}

/// Those that are one key of `config.json` each.
fn keys_of(architecture: &str, config: &Value) -> GgufFile {
    let mut file = GgufFile::new().text("general.architecture", architecture);
    for (key, from) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("attention.sliding_window", "sliding_window"),
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        if let Some(value) = config[from].as_u64() {
            file = file.u32(&format!("{architecture}.{key}"), value as u32);
        }
    }
    for (key, from) in [
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        if let Some(value) = config[from].as_f64() {
            file = file.f32(&format!("{architecture}.{key}"), value as f32);
        }
    }
    file
}

fn rotary_keys(mut file: GgufFile, name: &str, architecture: &str, rope: &Value) -> GgufFile {
    let full = if rope.get("full_attention").is_some() { &rope["full_attention"] } else { rope };
    let key = |key: &str| format!("{architecture}.rope.{key}");
    file = file.f32(&key("freq_base"), full["rope_theta"].as_f64().unwrap() as f32);
    if name == "gemma3" {
        file = file.text(&key("scaling.type"), "linear").f32(&key("scaling.factor"), 8.0);
        file = file.f32(&key("freq_base_swa"), 10_000.0);
    }
    if name == "phi3_longrope" {
        file = file.u32(&key("dimension_count"), 12).u32(&key("scaling.original_context_length"), 16);
        // sqrt(1 + ln(64 / 16) / ln 16), as the converter computes it.
        file = file.f32(&key("scaling.attn_factor"), (1.0 + 4f32.ln() / 16f32.ln()).sqrt());
        for which in ["long", "short"] {
            let factors = full[&format!("{which}_factor")].as_array().unwrap();
            let bytes: Vec<u8> =
                factors.iter().flat_map(|f| (f.as_f64().unwrap() as f32).to_le_bytes()).collect();
            file = file.tensor(&format!("rope_factors_{which}.weight"), 0, &[factors.len()], &bytes);
        }
    }
    file
}

/// The fixture's tensors under llama.cpp's names: Gemma's norms with 1 added, rows of Granite's queries and keys in pairs, experts in one
/// tensor.
fn with_tensors(mut file: GgufFile, name: &str, architecture: &str, config: &Value) -> GgufFile {
    let tensors = read_safetensors(&golden(&format!("models/{name}/model.safetensors")));
    let heads = |name: &str| config[name].as_u64().unwrap() as usize;
    let mut experts: std::collections::BTreeMap<String, Vec<Tensor>> = std::collections::BTreeMap::new();
    let mut names: Vec<&String> = tensors.keys().collect();
    // `experts.10` behind `experts.9`.
    names.sort_by_key(|name| (name.len(), name.to_string()));
    for hub in names {
        let tensor = tensors[hub].to_dtype(DType::F32).unwrap();
        let gguf = gguf_name(hub, architecture);
        if hub.contains(".experts.") {
            experts.entry(gguf).or_default().push(tensor);
            continue;
        }
        let tensor = match architecture {
            "gemma2" | "gemma3" if hub.ends_with("norm.weight") => (tensor + 1.0).unwrap(),
            "granite" if hub.contains("q_proj") => paired(&tensor, heads("num_attention_heads")),
            "granite" if hub.contains("k_proj") => paired(&tensor, heads("num_key_value_heads")),
            _ => tensor,
        };
        file = add(file, &gguf, &tensor);
    }
    for (gguf, parts) in experts {
        file = add(file, &gguf, &Tensor::stack(&parts, 0).unwrap());
    }
    file
}

fn add(file: GgufFile, name: &str, tensor: &Tensor) -> GgufFile {
    let bytes: Vec<u8> = to_vec_f32(tensor).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
    file.tensor(name, 0, tensor.dims(), &bytes)
}

fn paired(tensor: &Tensor, heads: usize) -> Tensor {
    let rows = tensor.dims()[0];
    let mut order = vec![0u32; rows];
    for row in 0..rows {
        order[unpermuted_row(heads, rows / heads, row)] = row as u32;
    }
    tensor.index_select(&Tensor::new(order.as_slice(), tensor.device()).unwrap(), 0).unwrap()
}

fn gguf_name(hub: &str, architecture: &str) -> String {
    match hub {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let (block, rest) = hub.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (module, kind) = rest.rsplit_once('.').unwrap();
    let norms_behind = matches!(architecture, "gemma2" | "gemma3" | "olmo2");
    let module = match module.rsplit('.').next().unwrap() {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if norms_behind => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "q_norm" => "attn_q_norm",
        "k_norm" => "attn_k_norm",
        "qkv_proj" => "attn_qkv",
        "gate_up_proj" => "ffn_up",
        "gate" => "ffn_gate_inp",
        "gate_proj" if module.contains(".experts.") => "ffn_gate_exps",
        "up_proj" if module.contains(".experts.") => "ffn_up_exps",
        "down_proj" if module.contains(".experts.") => "ffn_down_exps",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        "down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{block}.{module}.{kind}")
}
