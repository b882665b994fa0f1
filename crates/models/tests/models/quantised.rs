//! Quantised bases: bitsandbytes' checkpoints, quantising while loading, and GGUF files, against the numbers of the reference libraries.

use crate::support::{Batch, fixture_files, logits};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::Diagnose;
use taper_hub::{HubOptions, ModelFiles, ModelSource};
use taper_models::{CausalLm, LoadOptions, ModelConfig, Quantize, init_with, load, state_tensors};
use taper_nn::{FrozenWeight, ModuleMut, SequenceLayout, VisitModules, Weight, ops, to_vec_f32};
use taper_quant::{BlockFormat, GgmlType};
use taper_testkit::{
    assert_close, golden, read_json, read_safetensors, real_data_or_skip, root_mean_square_difference,
};

const LOGITS: f64 = 1e-4;

fn nf4(double_quant: bool) -> BlockFormat {
    BlockFormat::Nf4 { block_size: 64, double_quant }
}

fn quantize(format: BlockFormat) -> LoadOptions {
    LoadOptions { quantize: Some(Quantize { format, embeddings: false }), ..LoadOptions::default() }
}

fn checkpoint(name: &str) -> Box<dyn CausalLm> {
    let files = ModelFiles::of_folder(&golden(&format!("quant/{name}"))).unwrap();
    load(&files, LoadOptions::default()).unwrap()
}

fn state(model: &mut dyn CausalLm) -> BTreeMap<String, Vec<f32>> {
    let tensors = state_tensors(model).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, to_vec_f32(&tensor).unwrap())).collect()
}

/// Bytes and elements of the weights that are coded in blocks.
fn quantized_size(model: &mut dyn VisitModules) -> (usize, usize) {
    let mut size = (0, 0);
    let mut add = |weight: &Weight| {
        if let Weight::Frozen(frozen) = weight
            && frozen.as_quantized().is_some()
        {
            size = (size.0 + frozen.bytes(), size.1 + frozen.dims().0 * frozen.dims().1);
        }
    };
    let visited = model.visit_modules(&mut |module| {
        match &module {
            ModuleMut::Linear(linear) => add(linear.weight()),
            ModuleMut::Embedding(embedding) => add(embedding.weight()),
            ModuleMut::RmsNorm(_) => {}
        }
        Ok(())
    });
    visited.unwrap();
    size
}

#[test]
fn checkpoints_of_bitsandbytes_give_the_references_logits() {
    for name in ["llama_nf4", "llama_nf4_double", "llama_fp4"] {
        let tensors = read_safetensors(&golden(&format!("quant/{name}/golden.safetensors")));
        let batch = Batch::of(&tensors, "input_ids", "attention_mask");
        let mut model = checkpoint(name);
        let given = logits(model.as_ref(), &batch.ids, &batch.layout);
        let error = assert_close(name, &given, &batch.rows_of(&tensors["logits"]), LOGITS);
        eprintln!("{name}: logits {error:.1e}");
        check_dequantised(name, &tensors, &mut *model);
    }
}

/// The two matrices that the fixture holds. With double quantisation the offset is added in f32: 1 ulp.
fn check_dequantised(name: &str, tensors: &BTreeMap<String, Tensor>, model: &mut dyn CausalLm) {
    let state = state(model);
    let mut compared = 0;
    for (key, expected) in tensors.iter().filter_map(|(k, v)| Some((k.strip_prefix("dequant.")?, v))) {
        for (given, expected) in state[key].iter().zip(to_vec_f32(expected).unwrap()) {
            let ulps = (i64::from(given.to_bits()) - i64::from(expected.to_bits())).abs();
            assert!(ulps <= i64::from(name.ends_with("double")), "{name} {key}: {given} and not {expected}");
            compared += 1;
        }
    }
    assert!(compared > 0, "{name} holds no dequantised matrix");
}

/// The fixture's README allows for the noise of a reference that quantises activations as well; on the CPU it does not.
#[test]
fn an_8_bit_checkpoint_gives_the_references_logits() {
    let tensors = read_safetensors(&golden("quant/llama_int8/golden.safetensors"));
    let batch = Batch::of(&tensors, "input_ids", "attention_mask");
    let given = logits(checkpoint("llama_int8").as_ref(), &batch.ids, &batch.layout);
    let error = assert_close("llama_int8", &given, &batch.rows_of(&tensors["logits"]), LOGITS);
    eprintln!("llama_int8: logits {error:.1e}");
}

/// Quantising `llama_untied` here gives the codes that bitsandbytes saved: the same values, the same logits, bit for bit.
#[test]
fn quantising_while_loading_gives_the_checkpoint_that_bitsandbytes_saves() {
    let cases = [
        ("llama_nf4", nf4(false)),
        ("llama_nf4_double", nf4(true)),
        ("llama_fp4", BlockFormat::Fp4 { block_size: 64, double_quant: false }),
    ];
    for (name, format) in cases {
        let mut ours = load(&fixture_files("llama_untied", "config.json"), quantize(format)).unwrap();
        let mut theirs = checkpoint(name);
        assert!(state(&mut *ours) == state(&mut *theirs), "{name}: other weights");
        assert_eq!(quantized_size(&mut *ours), quantized_size(&mut *theirs), "{name}");
    }
}

/// bitsandbytes rounds weights to half precision before it codes them in 8 bits; ours are coded as they are. A code may differ by one.
#[test]
fn int8_while_loading_is_within_a_code_of_the_checkpoint_that_bitsandbytes_saves() {
    let mut ours = load(&fixture_files("llama_untied", "config.json"), quantize(BlockFormat::Int8)).unwrap();
    let mut theirs = checkpoint("llama_int8");
    assert_eq!(quantized_size(&mut *ours), quantized_size(&mut *theirs));
    let (ours, theirs) = (state(&mut *ours), state(&mut *theirs));
    for (name, expected) in theirs.iter().filter(|(name, _)| name.ends_with("_proj.weight")) {
        let (largest, mut other) = (expected.iter().fold(0f32, |m, v| m.max(v.abs())), 0);
        for (a, b) in ours[name].iter().zip(expected) {
            assert!((a - b).abs() <= 1.05 * largest / 127.0, "{name}: {a} and {b}");
            other += usize::from((a - b).abs() > 0.5 * largest / 127.0);
        }
        assert!(other * 50 < expected.len(), "{name}: {other} codes of {} differ", expected.len());
    }
}

fn wide_config() -> ModelConfig {
    let config = json!({"model_type": "llama", "vocab_size": 300, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4});
    ModelConfig::parse(&config.to_string()).unwrap()
}

fn formats() -> Vec<BlockFormat> {
    let ggml = [GgmlType::Q8_0, GgmlType::Q6K, GgmlType::Q5K, GgmlType::Q4K, GgmlType::Q4_0];
    let fp4 = BlockFormat::Fp4 { block_size: 128, double_quant: true };
    [nf4(false), nf4(true), fp4, BlockFormat::Int8].into_iter().chain(ggml.map(BlockFormat::Ggml)).collect()
}

#[test]
fn every_format_takes_the_bytes_that_it_says_and_moves_the_logits_a_little() {
    let config = wide_config();
    let (ids, layout): (Vec<u32>, _) = ((0..40).collect(), SequenceLayout::single(40));
    let dense = init_with(&config, 5, LoadOptions::default()).unwrap();
    let reference = logits(dense.as_ref(), &ids, &layout);
    let scale = root_mean_square_difference(&reference, &reference.zeros_like().unwrap());
    for format in formats() {
        let mut model = init_with(&config, 5, quantize(format)).unwrap();
        let (bytes, elements) = quantized_size(&mut *model);
        assert_eq!(elements, 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512), "{format:?}");
        let per_weight = bytes as f64 / elements as f64;
        let limit = match format {
            BlockFormat::Nf4 { double_quant: true, .. } | BlockFormat::Fp4 { .. } => 0.53,
            BlockFormat::Nf4 { .. } => 0.57,
            BlockFormat::Int8 => 1.02,
            BlockFormat::Ggml(t) => t.block_bytes() as f64 / t.block_len() as f64,
        };
        assert!(per_weight <= limit, "{format:?} takes {per_weight} bytes a weight");
        let moved = root_mean_square_difference(&logits(model.as_ref(), &ids, &layout), &reference) / scale;
        eprintln!("{format:?}: {per_weight:.4} bytes a weight, logits moved by {:.2} %", 100.0 * moved);
        let at_most = match format {
            BlockFormat::Int8 | BlockFormat::Ggml(GgmlType::Q8_0) => 0.03,
            BlockFormat::Ggml(GgmlType::Q6K) => 0.06,
            BlockFormat::Fp4 { .. } => 0.5,
            _ => 0.25,
        };
        assert!(moved > 1e-5 && moved < at_most, "{format:?}: logits moved by {moved}");
    }
}

#[test]
fn tables_of_tokens_stay_dense_unless_they_are_asked_for() {
    let config = wide_config();
    let mut linear = init_with(&config, 5, quantize(nf4(false))).unwrap();
    let options = Quantize { format: nf4(false), embeddings: true };
    let all = LoadOptions { quantize: Some(options), ..LoadOptions::default() };
    let mut all = init_with(&config, 5, all).unwrap();
    let tables = 2 * 300 * 256;
    assert_eq!(quantized_size(&mut *all).1 - quantized_size(&mut *linear).1, tables);
    // The head over the quantised table and its look-ups work.
    let moved = logits(all.as_ref(), &[1, 2, 3, 4, 5, 6], &SequenceLayout::single(6));
    assert!(to_vec_f32(&moved).unwrap().iter().all(|x| x.is_finite()));
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused_by_name() {
    let files = fixture_files("llama_untied", "config.json");
    let Err(error) = load(&files, quantize(BlockFormat::Ggml(GgmlType::Q4K))) else { panic!("loaded") };
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "cannot quantise `model.layers.0.self_attn.q_proj.weight`");
    let cause = source.source().unwrap().to_string();
    assert!(cause.contains("64") && cause.contains("256") && cause.contains("Q4_K"), "{cause}");
    assert!(error.hint().unwrap().contains("nf4"));
}

#[test]
fn a_quantised_base_is_not_quantised_again() {
    let files = ModelFiles::of_folder(&golden("quant/llama_nf4")).unwrap();
    let Err(error) = load(&files, quantize(nf4(false))) else { panic!("loaded") };
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("is quantised in its file"));
    assert!(error.hint().unwrap().contains("remove `model.quantize`"));
}

/// What is done to a file.
type Change<'a> = Box<dyn Fn(&mut BTreeMap<String, Tensor>) + 'a>;

/// A copy of a quantised fixture with its tensors changed.
fn broken(folder: &Path, name: &str, change: impl Fn(&mut BTreeMap<String, Tensor>)) -> String {
    let from = golden(&format!("quant/{name}"));
    fs_err::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    let file = fs_err::read(from.join("model.safetensors")).unwrap();
    let views = safetensors::SafeTensors::deserialize(&file).unwrap();
    // candle has no signed bytes: those stay as they are, under another type of the same width.
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (key, view) in views.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            _ => DType::U8,
        };
        let shape: Vec<usize> = view.shape().to_vec();
        tensors.insert(
            key,
            Tensor::from_raw_buffer(view.data(), dtype, &shape, &candle_core::Device::Cpu).unwrap(),
        );
    }
    change(&mut tensors);
    let tensors: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let Err(error) = load(&ModelFiles::of_folder(folder).unwrap(), LoadOptions::default()) else {
        panic!("{name} was loaded")
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[test]
fn a_broken_state_is_told_by_its_tensor() {
    let q = "model.layers.0.self_attn.q_proj.weight";
    let here = tempfile::tempdir().unwrap();
    let state = format!("{q}.quant_state.bitsandbytes__nf4");
    let bytes = |text: &str| Tensor::new(text.as_bytes(), &candle_core::Device::Cpu).unwrap();
    let cut = |tensors: &mut BTreeMap<String, Tensor>, key: &str, len: usize| {
        let short = tensors[key].flatten_all().unwrap().narrow(0, 0, len).unwrap().contiguous().unwrap();
        tensors.insert(key.into(), short);
    };
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("no tensor", Box::new(|t| drop(t.remove(&format!("{q}.absmax"))))),
        ("3 codes of absolute maxima", Box::new(|t| cut(t, &format!("{q}.absmax"), 3))),
        ("`quant_map` has 15 entries, not 16", Box::new(|t| cut(t, &format!("{q}.quant_map"), 15))),
        ("which needs 2048", Box::new(|t| cut(t, q, 100))),
        ("`absmax` is in codes", {
            let text = r#"{"quant_type":"nf4","blocksize":64,"shape":[64,64]}"#;
            let state = state.clone();
            Box::new(move |t| drop(t.insert(state.clone(), bytes(text))))
        }),
        ("is [64, 9], the model needs [64, 64]", {
            let text = r#"{"quant_type":"nf4","blocksize":64,"shape":[64,9]}"#;
            let state = state.clone();
            Box::new(move |t| drop(t.insert(state.clone(), bytes(text))))
        }),
        ("quant_type `x\\u{1b}`", {
            let text = "{\"quant_type\":\"x\\u001b\",\"blocksize\":64,\"shape\":[64,64]}";
            let state = state.clone();
            Box::new(move |t| drop(t.insert(state.clone(), bytes(text))))
        }),
        ("block", {
            let text = r#"{"quant_type":"nf4","blocksize":0,"shape":[64,64],"nested_blocksize":256,"nested_offset":0.1}"#;
            let state = state.clone();
            Box::new(move |t| drop(t.insert(state.clone(), bytes(text))))
        }),
        (
            "has no place for",
            Box::new(|t| drop(t.insert("model.layers.7.x.weight.absmax".into(), bytes("a")))),
        ),
    ];
    for (expected, change) in cases {
        let told = broken(here.path(), "llama_nf4_double", change);
        assert!(told.contains(expected), "expected `{expected}` in: {told}");
    }
    let told = broken(here.path(), "llama_int8", |_| {});
    assert!(told.contains("stored as U8"), "{told}");
}

/// A base that is read from its dequantised values in f32 and one that is read from codes.
#[test]
fn a_batch_equals_its_parts_over_every_format() {
    let config = wide_config();
    for format in formats() {
        let model = init_with(&config, 5, quantize(format)).unwrap();
        let ids: Vec<u32> = (0..17).map(|i| i * 7 % 300).collect();
        let packed = logits(model.as_ref(), &ids, &SequenceLayout::from_lengths(&[11, 6]));
        let first = logits(model.as_ref(), &ids[..11], &SequenceLayout::single(11));
        let second = logits(model.as_ref(), &ids[11..], &SequenceLayout::single(6));
        assert_close("packed", &packed.narrow(0, 0, 11).unwrap(), &first, 2e-5);
        assert_close("packed", &packed.narrow(0, 11, 6).unwrap(), &second, 2e-5);
    }
}

fn gguf(path: &Path) -> Box<dyn CausalLm> {
    let source = ModelSource::parse(&path.to_string_lossy()).unwrap();
    load(&source.resolve(&HubOptions::default()).unwrap(), LoadOptions::default()).unwrap()
}

#[test]
fn gguf_files_give_the_references_logits() {
    for name in ["llama_f32", "llama_q8_0", "llama_mixed"] {
        let tensors = read_safetensors(&golden(&format!("gguf/{name}.safetensors")));
        let batch = Batch::of(&tensors, "input_ids", "attention_mask");
        let model = gguf(&golden(&format!("gguf/{name}.gguf")));
        let given = logits(model.as_ref(), &batch.ids, &batch.layout);
        let error = assert_close(name, &given, &batch.rows_of(&tensors["logits"]), LOGITS);
        eprintln!("{name}.gguf: logits {error:.1e}");
    }
}

/// The same weights under the same names, whichever file they come from.
#[test]
fn an_f32_gguf_is_the_folder_that_it_was_made_from() {
    let mut folder = load(&fixture_files("llama_untied", "config.json"), LoadOptions::default()).unwrap();
    let mut file = gguf(&golden("gguf/llama_f32.gguf"));
    assert!(state(&mut *folder) == state(&mut *file));
}

#[test]
fn real_gguf_files_give_their_recorded_likelihoods() {
    let Some(real) = real_data_or_skip("GGUF likelihoods") else { return };
    let recorded = read_json(&real.join("gguf/stories260K-golden-nll.json"));
    let golden = read_json(&real.join("models/stories260K-hf/golden.json"));
    let cases: Vec<Vec<u32>> = golden["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect())
        .filter(|ids: &Vec<u32>| ids.len() >= 2)
        .collect();
    let mut held = 0;
    for (file, numbers) in recorded["files"].as_object().unwrap() {
        let path = real.join("gguf").join(file);
        if !path.is_file() {
            continue;
        }
        held += 1;
        let model = gguf(&path);
        let expected = numbers["mean_nll_per_case"].as_array().unwrap();
        assert_eq!(expected.len(), cases.len());
        let mut worst = 0.0f64;
        for (ids, expected) in cases.iter().zip(expected) {
            let all = logits(model.as_ref(), ids, &SequenceLayout::single(ids.len()));
            let predicting = all.narrow(0, 0, ids.len() - 1).unwrap().contiguous().unwrap();
            let losses = ops::cross_entropy(&predicting, &ids[1..]).unwrap();
            let mean = losses.sum().unwrap() / losses.losses().unwrap().len() as f64;
            worst = worst.max((mean - expected.as_f64().unwrap()).abs());
        }
        eprintln!("{file}: likelihoods off by {worst:.1e}");
        assert!(worst < 1e-4, "{file}: {worst}");
    }
    assert!(held >= 4, "{held} files");
}

#[test]
fn a_frozen_weight_holds_what_its_format_takes() {
    let values: Vec<f32> = (0..4096 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    for (double_quant, limit) in [(false, 0.57), (true, 0.53)] {
        let coded = taper_quant::QuantizedTensor::quantize(&values, 4096, 64, nf4(double_quant)).unwrap();
        let per_weight = FrozenWeight::quantized(coded).bytes() as f64 / values.len() as f64;
        assert!(per_weight <= limit, "{per_weight}");
    }
}
