//! Adapters in other layouts and under other names: the same logits as PEFT's own file, or an exact error.

use crate::support::{batch, bits, furthest, golden, json, model, workspace};
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::{Diagnose, ExitCode, Problem};
use taper_peft::{
    AdapterFile, AdapterWeights, CONFIG_FILE, Error, HeadLayout, Layout, LoadMode, PREFIX, Verdict,
    WEIGHTS_FILE, inspect, load, load_for,
};
use tempfile::TempDir;

type Named = BTreeMap<String, Tensor>;

const MLX_FILE: &str = "adapters.safetensors";

fn tensors(case: &str) -> Named {
    let weights = AdapterWeights::read(&golden(&format!("peft/{case}"))).unwrap();
    weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

fn config(case: &str) -> Value {
    json(&golden(&format!("peft/{case}/{CONFIG_FILE}")))
}

fn folder(file: &str, tensors: Named, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join(file), AdapterWeights::from_tensors(tensors).to_bytes().unwrap())
        .unwrap();
    fs_err::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    folder
}

/// Logits of the golden batch with the adapter of a folder.
fn logits(folder: &Path, base: &str, heads: Option<HeadLayout>) -> Tensor {
    let mut model = model(base);
    load_for(folder, &mut *model, LoadMode::Inference, heads).unwrap();
    batch().logits(&*model)
}

fn golden_logits(case: &str, base: &str) -> Tensor {
    logits(&golden(&format!("peft/{case}")), base, None)
}

const BASE: &str = "models/llama_untied";

#[test]
fn names_of_wrapped_models_give_the_same_logits_bit_for_bit() {
    let expected = bits(&golden_logits("lora_all", BASE));
    let renamed = |name: &str, how: usize| -> String {
        let inside = name.strip_prefix(PREFIX).unwrap();
        match how {
            0 => name.replace(".weight", ".default.weight"),
            1 => inside.to_owned(),
            2 => format!("{PREFIX}{name}"),
            3 => format!("_orig_mod.{name}"),
            4 => format!("module.{PREFIX}{}", inside.replace(".weight", ".my.weight")),
            _ => format!(
                "{PREFIX}_fsdp_wrapped_module.{}",
                inside.replace(".self_attn", "._checkpoint_wrapped_module.self_attn")
            ),
        }
    };
    for how in 0..6 {
        let all = tensors("lora_all").into_iter().map(|(name, t)| (renamed(&name, how), t)).collect();
        let folder = folder(WEIGHTS_FILE, all, &config("lora_all"));
        assert_eq!(bits(&logits(folder.path(), BASE, None)), expected, "way {how}");
        // As tried with PEFT 0.21 and transformers 5.23: names that they do not look for are left, and nothing happens.
        let seen = inspect(folder.path()).unwrap();
        assert!(!seen.notes.is_empty());
        let verdict = |name: &str| seen.consumers.iter().find(|c| c.name == name).unwrap().verdict;
        assert_eq!(verdict("PEFT"), if how == 0 { Verdict::Reads } else { Verdict::Loses }, "way {how}");
        let read = [1, 2].contains(&how);
        assert_eq!(verdict("transformers"), if read { Verdict::Reads } else { Verdict::Loses }, "way {how}");
    }
}

#[test]
fn modules_trained_in_full_are_found_under_the_names_of_memory() {
    let expected = bits(&golden_logits("lora_modules_to_save", BASE));
    let mut all = Named::new();
    for (name, tensor) in tensors("lora_modules_to_save") {
        if let Some(stem) = name.strip_suffix("lm_head.weight") {
            all.insert(format!("{stem}lm_head.original_module.weight"), tensor.zeros_like().unwrap());
            all.insert(format!("{stem}lm_head.modules_to_save.default.weight"), tensor);
        } else {
            all.insert(name.replace(".weight", ".default.weight"), tensor);
        }
    }
    let folder = folder(WEIGHTS_FILE, all, &config("lora_modules_to_save"));
    assert_eq!(bits(&logits(folder.path(), BASE, None)), expected);
    assert_eq!(inspect(folder.path()).unwrap().whole, ["lm_head.weight"]);
}

/// PEFT's tensors as mlx-lm stores them.
fn as_mlx(tensors: Named) -> Named {
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.strip_prefix(PREFIX).unwrap();
            let name = name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b");
            (name, tensor.t().unwrap().contiguous().unwrap())
        })
        .collect()
}

/// As `mlx_lm.lora` writes it; the golden adapter has r 8, alpha 16 and so the scale 2.
fn mlx_config(parameters: &Value) -> Value {
    json!({"fine_tune_type": "lora", "num_layers": 16, "model": "tiny", "lora_parameters": parameters, "iters": 100, "train": true})
}

#[test]
fn an_adapter_of_mlx_gives_the_logits_of_pefts() {
    let expected = golden_logits("lora_all", BASE);
    let parameters = json!({"rank": 8, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]});
    let written = folder(MLX_FILE, as_mlx(tensors("lora_all")), &mlx_config(&parameters));
    assert_eq!(bits(&logits(written.path(), BASE, None)), bits(&expected));
    // An `alpha` beside it says nothing since mid-2024.
    let parameters = json!({"rank": 8, "alpha": 64, "scale": 2.0, "dropout": 0.0});
    let written = folder(MLX_FILE, as_mlx(tensors("lora_all")), &mlx_config(&parameters));
    assert_eq!(bits(&logits(written.path(), BASE, None)), bits(&expected));
    // Another scale is another adapter.
    let parameters = json!({"rank": 8, "scale": 1.0});
    let written = folder(MLX_FILE, as_mlx(tensors("lora_all")), &mlx_config(&parameters));
    assert!(furthest(&logits(written.path(), BASE, None), &expected) > 0.1);
    // Ranks are those of the tensors, and the scale stays.
    let parameters = json!({"rank": 3, "scale": 2.0});
    let mixed = tensors("lora_patterns");
    let written = folder(MLX_FILE, as_mlx(mixed), &mlx_config(&parameters));
    let seen = inspect(written.path()).unwrap();
    let mut ranks: Vec<usize> = seen.modules.iter().filter_map(|m| m.rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    assert_eq!(ranks, [2, 4, 8, 16]);
    assert!(seen.modules.iter().all(|m| m.scale == Some(2.0)));
    load(written.path(), &mut *model(BASE), LoadMode::Inference).unwrap();
}

/// `tests/golden/mlx`: made, saved and read back by mlx-lm itself.
#[test]
fn adapters_that_mlx_lm_wrote_give_its_logits() {
    for case in ["lora", "lora_keys", "dora"] {
        let folder = golden(&format!("mlx/{case}"));
        let expected =
            candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<u32> =
            expected["input_ids"].to_dtype(candle_core::DType::U32).unwrap().to_vec1().unwrap();
        let mut model = model(BASE);
        let outcome = load(&folder, &mut *model, LoadMode::Inference);
        if case == "dora" {
            let names: Vec<String> =
                AdapterWeights::read(&folder).unwrap().iter().map(|(n, _)| n.to_owned()).collect();
            assert_eq!(names.iter().filter(|n| n.ends_with(".lora_magnitude_vector")).count(), 4);
            assert_eq!(inspect(&folder).unwrap().method, "DoRA");
        }
        outcome.unwrap();
        let layout = taper_nn::SequenceLayout::single(ids.len());
        let mut ctx = taper_nn::ForwardContext::new(&layout);
        let given = taper_models::forward_logits(&*model, &ids, &mut ctx).unwrap();
        let off = furthest(&given, &expected["logits"]);
        println!("{case}: logits off by {off:e}");
        assert!(off < 1e-4, "{case}: off by {off}");
    }
}

#[test]
fn dora_of_mlx_has_pefts_names_and_configuration() {
    let mut all = as_mlx(tensors("lora_all"));
    let modules: Vec<String> =
        all.keys().filter_map(|n| n.strip_suffix(".lora_b").map(str::to_owned)).collect();
    for module in &modules {
        let width = all[&format!("{module}.lora_b")].dims()[1];
        all.insert(
            format!("{module}.m"),
            Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
    }
    let mut config = mlx_config(&json!({"rank": 8, "scale": 2.0}));
    config["fine_tune_type"] = "dora".into();
    let written = folder(MLX_FILE, all, &config);
    let file = AdapterFile::read(written.path()).unwrap();
    assert_eq!(file.layout, Layout::Mlx);
    let weights = file.into_weights(None).unwrap();
    for module in &modules {
        assert!(weights.get(&format!("{PREFIX}{module}.lora_magnitude_vector")).is_some());
    }
    assert_eq!(inspect(written.path()).unwrap().method, "DoRA");
}

#[test]
fn what_mlx_leaves_open_or_cannot_be_read_is_refused_with_the_reason() {
    let told = |file: &str, tensors: Named, config: Value| -> String {
        let folder = folder(file, tensors, &config);
        told_of(folder.path(), BASE)
    };
    let old = |parameters: Value| json!({"lora_layers": 16, "lora_parameters": parameters});
    let plain = || as_mlx(tensors("lora_all"));
    let text = told(MLX_FILE, plain(), old(json!({"rank": 8, "alpha": 16, "scale": 10.0})));
    assert!(
        text.contains("read in two ways") && text.contains("= 20") && text.contains("lora_parameters.scale"),
        "{text}"
    );
    let text = told(MLX_FILE, plain(), old(json!({"rank": 8, "alpha": 16})));
    assert!(text.contains("no number `scale`"), "{text}");
    let text = told(MLX_FILE, plain(), json!({"fine_tune_type": "full", "num_layers": 4}));
    assert!(text.contains("whole weights"), "{text}");
    let mut extra = plain();
    extra.insert("model.norm.weight".into(), Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap());
    let text = told(MLX_FILE, extra, mlx_config(&json!({"scale": 2.0})));
    assert!(text.contains("`model.norm.weight` is no factor"), "{text}");
    let mut experts = plain();
    let stack = Tensor::ones((2, 3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    experts.insert("model.layers.0.mlp.switch_mlp.gate_proj.lora_a".into(), stack);
    assert!(told(MLX_FILE, experts, mlx_config(&json!({"scale": 2.0}))).contains("experts"));
    let mut embedding = plain();
    let table = Tensor::ones((9, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    embedding.insert("model.embed_tokens.lora_a".into(), table);
    assert!(told(MLX_FILE, embedding, mlx_config(&json!({"scale": 2.0}))).contains("output head"));
    let text = told(WEIGHTS_FILE, tensors("lora_all"), mlx_config(&json!({"scale": 2.0})));
    assert!(text.contains("named as PEFT names them"), "{text}");
    // Without anything older to be ambiguous, the older layout is read.
    let written = folder(MLX_FILE, plain(), &old(json!({"rank": 8, "alpha": 8, "scale": 2.0})));
    assert_eq!(bits(&logits(written.path(), BASE, None)), bits(&golden_logits("lora_all", BASE)));
}

/// PEFT's tensors as torchtune stores them: its names, rows of query and key with the halves of a head interleaved.
fn as_torchtune(tensors: Named, heads: Option<(usize, usize)>) -> Named {
    let interleave = |b: &Tensor, n: usize| {
        let (rows, r) = b.dims2().unwrap();
        let turned = b.reshape((n, 2, rows / n / 2, r)).unwrap().transpose(1, 2).unwrap();
        turned.contiguous().unwrap().reshape((rows, r)).unwrap()
    };
    tensors
        .into_iter()
        .map(|(name, mut tensor)| {
            if let Some((n, k)) = heads.filter(|_| name.ends_with("lora_B.weight")) {
                if name.contains(".q_proj.") {
                    tensor = interleave(&tensor, n);
                } else if name.contains(".k_proj.") {
                    tensor = interleave(&tensor, k);
                }
            }
            let mut name = name.strip_prefix(PREFIX).unwrap().replace("model.layers.", "layers.");
            for (peft, tune) in [
                ("self_attn.o_proj", "attn.output_proj"),
                ("self_attn.", "attn."),
                ("gate_proj", "w1"),
                ("down_proj", "w2"),
                ("up_proj", "w3"),
                ("lora_A", "lora_a"),
                ("lora_B", "lora_b"),
            ] {
                name = name.replace(peft, tune);
            }
            (name, tensor)
        })
        .collect()
}

/// `tests/golden/torchtune`: torchtune's own conversion of its names and rows.
#[test]
fn torchtunes_names_and_rows_become_what_its_own_converter_makes_of_them() {
    let folder = golden("torchtune");
    let expected = candle_core::safetensors::load(folder.join("peft.safetensors"), &Device::Cpu).unwrap();
    let heads = HeadLayout::Interleaved { query: 4, key: 2 };
    let file = AdapterFile::read(&folder).unwrap();
    assert_eq!(file.layout, Layout::Torchtune);
    let weights = file.into_weights(Some(heads)).unwrap();
    assert_eq!(weights.iter().count(), expected.len());
    for (name, tensor) in weights.iter() {
        assert_eq!(tensor.dims(), expected[name].dims(), "{name}");
        assert_eq!(bits(tensor), bits(&expected[name]), "{name}");
    }
    let mut model = model(BASE);
    let adapter = load_for(&folder, &mut *model, LoadMode::Inference, Some(heads)).unwrap();
    assert!(adapter.layers.len() == 14 && adapter.layers.iter().all(|layer| layer.scale == 2.0));
}

#[test]
fn an_adapter_of_torchtune_gives_the_logits_of_pefts() {
    let expected = golden_logits("lora_all", BASE);
    let shape = model(BASE);
    let (n, k) = (shape.config().num_attention_heads, shape.config().num_key_value_heads);
    assert!(n != k && n > 1);
    let config = json!({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"]});
    let written = folder(WEIGHTS_FILE, as_torchtune(tensors("lora_all"), Some((n, k))), &config);
    let heads = HeadLayout::Interleaved { query: n, key: k };
    assert_eq!(bits(&logits(written.path(), BASE, Some(heads))), bits(&expected));
    // Taken as they lie, the rows give another model; without knowing, nothing is guessed.
    assert!(furthest(&logits(written.path(), BASE, Some(HeadLayout::Halves)), &expected) > 0.1);
    let text = told_of(written.path(), BASE);
    assert!(text.contains("for this base the order is not known"), "{text}");
    let wrong = HeadLayout::Interleaved { query: 5, key: k };
    let error = load_for(written.path(), &mut *model(BASE), LoadMode::Inference, Some(wrong)).unwrap_err();
    assert!(error.to_string().contains("5 heads"), "{error}");
    // As torchtune's Qwen keeps them.
    let written = folder(WEIGHTS_FILE, as_torchtune(tensors("lora_all"), None), &config);
    assert_eq!(bits(&logits(written.path(), BASE, Some(HeadLayout::Halves))), bits(&expected));
    assert_eq!(inspect(written.path()).unwrap().layout, "torchtune");
}

fn told_of(folder: &Path, base: &str) -> String {
    let error = load(folder, &mut *model(base), LoadMode::Inference).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::UserError, "{error}");
    let problem = Problem::from_error("peft", &error);
    assert!(problem.hint.is_some() && problem.location.is_some(), "{problem}");
    problem.to_string()
}

#[test]
fn ranks_that_the_configuration_does_not_explain_are_told_with_the_pattern_that_would() {
    let mut config = config("lora_patterns");
    config["rank_pattern"] = json!({});
    let written = folder(WEIGHTS_FILE, tensors("lora_patterns"), &config);
    let text = told_of(written.path(), BASE);
    assert!(text.contains("its rank is 4 in 2 (`model.layers.0.self_attn.q_proj`"), "{text}");
    assert!(text.contains("`\"rank_pattern\": {") && text.contains("\"q_proj\": 4"), "{text}");
    // The pattern that is told makes the adapter readable.
    let (_, rest) = text.split_once("`\"rank_pattern\": ").unwrap();
    let (pattern, _) = rest.split_once("` would").unwrap();
    config["rank_pattern"] = serde_json::from_str(pattern).unwrap();
    let written = folder(WEIGHTS_FILE, tensors("lora_patterns"), &config);
    assert_eq!(bits(&logits(written.path(), BASE, None)), bits(&golden_logits("lora_patterns", BASE)));

    let mut config = self::config("lora_all");
    config["r"] = json!(4);
    let text = told_of(folder(WEIGHTS_FILE, tensors("lora_all"), &config).path(), BASE);
    assert!(
        text.contains("14 of 14 adapted modules") && text.contains("`\"r\": 8` without `rank_pattern`"),
        "{text}"
    );
}

#[test]
fn another_base_is_told_by_what_differs() {
    // Same names, other widths.
    let mut named = config("lora_all");
    named["base_model_name_or_path"] = json!("someone/wide-llama");
    let wide: Named = tensors("lora_all")
        .into_iter()
        .map(|(name, t)| {
            let dim = if name.contains("lora_A") { 1 } else { 0 };
            (name, Tensor::cat(&[&t, &t], dim).unwrap())
        })
        .collect();
    let text = told_of(folder(WEIGHTS_FILE, wide, &named).path(), BASE);
    assert!(
        text.contains("28 of the adapter's tensors have other widths") && text.contains("someone/wide-llama"),
        "{text}"
    );
    // More layers than the base has.
    let deep: Named =
        tensors("lora_all").into_iter().map(|(n, t)| (n.replace("layers.1.", "layers.7."), t)).collect();
    let text = told_of(folder(WEIGHTS_FILE, deep, &named).path(), BASE);
    assert!(text.contains("model.layers.7") && text.contains("someone/wide-llama"), "{text}");
    for case in ["ia3", "loha", "lokr", "vera"] {
        let deep: Named =
            tensors(case).into_iter().map(|(n, t)| (n.replace("layers.1.", "layers.7."), t)).collect();
        let text = told_of(folder(WEIGHTS_FILE, deep, &config(case)).path(), BASE);
        assert!(text.contains("model.layers.7") && text.contains("does not have"), "{case}: {text}");
        let parts = ["ia3_l", "hada_w", "lokr_w", "vera_lambda"];
        assert!(!text.lines().next().unwrap().contains("another method"), "{case}: {text}");
        let listed = text.split("does not have").nth(1).unwrap().lines().next().unwrap();
        assert!(parts.iter().all(|part| !listed.contains(part)), "{case}: {text}");
    }
    // Names that no module has.
    named["target_modules"] = json!(["query_key_value"]);
    let text = told_of(folder(WEIGHTS_FILE, tensors("lora_all"), &named).path(), BASE);
    assert!(text.contains("selects no linear layer of the model") && text.contains("q_proj"), "{text}");
    // Two layouts in one file.
    let mut mixed = tensors("lora_all");
    mixed.extend(as_mlx(tensors("lora_all")));
    let text = told_of(folder(WEIGHTS_FILE, mixed, &config("lora_all")).path(), BASE);
    assert!(text.contains("one layout"), "{text}");
}

/// Methods whose tensors lie under a configuration of LoRA are named, not taken for something else.
#[test]
fn tensors_of_another_method_are_named() {
    let one = || Tensor::ones((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (name, method) in [
        ("q_proj.lora_E", "AdaLoRA"),
        ("q_proj.ia3_l", "IA3"),
        ("q_proj.hada_w1_a", "LoHa"),
        ("q_proj.lokr_w1", "LoKr"),
        ("q_proj.vera_lambda_b", "VeRA"),
        ("q_proj.oft_R.weight", "OFT"),
        ("input_layernorm.ln_tuning_layers.weight", "LN tuning"),
    ] {
        let mut all = tensors("lora_all");
        all.insert(format!("{PREFIX}model.layers.0.self_attn.{name}"), one());
        let folder = folder(WEIGHTS_FILE, all, &config("lora_all"));
        let text = told_of(folder.path(), BASE);
        assert!(text.contains(method), "{method}: {text}");
        assert!(inspect(folder.path()).unwrap().method.contains(method));
    }
    let all = Named::from([("prompt_embeddings".to_owned(), one())]);
    let text = told_of(folder(WEIGHTS_FILE, all, &config("lora_all")).path(), BASE);
    assert!(text.contains("prompt tuning"), "{text}");
}

#[test]
fn folders_that_are_no_adapter_say_what_they_are() {
    assert!(told_of(&golden(BASE), BASE).contains("folder of a model"));
    let text = told_of(&golden("peft"), BASE);
    assert!(text.contains("adapters inside it") && text.contains("peft/dora"), "{text}");
    let text = told_of(&golden("peft/lora_all").join(WEIGHTS_FILE), BASE);
    assert!(text.contains("an adapter is a folder"), "{text}");
    let error = load(Path::new("nowhere"), &mut *model(BASE), LoadMode::Inference).unwrap_err();
    assert!(error.to_string().contains("no such folder"), "{error}");
}

#[test]
fn inspection_tells_scales_norms_and_losses() {
    let of = |case: &str| inspect(&golden(&format!("peft/{case}"))).unwrap();
    let verdict = |case: &str, name: &str| {
        let consumer = of(case).consumers.into_iter().find(|c| c.name == name).unwrap();
        (consumer.verdict, consumer.why.join("; "))
    };
    let plain = of("lora_all");
    assert_eq!((plain.method.as_str(), plain.modules.len()), ("LoRA", 14));
    assert_eq!(plain.bytes, fs_err::metadata(golden("peft/lora_all").join(WEIGHTS_FILE)).unwrap().len());
    for name in ["PEFT", "transformers", "vLLM", "llama.cpp", "taper"] {
        assert_eq!(verdict("lora_all", name).0, Verdict::Reads, "{name}");
    }
    assert_eq!(of("rslora").method, "rsLoRA");
    assert_eq!(verdict("rslora", "vLLM").0, Verdict::Reads);
    let (lost, why) = verdict("rslora", "llama.cpp");
    // alpha / r in place of alpha / sqrt(r), r = 8.
    assert!(lost == Verdict::Loses && why.contains("0.354") && why.contains("rsLoRA"), "{why}");
    let (lost, why) = verdict("lora_patterns", "vLLM");
    assert!(lost == Verdict::Loses && why.contains("rank_pattern"), "{why}");
    assert_eq!(verdict("lora_modules_to_save", "llama.cpp").0, Verdict::Refuses);
    assert_eq!(verdict("lora_modules_to_save", "PEFT").0, Verdict::Reads);
    let norms: Vec<f64> = of("rslora").modules.iter().filter_map(|m| m.norm).collect();
    assert!(norms.len() == 14 && norms.iter().all(|n| *n > 0.0));
}

/// PEFT's other methods: shown, whether they can be loaded or not.
#[test]
fn methods_that_cannot_be_loaded_are_shown_all_the_same() {
    let real =
        std::env::var_os("TAPER_REAL_DATA").map_or_else(|| workspace().join("../shared/real"), Into::into);
    let further = real.join("../golden/data/peft");
    if !further.is_dir() {
        eprintln!(
            "SKIPPED in part: no further golden adapters at `{}` (set TAPER_REAL_DATA)",
            further.display()
        );
    }
    let mut seen = 0;
    for folder in [golden("peft"), further].into_iter().filter(|folder| folder.is_dir()) {
        for entry in fs_err::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.join(CONFIG_FILE).is_file() {
                continue;
            }
            let inspection = inspect(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(inspection.parameters > 0 && inspection.method != "unknown", "{}", path.display());
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let expected = match name.as_str() {
                "dora" => "DoRA",
                "dora_rslora_qv" => "DoRA with rsLoRA's scale",
                "rslora" => "rsLoRA",
                "vera" => "VeRA",
                "ia3" => "IA3",
                "loha" => "LoHa",
                "lokr" | "lokr_full" => "LoKr",
                "adalora" => "AdaLoRA",
                "oft" => "OFT",
                "ln_tuning" => "LN TUNING",
                "prompt_tuning" => "PROMPT TUNING",
                "prefix_tuning" => "PREFIX TUNING",
                _ => "LoRA",
            };
            assert_eq!(inspection.method, expected, "{name}");
            assert_eq!(inspection.writer, "PEFT 0.21.2", "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 16, "only {seen} adapters");
}

proptest! {
    /// Whatever the bytes and the words, the readers end with a value or an error.
    #[test]
    fn no_bytes_make_the_readers_of_other_layouts_panic(
        mlx: bool, cut in 0usize..600, at in 0usize..4000, byte: u8,
        key in proptest::sample::select(vec!["scale", "rank", "alpha", "num_layers", "fine_tune_type", "r", "target_modules", "enable_lora"]),
        value in proptest::sample::select(vec!["null", "-1", "1e400", "\"x\"", "[]", "[[1]]", "{}", "18446744073709551615", "true"]),
    ) {
        let small: Named = tensors("lora_default").into_iter().take(4).collect();
        let (file, small) = if mlx { (MLX_FILE, as_mlx(small)) } else { (WEIGHTS_FILE, as_torchtune(small, None)) };
        let mut bytes = AdapterWeights::from_tensors(small).to_bytes().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let text = format!(
            r#"{{"lora_parameters": {{"rank": 2, "scale": 2.0, "{key}": {value}}}, "{key}": {value}, "num_layers": 2}}"#
        );
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(file), bytes).unwrap();
        fs_err::write(folder.path().join(CONFIG_FILE), text).unwrap();
        let _ = inspect(folder.path());
        let heads = HeadLayout::Interleaved { query: 4, key: 2 };
        if let Ok(read) = AdapterFile::read(folder.path()) {
            let _ = read.into_weights(Some(heads));
        }
        let outcome = taper_peft::AdapterConfig::read(folder.path());
        let faulty = matches!(outcome, Err(Error::Arithmetic { .. }));
        prop_assert!(!faulty);
    }
}

/// What lies beside the deltas is told for what it is: copies of the base's tables, rows of tokens; ranks and scales of every method.
#[test]
fn an_inspection_tells_copies_of_tables_rows_of_tokens_and_ranks_of_every_method() {
    let of = |name: &str| inspect(&golden(&format!("peft/{name}"))).unwrap();
    let embedding = of("lora_embed");
    assert!(embedding.whole.is_empty());
    assert_eq!(embedding.copies, ["lm_head.base_layer.weight", "model.embed_tokens.base_layer.weight"]);
    let tokens = of("tied_token_indices");
    assert_eq!((&tokens.tokens[..], tokens.modules.len()), (&["model.embed_tokens".to_owned()][..], 2));
    let engines = ["vLLM", "llama.cpp", "Ollama", "MLX"];
    for consumer in tokens.consumers.iter().filter(|c| engines.contains(&c.name)) {
        assert_eq!(consumer.verdict, Verdict::Refuses, "{}", consumer.name);
        let told = consumer.why.join(", ");
        assert!(told.contains("rows of single tokens") || consumer.name == "MLX", "{told}");
    }
    let ranks =
        |name: &str| -> Vec<_> { of(name).modules.iter().map(|m| (m.rank, m.alpha, m.scale)).collect() };
    assert!(ranks("vera").iter().all(|r| *r == (Some(8), None, None)));
    assert!(ranks("loha").iter().all(|r| *r == (Some(4), Some(8.0), Some(2.0))));
    assert!(ranks("lokr").iter().all(|r| *r == (Some(4), Some(8.0), Some(2.0))));
    assert!(ranks("ia3").iter().all(|r| *r == (None, None, None)));
}
