//! Whole models: every architecture, every type, with adapters, over bases that are GGUF files themselves.

use crate::support::{adapter_folder, base_of, changed, fixture, loaded, logits, read_back, write};
use std::path::Path;
use taper_diagnostics::Diagnose;
use taper_export::{GgufOptions, GgufType, ReferenceLogits, write_gguf};
use taper_hub::ModelFiles;
use taper_hub::gguf::{Header, read_header};
use taper_peft::LoadMode;
use taper_quant::GgmlType;
use taper_testkit::{TinySpec, assert_close, golden, read_safetensors, real_data_or_skip, tiny_checkpoint};

const FIXTURES: [&str; 16] = [
    "llama_untied",
    "llama_tied",
    "llama_bias",
    "llama3_rope",
    "llama_yarn",
    "llama_sharded",
    "mistral",
    "smollm",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_longrope",
    "olmo2",
];

fn ids(length: u32) -> Vec<u32> {
    (0..length).map(|i| i * 37 % 251).collect()
}

/// Names, rows, norms, and each key of the configuration found their places.
#[test]
fn every_architecture_is_the_same_from_a_gguf_file_and_from_its_folder() {
    for name in FIXTURES.into_iter().chain(["granite"]) {
        let here = tempfile::tempdir().unwrap();
        let files = match name {
            // GGUF has no key for it: llama.cpp goes by the size of a head.
            "gemma2" | "gemma3" => changed(name, here.path(), |config| {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
            }),
            name => fixture(name),
        };
        let mut model = loaded(&files);
        let path = here.path().join("model.gguf");
        let written = write(model.as_mut(), &files, &path, GgufType::F32);
        assert_eq!(written.bytes, fs_err::metadata(&path).unwrap().len());
        assert!(written.fallbacks.is_empty(), "{name}");
        let read = read_back(&path);
        // Longer than every window and than the texts that Phi's short factors are for.
        for length in [9, 24] {
            let (given, expected) =
                (logits(read.as_ref(), &ids(length)), logits(model.as_ref(), &ids(length)));
            let error = assert_close(name, &given, &expected, 2e-5);
            eprintln!("{name}, {length} tokens: {error:.1e}; {:?}", written.notes);
        }
    }
}

#[test]
fn what_gguf_has_no_word_for_is_refused_by_name() {
    let here = tempfile::tempdir().unwrap();
    for (name, part) in [
        ("llama_dynamic", "the rope type `dynamic`"),
        ("qwen2_sliding", "`sliding_window` in a `qwen2` model"),
        ("gemma2", "`query_pre_attn_scalar` ="),
    ] {
        let files = fixture(name);
        let path = here.path().join("model.gguf");
        let error = write_gguf(loaded(&files).as_mut(), &files, &path, &GgufOptions::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains("\"merged\""), "{error:?}");
        assert_eq!(error.exit_code(), taper_diagnostics::ExitCode::UserError);
        assert!(fs_err::read_dir(here.path()).unwrap().next().is_none());
    }
}

const MERGED: [&str; 22] = [
    "lora_all",
    "lora_patterns",
    "rslora",
    "lora_tied",
    "lora_train_bias_all",
    "lora_modules_to_save",
    "lora_bias",
    "lora_embed",
    "lora_token_indices",
    "dora",
    "dora_rslora_qv",
    "ia3",
    "loha",
    "lokr",
    "lokr_full",
    "vera",
    "tied_embed_lora",
    "tied_embed_saved",
    "tied_head_lora",
    "tied_head_saved",
    "tied_saved_as_one",
    "tied_token_indices",
];

/// The golden logits of PEFT, through a merged GGUF file.
#[test]
fn golden_adapters_merged_into_a_gguf_file_give_the_golden_logits() {
    for name in MERGED {
        let here = tempfile::tempdir().unwrap();
        let files = base_of(name);
        let mut model = loaded(&files);
        taper_peft::load(&adapter_folder(name), model.as_mut(), LoadMode::Inference).unwrap();
        let path = here.path().join("merged.gguf");
        write(model.as_mut(), &files, &path, GgufType::F32);
        let read = read_back(&path);
        let batch = read_safetensors(&golden("peft/batch.safetensors"));
        let expected = read_safetensors(&adapter_folder(name).join("golden.safetensors"));
        let (rows, mask) =
            (batch["input_ids"].to_vec2::<i64>().unwrap(), batch["attention_mask"].to_vec2::<i64>().unwrap());
        for (row, (ids, mask)) in rows.iter().zip(&mask).enumerate() {
            let length = mask.iter().sum::<i64>() as usize;
            let ids: Vec<u32> = ids[..length].iter().map(|id| *id as u32).collect();
            let expected = expected["logits"].get(row).unwrap().narrow(0, 0, length).unwrap();
            assert_close(name, &logits(read.as_ref(), &ids), &expected, 2e-4);
        }
    }
}

fn wide(here: &Path) -> ModelFiles {
    // Rows of 256: whole blocks of every type.
    let spec = TinySpec {
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 8,
        tie_word_embeddings: false,
        initializer_range: 0.04,
        ..TinySpec::default()
    };
    tiny_checkpoint(here, &spec)
}

fn types(path: &Path) -> std::collections::BTreeMap<String, GgmlType> {
    read_header(path).unwrap().tensors.into_iter().map(|(name, info)| (name, info.ggml_type)).collect()
}

#[test]
fn every_type_is_as_close_as_its_bits_allow() {
    let here = tempfile::tempdir().unwrap();
    let files = wide(&here.path().join("base"));
    let mut model = loaded(&files);
    let reference = ReferenceLogits::of(model.as_ref(), vec![ids(24), ids(7)]).unwrap();
    let mut last = f64::INFINITY;
    // From the coarsest to the finest, each with the most that it may cost.
    for (gguf_type, most) in [
        (GgufType::Q4_0, 4e-2),
        (GgufType::Q4KM, 3e-2),
        (GgufType::Q5KM, 6e-3),
        (GgufType::Q6K, 2e-3),
        (GgufType::Q8_0, 2e-4),
        (GgufType::Bf16, 2e-5),
        (GgufType::F16, 1e-6),
        (GgufType::F32, 1e-9),
    ] {
        let path = here.path().join(format!("{gguf_type}.gguf"));
        let written = write(model.as_mut(), &files, &path, gguf_type);
        assert!(written.fallbacks.is_empty() && written.notes.is_empty(), "{written:?}");
        let proof = reference.compare(read_back(&path).as_ref(), candle_core::DType::F32).unwrap();
        let held = reference.compare(read_back(&path).as_ref(), gguf_type).unwrap();
        // There is no base here, so no gain: what is quantised is held to a wide divergence.
        assert!((held.kl_limit == Some(1.0)) == gguf_type.ggml_type().is_quantized(), "{held}");
        assert!(held.passed(), "{held}");
        assert!(proof.mean_kl <= most && proof.mean_kl <= last, "{gguf_type}: {proof}");
        last = proof.mean_kl.max(1e-9);
        let header = read_header(&path).unwrap();
        assert_eq!(header.metadata.size("general.file_type"), Ok(Some(gguf_type.file_type().into())));
        let types = types(&path);
        assert_eq!(types["blk.3.attn_q.weight"], gguf_type.ggml_type());
        assert_eq!(types["blk.3.attn_norm.weight"], GgmlType::F32);
    }
    let q4 = types(&here.path().join("q4_k_m.gguf"));
    assert_eq!((q4["output.weight"], q4["token_embd.weight"]), (GgmlType::Q6K, GgmlType::Q4K));
    assert_eq!((q4["blk.7.ffn_down.weight"], q4["blk.1.ffn_down.weight"]), (GgmlType::Q6K, GgmlType::Q4K));
}

#[test]
fn rows_that_are_no_whole_blocks_fall_back_and_the_report_says_so() {
    let here = tempfile::tempdir().unwrap();
    let files = fixture("llama_untied");
    let mut model = loaded(&files);
    let path = here.path().join("m.gguf");
    let written = write(model.as_mut(), &files, &path, GgufType::Q4KM);
    // 64 and 128 elements: all of 7 layers in 2 blocks, embedding and head.
    assert_eq!(written.fallbacks.len(), 2 * 7 + 2);
    let types = types(&path);
    for fallback in &written.fallbacks {
        assert_eq!(types[&fallback.tensor], fallback.used, "{fallback:?}");
        let used = if fallback.wanted == GgmlType::Q6K { GgmlType::Q8_0 } else { GgmlType::Q5_0 };
        assert_eq!(fallback.used, used, "{fallback:?}");
    }
    let reference = ReferenceLogits::of(model.as_ref(), vec![ids(24)]).unwrap();
    let proof = reference.compare(read_back(&path).as_ref(), candle_core::DType::F32).unwrap();
    assert!(proof.mean_kl < 6e-2, "{proof}");
}

#[test]
fn a_base_that_is_a_gguf_file_keeps_its_bits_and_its_tokenizer() {
    let here = tempfile::tempdir().unwrap();
    let source = golden("gguf/llama_q8_0.gguf");
    let files = ModelFiles::of_gguf(&source).unwrap();
    let path = here.path().join("again.gguf");
    let written = write(loaded(&files).as_mut(), &files, &path, GgufType::Q8_0);
    assert!(written.notes.is_empty(), "{:?}", written.notes);
    let (old, new) = (fs_err::read(&source).unwrap(), fs_err::read(&path).unwrap());
    let (before, after) = (Header::parse(&old).unwrap(), Header::parse(&new).unwrap());
    assert_eq!(before.tensors.keys().collect::<Vec<_>>(), after.tensors.keys().collect::<Vec<_>>());
    for (name, info) in &before.tensors {
        let same = &after.tensors[name];
        assert_eq!((info.ggml_type, &info.shape), (same.ggml_type, &same.shape), "{name}");
        assert!(old[info.range.clone()] == new[same.range.clone()], "{name}");
    }
    let mut copied = 0;
    for (key, value) in before.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        assert_eq!(after.metadata.get(key), Some(value), "{key}");
        copied += 1;
    }
    assert!(copied > 5, "{copied}");
    assert_eq!(before.metadata.text("general.name"), after.metadata.text("general.name"));
}

#[test]
fn a_gguf_base_may_get_another_template_and_an_adapter() {
    let here = tempfile::tempdir().unwrap();
    let files = ModelFiles::of_gguf(&golden("gguf/llama_q8_0.gguf")).unwrap();
    let mut model = loaded(&files);
    taper_peft::load(&adapter_folder("lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
    let template = here.path().join("mine.jinja");
    let source =
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}";
    fs_err::write(&template, source).unwrap();
    let path = here.path().join("m.gguf");
    let options = GgufOptions { gguf_type: GgufType::F32, chat_template: Some(template), name: None };
    write_gguf(model.as_mut(), &files, &path, &options).unwrap();
    let header = read_header(&path).unwrap();
    assert_eq!(header.metadata.text("tokenizer.chat_template"), Ok(Some(source)));
    assert_close(
        "merged",
        &logits(read_back(&path).as_ref(), &ids(24)),
        &logits(model.as_ref(), &ids(24)),
        2e-5,
    );
}

/// QLoRA's result: the codes decoded, the delta added.
#[test]
fn an_adapter_over_four_bits_merges_into_a_file() {
    let here = tempfile::tempdir().unwrap();
    let files = ModelFiles::of_folder(&golden("quant/llama_nf4_double")).unwrap();
    let mut model = loaded(&files);
    taper_peft::load(&adapter_folder("lora_all"), model.as_mut(), LoadMode::Inference).unwrap();
    let path = here.path().join("m.gguf");
    let written = write(model.as_mut(), &files, &path, GgufType::F32);
    assert!(written.notes.iter().any(|note| note.contains("no tokenizer")), "{:?}", written.notes);
    assert_close(
        "merged",
        &logits(read_back(&path).as_ref(), &ids(24)),
        &logits(model.as_ref(), &ids(24)),
        2e-5,
    );
}

#[test]
fn a_real_file_is_written_again_with_the_logits_of_its_folder() {
    let Some(real) = real_data_or_skip("stories260K through GGUF") else { return };
    let here = tempfile::tempdir().unwrap();
    let folder = ModelFiles::of_folder(&real.join("models/stories260K-hf")).unwrap();
    let mut model = loaded(&folder);
    let text: Vec<u32> = (0..60).map(|i| 3 + i * 7 % 500).collect();
    for gguf_type in [GgufType::F32, GgufType::Q8_0] {
        let path = here.path().join("m.gguf");
        write(model.as_mut(), &folder, &path, gguf_type);
        let theirs = read_back(&real.join(format!("gguf/stories260K-{gguf_type}.gguf")));
        let ours = read_back(&path);
        // The other program's Q8_0 has its own rounding of halves.
        let limit = if gguf_type == GgufType::F32 { 2e-5 } else { 0.1 };
        assert_close("stories260K", &logits(ours.as_ref(), &text), &logits(theirs.as_ref(), &text), limit);
    }
}

#[test]
fn a_weight_that_the_type_cannot_hold_is_named_and_leaves_nothing() {
    let here = tempfile::tempdir().unwrap();
    let files = tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    let mut model = loaded(&files);
    let big = |m: &mut taper_nn::Linear| {
        let weight = candle_core::Tensor::full(7e4f32, m.weight().dims(), &candle_core::Device::Cpu)?;
        m.set_weight(taper_nn::Weight::Frozen(taper_nn::FrozenWeight::dense(&weight)?))
    };
    model
        .visit_modules(&mut |module| match module {
            taper_nn::ModuleMut::Linear(m) if m.path().ends_with("1.mlp.up_proj") => big(m),
            _ => Ok(()),
        })
        .unwrap();
    let options = GgufOptions { gguf_type: GgufType::F16, ..GgufOptions::default() };
    let path = here.path().join("m.gguf");
    let error = write_gguf(model.as_mut(), &files, &path, &options).unwrap_err();
    assert!(error.to_string().contains("`blk.1.ffn_up.weight`"), "{error}");
    assert!(error.hint().unwrap().contains("65504"), "{error:?}");
    assert_eq!(fs_err::read_dir(here.path()).unwrap().count(), 1);
}
