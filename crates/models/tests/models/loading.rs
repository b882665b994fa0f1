//! What may be wrong between a configuration and its weights, and the types that weights are held in.

use crate::support::{Batch, changed_config, fixture, fixture_files, logits};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use taper_diagnostics::Diagnose;
use taper_hub::ModelFiles;
use taper_models::{Error, LoadOptions, load, state_tensors};
use taper_testkit::{assert_close, golden, read_safetensors, root_mean_square_difference};

/// A copy of a fixture with its tensors changed.
fn changed_weights(name: &str, folder: &Path, change: impl Fn(&mut HashMap<String, Tensor>)) -> ModelFiles {
    let from = golden(&format!("models/{name}"));
    fs_err::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    let mut tensors: HashMap<String, Tensor> =
        read_safetensors(&from.join("model.safetensors")).into_iter().collect();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    ModelFiles::of_folder(folder).unwrap()
}

fn refused(files: &ModelFiles) -> Error {
    match load(files, LoadOptions::default()) {
        Ok(_) => panic!("loaded"),
        Err(error) => error,
    }
}

fn text(error: &Error) -> String {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{source}")
}

#[test]
fn f16_weights_give_the_logits_of_their_rounded_values() {
    let here = tempfile::tempdir().unwrap();
    let files = changed_weights("llama_untied", here.path(), |tensors| {
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(DType::F16).unwrap();
        }
    });
    let tensors = read_safetensors(&golden("models/llama_untied/golden.safetensors"));
    let batch = Batch::of(&tensors, "input_ids", "attention_mask");
    let mut model = load(&files, LoadOptions::default()).unwrap();
    let held = state_tensors(model.as_mut()).unwrap();
    assert!(
        held.iter().all(|(name, t)| t.dtype() == if name.contains("norm") { DType::F32 } else { DType::F16 })
    );
    let widened = load(&files, LoadOptions { dtype: Some(DType::F32) }).unwrap();
    let (given, exact) = (
        logits(model.as_ref(), &batch.ids, &batch.layout),
        logits(widened.as_ref(), &batch.ids, &batch.layout),
    );
    assert_close("f16 held as f16 and as f32", &given, &exact, 2e-5);
    // Rounding to 11 bits moves logits of deviation 2 by about 1e-3.
    let moved = root_mean_square_difference(&given, &batch.rows_of(&tensors["logits"]));
    assert!((1e-5..1e-2).contains(&moved), "{moved}");
}

#[test]
fn weights_are_converted_when_asked() {
    let tensors = read_safetensors(&golden("models/smollm/golden.safetensors"));
    let batch = Batch::of(&tensors, "input_ids", "attention_mask");
    let mut as_bf16 =
        load(&fixture_files("smollm", "config.json"), LoadOptions { dtype: Some(DType::BF16) }).unwrap();
    let held = state_tensors(as_bf16.as_mut()).unwrap();
    assert!(
        held.iter()
            .all(|(name, t)| t.dtype() == if name.contains("norm") { DType::F32 } else { DType::BF16 })
    );
    let stored = fixture("smollm_bf16", "config.json");
    let (a, b) = (
        logits(as_bf16.as_ref(), &batch.ids, &batch.layout),
        logits(stored.as_ref(), &batch.ids, &batch.layout),
    );
    // The norms of one are rounded to bf16 in its file, those of the other are not.
    let moved = root_mean_square_difference(&a, &b);
    assert!(moved < 0.1, "{moved}");
}

#[test]
fn missing_misshapen_and_superfluous_tensors_are_named() {
    let here = || tempfile::tempdir().unwrap();
    let q = "model.layers.1.self_attn.q_proj.weight";

    let folder = here();
    let error = refused(&changed_weights("llama_untied", folder.path(), |t| drop(t.remove(q))));
    assert!(text(&error).contains(&format!("no tensor `{q}`")), "{}", text(&error));
    assert!(error.hint().unwrap().contains("the nearest name is"), "{error:?}");

    let folder = here();
    let error = refused(&changed_weights("llama_untied", folder.path(), |t| {
        let turned = t[q].narrow(0, 0, 32).unwrap().contiguous().unwrap();
        t.insert(q.into(), turned);
    }));
    assert!(
        text(&error).contains(&format!("tensor `{q}` is [32, 64], the model needs [64, 64]")),
        "{}",
        text(&error)
    );

    let folder = here();
    let error = refused(&changed_config("llama_bias", folder.path(), |config| {
        config["attention_bias"] = json!(false);
    }));
    assert!(text(&error).contains("`model.layers.0.self_attn.k_proj.bias`"), "{}", text(&error));

    // One architecture's weights are not another's.
    let folder = here();
    let error =
        refused(&changed_config("qwen2", folder.path(), |config| config["model_type"] = json!("mistral")));
    assert!(text(&error).contains("`model.layers.0.self_attn.k_proj.bias`"), "{}", text(&error));
    let folder = here();
    let error = refused(&changed_weights("qwen3", folder.path(), |t| {
        t.remove("model.layers.1.self_attn.k_norm.weight");
    }));
    assert!(text(&error).contains("no tensor `model.layers.1.self_attn.k_norm.weight`"), "{}", text(&error));

    // Frequencies that old checkpoints store are computed anyway.
    let folder = here();
    let files = changed_weights("llama_untied", folder.path(), |t| {
        let norm = t["model.norm.weight"].clone();
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), norm);
    });
    assert!(load(&files, LoadOptions::default()).is_ok());
}

#[test]
fn a_tied_model_may_store_its_head_but_not_another_one() {
    for (times, good) in [(1.0, true), (2.0, false)] {
        let here = tempfile::tempdir().unwrap();
        let files = changed_weights("llama_tied", here.path(), |t| {
            let head = (&t["model.embed_tokens.weight"] * times).unwrap();
            t.insert("lm_head.weight".into(), head);
        });
        match load(&files, LoadOptions::default()) {
            Ok(_) => assert!(good),
            Err(error) => assert!(!good && matches!(error, Error::HeadNotTied { .. }), "{error}"),
        }
    }
    let here = tempfile::tempdir().unwrap();
    let error = refused(&changed_config("llama_tied", here.path(), |config| {
        config["tie_word_embeddings"] = json!(false);
    }));
    assert!(text(&error).contains("no tensor `lm_head.weight`"), "{}", text(&error));
}

#[test]
fn a_configuration_without_weights_does_not_load() {
    let here = tempfile::tempdir().unwrap();
    fs_err::copy(golden("models/llama_tied/config.json"), here.path().join("config.json")).unwrap();
    let error = refused(&ModelFiles::of_folder(here.path()).unwrap());
    assert!(error.to_string().contains("has a `config.json` but no weights"), "{error}");
}

#[test]
fn other_architectures_and_quantised_weights_are_refused_by_name() {
    let change = |key: &'static str, value: serde_json::Value| {
        let here = tempfile::tempdir().unwrap();
        refused(&changed_config("llama_tied", here.path(), |config| config[key] = value.clone()))
    };
    let error = change("model_type", json!("gpt_neox"));
    assert!(text(&error).contains("`gpt_neox` is not supported"), "{}", text(&error));
    let hint = error.hint().unwrap();
    assert!(hint.starts_with("supported are `llama`, ") && hint.contains("`phi3`"), "{hint}");
    assert!(text(&change("quantization_config", json!({"quant_method": "awq"}))).contains("quantised (awq)"));
}

/// Writing what `state_tensors` gives, under its names, makes a checkpoint that loads to the same model.
#[test]
fn state_tensors_are_a_checkpoint() {
    for name in
        ["llama_bias", "smollm_bf16", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "qwen3_moe", "olmo2"]
    {
        let here = tempfile::tempdir().unwrap();
        let mut model = fixture(name, "config.json");
        let state = state_tensors(model.as_mut()).unwrap();
        let files = changed_weights(name, here.path(), |tensors| {
            assert_eq!(tensors.len(), state.len());
            *tensors = state.iter().cloned().collect();
        });
        let again = load(&files, LoadOptions::default()).unwrap();
        let tensors = read_safetensors(&golden(&format!("models/{name}/golden.safetensors")));
        let batch = Batch::of(&tensors, "input_ids", "attention_mask");
        let (a, b) = (
            logits(model.as_ref(), &batch.ids, &batch.layout),
            logits(again.as_ref(), &batch.ids, &batch.layout),
        );
        assert_close(name, &a, &b, 0.0);
    }
}
