//! GGUF adapters: what an engine makes of the base's file and the adapter's is the merged model.

use crate::support::{adapter_folder, base_of, changed, loaded, logits, write};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::Diagnose;
use taper_export::{GgufAdapterOptions, GgufType, MergedDtype, read_gguf_adapter, write_gguf_adapter};
use taper_hub::ModelFiles;
use taper_hub::gguf::{Header, Metadata};
use taper_peft::LoadMode;
use taper_quant::{Bytes, GgmlType, QuantizedTensor};
use taper_testkit::{assert_close, largest_difference};

const IDS: [u32; 7] = [1, 5, 9, 200, 17, 3, 250];

/// Every matrix of a file, in f32.
fn matrices(path: &Path) -> (Metadata, BTreeMap<String, Tensor>) {
    let bytes = fs_err::read(path).unwrap();
    let header = Header::parse(&bytes).unwrap();
    let mut found = BTreeMap::new();
    for (name, info) in header.tensors {
        let &[rows, columns] = info.shape.as_slice() else { continue };
        let held = Bytes::new(bytes[info.range].to_vec());
        let matrix = QuantizedTensor::ggml(rows, columns, info.ggml_type, held).unwrap();
        let mut values = vec![0.0; rows * columns];
        matrix.decode(0, &mut values);
        found.insert(name, Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap());
    }
    (header.metadata, found)
}

fn base_files(name: &str, here: &Path) -> ModelFiles {
    match name {
        "lora_gemma2" => changed("gemma2", here, |config| {
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }),
        name => base_of(name),
    }
}

/// `W + alpha / r B A` in the rows of the files, with alpha and r as llama.cpp takes them, is the merged file's weight: for queries and keys in
/// pairs, ranks and scales by pattern, and rsLoRA.
#[test]
fn base_and_adapter_of_an_engine_are_the_merged_file() {
    for (name, folds) in [
        ("lora_all", false),
        ("lora_all_linear", false),
        ("lora_default", false),
        ("lora_layers", false),
        ("lora_patterns", true),
        ("rslora", false),
        ("lora_qwen3", false),
        ("lora_gemma2", false),
        ("lora_phi3", false),
        ("lora_embed", false),
    ] {
        let here = tempfile::tempdir().unwrap();
        let files = base_files(name, here.path());
        let at = |name: &str| here.path().join(name);
        write(loaded(&files).as_mut(), &files, &at("base.gguf"), GgufType::F32);
        let mut model = loaded(&files);
        let adapter = taper_peft::load(&adapter_folder(name), model.as_mut(), LoadMode::Inference).unwrap();
        write(model.as_mut(), &files, &at("merged.gguf"), GgufType::F32);
        let options =
            GgufAdapterOptions { name: Some("a".into()), base_name: Some("b".into()), ..Default::default() };
        let written =
            write_gguf_adapter(model.as_mut(), &adapter, &files, &at("adapter.gguf"), &options).unwrap();
        assert_eq!(written.layers, adapter.layers.len());
        assert_eq!(written.folded > 0, folds, "{name}: {written:?}");

        let ((_, base), (_, merged)) = (matrices(&at("base.gguf")), matrices(&at("merged.gguf")));
        let (metadata, factors) = matrices(&at("adapter.gguf"));
        assert_eq!(metadata.text("general.type"), Ok(Some("adapter")));
        assert_eq!(metadata.text("adapter.type"), Ok(Some("lora")));
        assert_eq!(metadata.text("general.base_model.0.name"), Ok(Some("b")));
        let alpha = metadata.number("adapter.lora.alpha").unwrap().unwrap();
        assert_eq!(factors.len(), 2 * written.layers);
        let (mut changed, mut together) = (0, 0);
        for (weight, expected) in &merged {
            let (a, b) = (format!("{weight}.lora_a"), format!("{weight}.lora_b"));
            let mut engine = base[weight].clone();
            if let (Some(a), Some(b)) = (factors.get(&a), factors.get(&b)) {
                // Rows of the table's A are looked up: it is [V, r] where others are [r, in].
                let is_table = weight == "token_embd.weight";
                let rank = if is_table { a.dims()[1] } else { a.dims()[0] };
                let product = if is_table { a.matmul(&b.t().unwrap()) } else { b.matmul(a) };
                engine = (engine + (product.unwrap() * (alpha / rank as f64)).unwrap()).unwrap();
                together += 1;
                changed += usize::from(largest_difference(&base[weight], expected) > 1e-3);
            }
            assert_close(&format!("{name}, {weight}"), &engine, expected, 2e-6);
        }
        assert_eq!(together, written.layers, "{name}");
        assert!(changed > 0, "{name}");

        // Read back, it is the adapter.
        let mut again = loaded(&files);
        let (config, weights) = read_gguf_adapter(&at("adapter.gguf"), again.as_mut()).unwrap();
        taper_peft::load_parts(&config, weights, again.as_mut(), LoadMode::Inference).unwrap();
        let off = largest_difference(&logits(again.as_ref(), &IDS), &logits(model.as_ref(), &IDS));
        assert!(off <= 2e-5, "{name}: read back it is off by {off}");
    }
}

#[test]
fn factors_may_be_of_16_bits() {
    let here = tempfile::tempdir().unwrap();
    let files = base_of("lora_all");
    let mut model = loaded(&files);
    let adapter = taper_peft::load(&adapter_folder("lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
    let mut sizes = Vec::new();
    for (dtype, ggml_type) in [
        (MergedDtype::Auto, GgmlType::F32),
        (MergedDtype::F16, GgmlType::F16),
        (MergedDtype::Bf16, GgmlType::BF16),
    ] {
        let path = here.path().join("a.gguf");
        let options = GgufAdapterOptions { dtype, ..GgufAdapterOptions::default() };
        sizes.push(write_gguf_adapter(model.as_mut(), &adapter, &files, &path, &options).unwrap().bytes);
        let header = taper_hub::gguf::read_header(&path).unwrap();
        assert!(header.tensors.values().all(|info| info.ggml_type == ggml_type));
    }
    assert!(sizes[1] < sizes[0] && sizes[1] == sizes[2], "{sizes:?}");
}

/// The table beside an adapter of an embedding is the base's, or the adapter is for another base.
#[test]
fn a_table_that_is_not_the_bases_is_refused() {
    let here = tempfile::tempdir().unwrap();
    let mut model = loaded(&base_of("lora_embed"));
    let adapter =
        taper_peft::load(&adapter_folder("lora_embed"), model.as_mut(), LoadMode::Inference).unwrap();
    let other = crate::support::fixture("llama_bias");
    let path = here.path().join("a.gguf");
    let options = GgufAdapterOptions::default();
    let error = write_gguf_adapter(model.as_mut(), &adapter, &other, &path, &options).unwrap_err();
    assert!(error.to_string().contains("a table that is not the base's, `base_model.model."), "{error}");
}

/// PiSSA takes its first factors off the base: only what was saved goes with the base as it is.
#[test]
fn an_adapter_in_training_that_changed_its_base_is_refused() {
    let here = tempfile::tempdir().unwrap();
    let files = base_of("lora_all");
    let mut model = loaded(&files);
    let config = taper_peft::AdapterConfig {
        init_lora_weights: taper_peft::InitLoraWeights::Pissa { niter: None },
        target_modules: Some(taper_peft::TargetModules::List(vec!["q_proj".into()])),
        ..taper_peft::AdapterConfig::default()
    };
    let adapter = taper_peft::attach(model.as_mut(), &config, "llama", 1).unwrap();
    let path = here.path().join("a.gguf");
    let options = GgufAdapterOptions::default();
    let error = write_gguf_adapter(model.as_mut(), &adapter, &files, &path, &options).unwrap_err();
    assert!(error.to_string().contains("an adapter in training"), "{error}");
}

#[test]
fn what_the_format_has_no_word_for_is_refused_by_name_and_the_merged_file_offered() {
    for (name, part) in [
        ("lora_modules_to_save", "a module that was trained as a whole, `lm_head.weight`"),
        ("lora_modules_to_save_norm", "a module that was trained as a whole, `"),
        ("lora_train_bias_all", "a trained bias, `"),
        ("lora_train_bias_lora_only", "a trained bias, `"),
        ("lora_bias", "a bias on B, `"),
        ("dora", "DoRA's magnitudes, `"),
        ("lora_token_indices", "trained rows of an embedding, `"),
        ("tied_embed_lora", "which shares its table"),
        ("tied_head_lora", "which shares its table"),
        ("ia3", "anything but low-rank factors, `"),
        ("loha", "anything but low-rank factors, `"),
        ("lokr", "anything but low-rank factors, `"),
        ("tied_saved_as_one", "a module that was trained as a whole, `"),
        ("vera", "anything but low-rank factors, `"),
    ] {
        let here = tempfile::tempdir().unwrap();
        let files = base_of(name);
        let mut model = loaded(&files);
        let adapter = taper_peft::load(&adapter_folder(name), model.as_mut(), LoadMode::Inference).unwrap();
        let path = here.path().join("a.gguf");
        let error =
            write_gguf_adapter(model.as_mut(), &adapter, &files, &path, &GgufAdapterOptions::default())
                .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains("export \"gguf\" instead"), "{error:?}");
        assert!(!path.exists());
    }
}

#[test]
fn what_is_no_adapter_of_the_model_is_refused() {
    let here = tempfile::tempdir().unwrap();
    let files = base_of("lora_all");
    let path = here.path().join("a.gguf");
    let mut model = loaded(&files);
    let told =
        |model: &mut dyn taper_models::CausalLm| read_gguf_adapter(&path, model).unwrap_err().to_string();
    write(model.as_mut(), &files, &path, GgufType::F32);
    assert!(told(model.as_mut()).contains("`general.type` is model"), "{}", told(model.as_mut()));
    let adapter = taper_peft::load(&adapter_folder("lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
    write_gguf_adapter(model.as_mut(), &adapter, &files, &path, &GgufAdapterOptions::default()).unwrap();
    let mut other = loaded(&base_of("lora_qwen3"));
    assert!(told(other.as_mut()).contains("and not qwen3"));
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(told(model.as_mut()).contains("is no GGUF adapter"));
}
