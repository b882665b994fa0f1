//! Merged models, read back by our own loader and held against the golden numbers.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use candle_core::{DType, Device, Tensor};
use std::path::Path;
use taper_export::{
    Error, ExportProof, MergeOptions, MergedDtype, ReferenceLogits, SupervisedLosses, WrittenModel,
    write_merged,
};
use taper_hub::ModelFiles;
use taper_hub::safetensors::{Dtype, Header};
use taper_models::{CausalLm, LoadOptions, forward_logits, load, load_on_disk};
use taper_nn::{ForwardContext, SequenceLayout};
use taper_peft::{AdapterSection, LoadMode};
use taper_testkit::{TinySpec, golden, largest_difference, read_json, read_safetensors, tiny_checkpoint};

/// The rows of peft/batch.safetensors without padding.
fn sequences() -> Vec<Vec<u32>> {
    let file = read_safetensors(&golden("peft/batch.safetensors"));
    let rows = |name: &str| file[name].to_vec2::<i64>().unwrap();
    rows("input_ids")
        .into_iter()
        .zip(rows("attention_mask"))
        .map(|(ids, mask)| {
            ids.into_iter()
                .zip(mask)
                .filter(|(_, m)| *m == 1)
                .map(|(id, _)| u32::try_from(id).unwrap())
                .collect()
        })
        .collect()
}

fn logits(model: &dyn CausalLm, ids: &[u32]) -> Tensor {
    let layout = SequenceLayout::single(ids.len());
    forward_logits(model, ids, &mut ForwardContext::new(&layout)).unwrap()
}

/// The base of a golden adapter, with and without it, and the base's files.
fn adapted(name: &str) -> (Box<dyn CausalLm>, ModelFiles) {
    let folder = golden("peft").join(name);
    let base = read_json(&folder.join("golden.json"))["base"].as_str().unwrap().to_owned();
    let files = ModelFiles::of_folder(&golden(&base)).unwrap();
    let mut model = load(&files, LoadOptions::default()).unwrap();
    taper_peft::load(&folder, model.as_mut(), LoadMode::Inference).unwrap();
    (model, files)
}

fn write(model: &mut dyn CausalLm, files: &ModelFiles, folder: &Path, dtype: MergedDtype) -> WrittenModel {
    write_merged(model, files, folder, &MergeOptions { dtype, ..MergeOptions::default() }).unwrap()
}

fn read_back(folder: &Path) -> Box<dyn CausalLm> {
    load(&ModelFiles::of_folder(folder).unwrap(), LoadOptions::default()).unwrap()
}

fn prove(model: &dyn CausalLm, written: &WrittenModel) -> ExportProof {
    let reference = ReferenceLogits::of(model, sequences()).unwrap();
    reference.compare(read_back(&written.folder).as_ref(), written.dtype).unwrap()
}

#[test]
fn every_golden_adapter_merged_and_read_back_gives_the_golden_logits() {
    let adapters = [
        "lora_all",
        "lora_all_linear",
        "lora_default",
        "rslora",
        "lora_patterns",
        "lora_tied",
        "lora_modules_to_save",
        "lora_modules_to_save_norm",
        "lora_layers",
        "lora_exclude",
        "lora_train_bias_all",
        "lora_train_bias_lora_only",
        "lora_bias",
        "lora_embed",
        "lora_token_indices",
        "dora",
        "dora_rslora_qv",
        "ia3",
        "vera",
        "loha",
        "lokr",
        "lokr_full",
        "tied_embed_saved",
        "tied_head_saved",
        "tied_saved_as_one",
        "tied_token_indices",
        "tied_embed_lora",
        "tied_head_lora",
    ];
    for name in adapters {
        let here = tempfile::tempdir().unwrap();
        let (mut model, files) = adapted(name);
        let written = write(model.as_mut(), &files, &here.path().join("merged"), MergedDtype::Auto);
        assert_eq!(written.dtype, DType::F32);
        let again = read_back(&written.folder);
        let expected = read_safetensors(&golden("peft").join(name).join("golden.safetensors"));
        for (row, ids) in sequences().iter().enumerate() {
            let expected = expected["logits"].get(row).unwrap().narrow(0, 0, ids.len()).unwrap();
            let off = largest_difference(&logits(again.as_ref(), ids), &expected);
            assert!(off <= 2e-4, "{name}, row {row}: off by {off:.2e}");
        }
        let proof = prove(model.as_ref(), &written);
        assert!(proof.passed() && proof.top1_agreement == 1.0, "{name}: {proof}");
        // A table and a head that are one in the end are written once.
        let config = read_json(&written.folder.join("config.json"));
        let stays_tied = ["lora_tied", "tied_saved_as_one", "tied_token_indices"].contains(&name);
        assert_eq!(config["tie_word_embeddings"], stays_tied, "{name}");
    }
}

#[test]
fn a_bias_that_the_model_has_no_place_for_stops_the_writing() {
    let files = ModelFiles::of_folder(&golden("models/llama_untied")).unwrap();
    let mut model = load(&files, LoadOptions::default()).unwrap();
    let section = AdapterSection { lora_bias: true, ..AdapterSection::default() };
    taper_peft::attach(model.as_mut(), &section.to_config("base"), "llama", 1).unwrap();
    let here = tempfile::tempdir().unwrap();
    let error = write_merged(model.as_mut(), &files, &here.path().join("merged"), &MergeOptions::default());
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::BiasWithoutPlace { path } if path.contains("q_proj")), "{error}");
    assert!(!here.path().join("merged").exists());
}

#[test]
fn a_16_bit_model_is_close_and_its_proof_says_how_close() {
    for (dtype, expected, in_file) in
        [(MergedDtype::Bf16, DType::BF16, Dtype::BF16), (MergedDtype::F16, DType::F16, Dtype::F16)]
    {
        let here = tempfile::tempdir().unwrap();
        let (mut model, files) = adapted("lora_all");
        let written = write(model.as_mut(), &files, &here.path().join("merged"), dtype);
        assert_eq!(written.dtype, expected);
        let bytes = fs_err::read(written.folder.join("model.safetensors")).unwrap();
        let header = Header::parse(&bytes).unwrap();
        assert!(header.tensors.values().all(|info| info.dtype == in_file));
        assert_eq!(header.metadata["format"], "pt");
        let proof = prove(model.as_ref(), &written);
        assert!(proof.passed() && proof.max_abs_diff > 1e-4 && proof.mean_kl > 0.0, "{proof}");
        assert!(proof.top1_agreement > 0.9, "{proof}");
    }
}

#[test]
fn a_forgotten_adapter_does_not_pass_the_proof() {
    let here = tempfile::tempdir().unwrap();
    let (model, files) = adapted("lora_all");
    let mut base = load(&files, LoadOptions::default()).unwrap();
    for dtype in [MergedDtype::F32, MergedDtype::Bf16] {
        let written = write(base.as_mut(), &files, &here.path().join("merged"), dtype);
        let proof = prove(model.as_ref(), &written);
        assert!(!proof.passed() && proof.mean_kl > 10.0 * proof.kl_limit.unwrap(), "{proof}");
        assert!(matches!(proof.into_result(), Err(Error::Proof(_))));
    }
    assert!(matches!(ReferenceLogits::of(model.as_ref(), vec![vec![]]), Err(Error::NothingToProve)));
}

#[test]
fn what_nothing_was_done_to_keeps_its_bits() {
    let here = tempfile::tempdir().unwrap();
    for (name, dtype) in
        [("smollm_bf16", DType::BF16), ("llama_untied", DType::F32), ("llama_tied", DType::F32)]
    {
        let files = ModelFiles::of_folder(&golden("models").join(name)).unwrap();
        let mut model = load(&files, LoadOptions::default()).unwrap();
        let written = write(model.as_mut(), &files, &here.path().join(name), MergedDtype::Auto);
        assert_eq!(written.dtype, dtype);
        let (before, after) = (
            read_safetensors(&files.weights[0]),
            read_safetensors(&written.folder.join("model.safetensors")),
        );
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{name}");
        for (key, tensor) in &before {
            assert_eq!(after[key].dtype(), tensor.dtype());
            assert_eq!(largest_difference(tensor, &after[key]), 0.0, "{name} {key}");
        }
        assert_eq!(read_json(files.config.path()), read_json(&written.folder.join("config.json")), "{name}");
    }
}

#[test]
fn both_layouts_of_a_configuration_keep_their_layout() {
    let here = tempfile::tempdir().unwrap();
    let (mut model, files) = adapted("lora_all");
    let v4 = ModelFiles { config: golden("models/llama_untied/config.v4.json").into(), ..files.clone() };
    for (name, files, key) in [("v5", files, "dtype"), ("v4", v4, "torch_dtype")] {
        let written = write(model.as_mut(), &files, &here.path().join(name), MergedDtype::Bf16);
        let (before, after) =
            (read_json(files.config.path()), read_json(&written.folder.join("config.json")));
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&before), keys(&after));
        assert_eq!(after[key], "bfloat16");
        let text = fs_err::read_to_string(written.folder.join("config.json")).unwrap();
        assert!(text.starts_with("{\n  \"") && text.ends_with("}\n"));
    }
}

#[test]
fn shards_hold_the_same_model() {
    let here = tempfile::tempdir().unwrap();
    let (mut model, files) = adapted("lora_all");
    let options = MergeOptions { max_shard_bytes: 60_000, ..MergeOptions::default() };
    let written = write_merged(model.as_mut(), &files, &here.path().join("merged"), &options).unwrap();
    assert!(written.files.iter().filter(|name| name.ends_with(".safetensors")).count() > 2);
    assert!(written.files.contains(&"model.safetensors.index.json".to_owned()));
    assert!(prove(model.as_ref(), &written).passed());
}

#[test]
fn the_same_model_is_written_with_the_same_bytes_and_replaces_what_was_there() {
    let here = tempfile::tempdir().unwrap();
    let (mut model, files) = adapted("lora_all");
    let folder = here.path().join("merged");
    let contents = |written: &WrittenModel| -> Vec<(String, Vec<u8>)> {
        written
            .files
            .iter()
            .map(|name| (name.clone(), fs_err::read(written.folder.join(name)).unwrap()))
            .collect()
    };
    let first = contents(&write(model.as_mut(), &files, &folder, MergedDtype::Bf16));
    fs_err::write(folder.join("litter"), "x").unwrap();
    let second = contents(&write(model.as_mut(), &files, &folder, MergedDtype::Bf16));
    assert_eq!(first, second);
    assert!(!folder.join("litter").exists());
    assert_eq!(fs_err::read_dir(here.path()).unwrap().count(), 1);
}

#[test]
fn the_tokenizer_and_the_template_go_along() {
    let here = tempfile::tempdir().unwrap();
    let spec = TinySpec { dtype: DType::BF16, ..TinySpec::default() };
    let files = tiny_checkpoint(&here.path().join("base"), &spec);
    let mut model = load(&files, LoadOptions::default()).unwrap();
    let template = here.path().join("own.jinja");
    fs_err::write(&template, "own").unwrap();
    let options = MergeOptions { chat_template: Some(template), ..MergeOptions::default() };
    let written = write_merged(model.as_mut(), &files, &here.path().join("merged"), &options).unwrap();
    assert_eq!(
        written.files,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(fs_err::read_to_string(written.folder.join("chat_template.jinja")).unwrap(), "own");
    let names = read_safetensors(&written.folder.join("model.safetensors"));
    assert!(!names.contains_key("lm_head.weight"), "the tied head is the embedding's table");
}

#[test]
fn over_a_gguf_base_the_texts_that_were_made_from_it_are_written() {
    let here = tempfile::tempdir().unwrap();
    let gguf = here.path().join("m.gguf");
    fs_err::copy(golden("gguf/llama_f32.gguf"), &gguf).unwrap();
    // What lies beside the file is not its own.
    fs_err::write(here.path().join("LICENSE"), "another's").unwrap();
    let (mut model, _) = adapted("lora_all");
    let written = write(
        model.as_mut(),
        &ModelFiles::of_gguf(&gguf).unwrap(),
        &here.path().join("merged"),
        MergedDtype::Auto,
    );
    assert_eq!(
        written.files,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(written.dtype, DType::F32);
    let proof = prove(model.as_ref(), &written);
    assert!(proof.max_abs_diff < 2e-4, "{proof:?}");
}

#[test]
fn a_head_that_is_no_longer_tied_is_written_and_said_to_be_so() {
    let here = tempfile::tempdir().unwrap();
    let files = tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    let mut model = load(&files, LoadOptions::default()).unwrap();
    model
        .visit_modules(&mut |module| {
            if let taper_nn::ModuleMut::Linear(head) = module
                && head.is_tied()
            {
                let a = Tensor::full(0.1f32, (2, head.in_features()), &Device::Cpu)?;
                let b = Tensor::full(0.2f32, (head.out_features(), 2), &Device::Cpu)?;
                let lora = taper_peft::LoraLayer::new("lm_head", a, b, 1.0, 0.0);
                head.set_adapter(Some(std::sync::Arc::new(lora)));
            }
            Ok(())
        })
        .unwrap();
    let written = write(model.as_mut(), &files, &here.path().join("merged"), MergedDtype::F32);
    assert_eq!(read_json(&written.folder.join("config.json"))["tie_word_embeddings"], false);
    let ids = [1u32, 50, 60, 70];
    let off =
        largest_difference(&logits(model.as_ref(), &ids), &logits(read_back(&written.folder).as_ref(), &ids));
    assert!(off <= 2e-4, "{off}");
    let base = load(&files, LoadOptions::default()).unwrap();
    assert!(largest_difference(&logits(model.as_ref(), &ids), &logits(base.as_ref(), &ids)) > 1e-2);
}

/// Gemma's configuration class ties, and files of it often do not say so.
#[test]
fn a_head_that_only_the_architecture_tied_is_said_to_be_of_its_own() {
    let here = tempfile::tempdir().unwrap();
    let base = here.path().join("base");
    fs_err::create_dir(&base).unwrap();
    let golden = golden("models/gemma2");
    fs_err::copy(golden.join("model.safetensors"), base.join("model.safetensors")).unwrap();
    let mut config = read_json(&golden.join("config.json"));
    config.as_object_mut().unwrap().remove("tie_word_embeddings").unwrap();
    fs_err::write(base.join("config.json"), config.to_string()).unwrap();
    let files = ModelFiles::of_folder(&base).unwrap();
    let mut model = load(&files, LoadOptions::default()).unwrap();
    let section: AdapterSection =
        serde_json::from_str(r#"{"target_modules": ["lm_head", "q_proj"], "init_lora_weights": false}"#)
            .unwrap();
    taper_peft::attach(model.as_mut(), &section.to_config("base"), "gemma2", 3).unwrap();
    let written = write(model.as_mut(), &files, &here.path().join("merged"), MergedDtype::F32);
    assert_eq!(read_json(&written.folder.join("config.json"))["tie_word_embeddings"], false);
    let ids = [1u32, 50, 60, 70];
    let off =
        largest_difference(&logits(model.as_ref(), &ids), &logits(read_back(&written.folder).as_ref(), &ids));
    assert!(off <= 2e-4, "{off}");
}

#[test]
fn a_weight_that_f16_cannot_hold_stops_the_writing_and_leaves_nothing() {
    let here = tempfile::tempdir().unwrap();
    let files = tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    let mut model = load(&files, LoadOptions::default()).unwrap();
    model
        .visit_modules(&mut |module| {
            if let taper_nn::ModuleMut::RmsNorm(norm) = module
                && norm.path() == "model.norm"
            {
                norm.set_weight(Tensor::full(7e4f32, norm.weight().dims(), &Device::Cpu)?)?;
            }
            Ok(())
        })
        .unwrap();
    let options = MergeOptions { dtype: MergedDtype::F16, ..MergeOptions::default() };
    let error = write_merged(model.as_mut(), &files, &here.path().join("merged"), &options).unwrap_err();
    assert!(error.to_string().contains("`model.norm.weight`"), "{error}");
    assert_eq!(fs_err::read_dir(here.path()).unwrap().count(), 1);
}

/// QLoRA's result: the codes decoded, the delta added, a dense folder that needs no quantisation method to be read.
#[test]
fn an_adapter_over_quantised_weights_merges_into_a_dense_model() {
    let here = tempfile::tempdir().unwrap();
    for name in ["llama_nf4_double", "llama_int8"] {
        let files = ModelFiles::of_folder(&golden("quant").join(name)).unwrap();
        let mut model = load(&files, LoadOptions::default()).unwrap();
        taper_peft::load(&golden("peft/lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
        let written = write(model.as_mut(), &files, &here.path().join(name), MergedDtype::Bf16);
        let config = read_json(&written.folder.join("config.json"));
        assert!(config.get("quantization_config").is_none(), "{config}");
        let bytes = fs_err::read(written.folder.join("model.safetensors")).unwrap();
        let header = Header::parse(&bytes).unwrap();
        assert!(header.tensors.values().all(|info| info.dtype == Dtype::BF16), "{name}");
        let proof = prove(model.as_ref(), &written);
        assert!(proof.passed() && proof.max_abs_diff > 1e-4, "{name}: {proof}");
    }
}

/// Matrices that are read when they are used, decoded where they are coded, with rows put in order where a GGUF file has them otherwise:
/// the same logits, and merged the same bytes.
#[test]
fn from_the_disk_a_model_is_the_same_one_whatever_its_weights_are_coded_in() {
    let here = tempfile::tempdir().unwrap();
    for name in [
        "models/llama_untied",
        "quant/llama_nf4_double",
        "quant/llama_int8",
        "gguf/llama_mixed.gguf",
        "models/phi3",
    ] {
        let files = match name.ends_with(".gguf") {
            true => ModelFiles::of_gguf(&golden(name)).unwrap(),
            false => ModelFiles::of_folder(&golden(name)).unwrap(),
        };
        let (mut held, mut read) = (
            load(&files, LoadOptions::default()).unwrap(),
            load_on_disk(&files, LoadOptions::default()).unwrap(),
        );
        if name != "models/phi3" {
            for model in [&mut held, &mut read] {
                taper_peft::load(&golden("peft/lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
            }
        }
        let ids = [1u32, 5, 9, 3];
        assert_eq!(
            largest_difference(&logits(held.as_ref(), &ids), &logits(read.as_ref(), &ids)),
            0.0,
            "{name}"
        );
        let one = write(held.as_mut(), &files, &here.path().join("held"), MergedDtype::Bf16);
        let other = write(read.as_mut(), &files, &here.path().join("read"), MergedDtype::Bf16);
        assert_eq!(one.files, other.files);
        for file in &one.files {
            let bytes = |written: &WrittenModel| fs_err::read(written.folder.join(file)).unwrap();
            assert!(bytes(&one) == bytes(&other), "{name}: {file}");
        }
    }
}

#[test]
fn a_weight_of_another_shape_is_found_when_the_model_is_opened_on_the_disk() {
    let here = tempfile::tempdir().unwrap();
    let files = tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    let mut config = read_json(files.config.path());
    let width = config["intermediate_size"].as_u64().unwrap();
    config["intermediate_size"] = (width * 2).into();
    fs_err::write(files.config.path(), config.to_string()).unwrap();
    let error = load_on_disk(&files, LoadOptions::default()).err().unwrap();
    let in_memory = load(&files, LoadOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), in_memory.to_string());
}

#[test]
fn what_is_written_keeps_the_gain_of_the_adapter_and_the_base_keeps_none() {
    let here = tempfile::tempdir().unwrap();
    let (mut model, files) = adapted("lora_all");
    let base = load(&files, LoadOptions::default()).unwrap();
    // What the trained model itself finds likeliest is what it was trained on, as far as this test goes.
    let texts: Vec<taper_export::ProofText> = sequences()
        .into_iter()
        .map(|start| {
            let mut ids = start[..4].to_vec();
            for _ in 0..24 {
                let row = logits(model.as_ref(), &ids).get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
                let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                ids.push(u32::try_from(best).unwrap());
            }
            ids.into()
        })
        .collect();
    let losses = SupervisedLosses::of(base.as_ref(), &texts).unwrap();
    let reference = ReferenceLogits::of(model.as_ref(), texts).unwrap().against(losses);
    for dtype in [MergedDtype::F32, MergedDtype::F16, MergedDtype::Bf16] {
        let written = write(model.as_mut(), &files, &here.path().join("merged"), dtype);
        let proof = reference.compare(read_back(&written.folder).as_ref(), written.dtype).unwrap();
        let kept = proof.gain.kept.unwrap();
        assert!((kept - 1.0).abs() < 0.05, "{dtype:?}: {proof}");
        assert!(proof.holding(0.9).passed() && proof.gain.loss_base.unwrap() > proof.gain.loss_trained);
    }
    let base = reference.compare(base.as_ref(), taper_export::Exactness::Quantized).unwrap();
    assert_eq!(base.gain.kept, Some(0.0));
    assert!(matches!(base.holding(0.9).into_result(), Err(Error::GainLost(_))));
}
