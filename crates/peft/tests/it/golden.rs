//! `tests/golden/peft`: logits, loss, gradients, merged weights and files of Python PEFT.

use crate::support::{batch, bits, furthest, golden, json, largest, model, state, tensors};
use taper_models::ModelType;
use taper_peft::{
    AdapterConfig, AdapterSection, AdapterWeights, Bias, CONFIG_FILE, Error, LoadMode, ModuleNames, PeftType,
    TargetModules, WEIGHTS_FILE, attach, load,
};

const CASES: [&str; 25] = [
    "lora_all",
    "lora_default",
    "lora_all_linear",
    "rslora",
    "lora_patterns",
    "lora_modules_to_save",
    "lora_modules_to_save_norm",
    "lora_layers",
    "lora_exclude",
    "lora_train_bias_all",
    "lora_train_bias_lora_only",
    "lora_tied",
    "lora_qwen3",
    "lora_phi3",
    "lora_gemma2",
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
];

/// Over a base whose head shares the embedding's table. PEFT merges such adapters into the shared tensor, so there are no merged weights to compare.
const TIED_CASES: [&str; 6] = [
    "tied_embed_saved",
    "tied_head_saved",
    "tied_saved_as_one",
    "tied_token_indices",
    "tied_embed_lora",
    "tied_head_lora",
];

fn all_cases() -> impl Iterator<Item = &'static str> {
    CASES.into_iter().chain(TIED_CASES)
}

const LOGITS: f32 = 1e-4;
/// Large deltas, and merged weights, whose rounding is another.
const LOGITS_WIDE: f32 = 2e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f32 = 5e-5;
const MERGED: f32 = 2e-6;

/// Not in PEFT's table.
const WITHOUT_DEFAULT: [ModelType; 4] =
    [ModelType::Phi3, ModelType::Qwen3Moe, ModelType::Olmo2, ModelType::Granite];

fn logit_tolerance(case: &str) -> f32 {
    if ["rslora", "lora_patterns"].contains(&case) { LOGITS_WIDE } else { LOGITS }
}

#[test]
fn logits_loss_and_gradients_are_pefts() {
    let batch = batch();
    let mut furthest_of_all = (0f32, 0f64, 0f32);
    for case in all_cases() {
        let (expected, info) = (tensors(&golden(&format!("peft/{case}/golden.safetensors"))), info(case));
        let mut model = model(info["base"].as_str().unwrap());
        let base = batch.logits(&*model);
        let adapter = load(&golden(&format!("peft/{case}")), &mut *model, LoadMode::Training).unwrap();
        assert_eq!(adapter.trainable_count() as u64, info["trainable"].as_u64().unwrap(), "{case}");

        let logits = batch.logits(&*model);
        let off = furthest(&logits.detach(), &batch.unpadded(&expected["logits"]));
        assert!(off <= logit_tolerance(case), "{case}: logits off by {off}");
        assert!(furthest(&logits.detach(), &base) > 1.0, "{case}: the adapter does nothing");

        let (loss, gradients) = batch.loss_and_gradients(&*model, None);
        let loss_off = (loss - info["loss"].as_f64().unwrap()).abs();
        assert!(loss_off <= LOSS, "{case}: loss off by {loss_off}");
        let mut worst = 0f32;
        for parameter in &adapter.parameters {
            let expected = &expected[&format!("grad.{}", parameter.name)];
            let gradient = &gradients.get(parameter.var.as_tensor()).unwrap().unwrap();
            let off = furthest(gradient, expected) / largest(expected);
            assert!(off <= GRADIENT, "{case}: gradient of {} off by {off}", parameter.name);
            worst = worst.max(off);
        }
        let with_gradient = expected.keys().filter(|k| k.starts_with("grad.")).count();
        assert_eq!(with_gradient, adapter.parameters.len(), "{case}");
        println!("{case}: logits {off:.1e} loss {loss_off:.1e} gradients {worst:.1e}");
        let (a, b, c) = furthest_of_all;
        furthest_of_all = (a.max(off), b.max(loss_off), c.max(worst));
    }
    println!("furthest: {furthest_of_all:?}");
}

#[test]
fn merged_weights_and_merged_logits_are_pefts() {
    let batch = batch();
    for case in CASES {
        let (expected, info) = (tensors(&golden(&format!("peft/{case}/golden.safetensors"))), info(case));
        let mut model = model(info["base"].as_str().unwrap());
        let before = state(&mut *model);
        let adapter = load(&golden(&format!("peft/{case}")), &mut *model, LoadMode::Inference).unwrap();
        let unmerged = batch.logits(&*model);
        adapter.merge_into(&mut *model).unwrap();

        let after = state(&mut *model);
        let mut changed: Vec<&str> =
            after.keys().filter(|k| bits(&before[*k]) != bits(&after[*k])).map(String::as_str).collect();
        let mut expected_changed: Vec<&str> =
            info["changed_by_merge"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
        changed.sort_unstable();
        expected_changed.sort_unstable();
        assert_eq!(changed, expected_changed, "{case}");
        let mut worst = 0f32;
        for (name, expected) in expected.iter().filter_map(|(k, v)| Some((k.strip_prefix("merged.")?, v))) {
            let off = furthest(&after[name], expected);
            assert!(off <= MERGED, "{case}: merged {name} off by {off}");
            worst = worst.max(off);
        }
        let logits = batch.logits(&*model);
        let to_unmerged = furthest(&logits, &unmerged);
        assert!(to_unmerged <= LOGITS_WIDE, "{case}: merging moves the logits by {to_unmerged}");
        if let Some(merged) = expected.get("merged_logits") {
            let off = furthest(&logits, &batch.unpadded(merged));
            assert!(off <= LOGITS_WIDE, "{case}: merged logits off by {off}");
        }
        println!("{case}: merged weights {worst:.1e}, merged against unmerged {to_unmerged:.1e}");

        adapter.detach(&mut *model).unwrap();
        let restored = state(&mut *model);
        assert!(
            before.iter().all(|(k, v)| bits(v) == bits(&restored[k])),
            "{case}: the base is not restored"
        );
    }
}

/// What embedding and head share is two weights after merging, or still one, and the logits stay; taking the adapter off brings the base back.
#[test]
fn over_a_shared_table_merging_keeps_the_logits_and_detaching_the_base() {
    let batch = batch();
    for case in TIED_CASES {
        let mut model = model(info(case)["base"].as_str().unwrap());
        let (before, base) = (state(&mut *model), batch.logits(&*model));
        let adapter = load(&golden(&format!("peft/{case}")), &mut *model, LoadMode::Inference).unwrap();
        let unmerged = batch.logits(&*model);
        adapter.merge_into(&mut *model).unwrap();
        let moved = furthest(&batch.logits(&*model), &unmerged);
        assert!(moved <= LOGITS_WIDE, "{case}: merging moves the logits by {moved}");
        let merged = state(&mut *model);
        let is_one = bits(&merged["lm_head.weight"]) == bits(&merged["model.embed_tokens.weight"]);
        assert_eq!(is_one, ["tied_saved_as_one", "tied_token_indices"].contains(&case), "{case}");
        adapter.detach(&mut *model).unwrap();
        assert!(bits(&batch.logits(&*model)) == bits(&base), "{case}: other logits");
        let restored = state(&mut *model);
        assert!(
            before.iter().all(|(k, v)| bits(v) == bits(&restored[k])),
            "{case}: the base is not restored"
        );
    }
}

#[test]
fn what_is_read_is_saved_again_byte_for_byte() {
    for case in all_cases() {
        let folder = golden(&format!("peft/{case}"));
        let mut model = model(info(case)["base"].as_str().unwrap());
        let out = tempfile::tempdir().unwrap();
        load(&folder, &mut *model, LoadMode::Training).unwrap().save(out.path()).unwrap();
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            let (ours, pefts) = (out.path().join(file), folder.join(file));
            assert!(fs_err::read(ours).unwrap() == fs_err::read(pefts).unwrap(), "{case}/{file}");
        }
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

fn list(all: &[&str]) -> TargetModules {
    TargetModules::List(names(all))
}

fn beyond_plain_lora(case: &str, section: AdapterSection) -> AdapterSection {
    match case {
        "lora_bias" => {
            AdapterSection { target_modules: list(&["q_proj", "down_proj"]), lora_bias: true, ..section }
        }
        "lora_embed" => {
            AdapterSection { target_modules: list(&["embed_tokens", "lm_head", "q_proj"]), ..section }
        }
        "lora_token_indices" => AdapterSection {
            target_modules: list(&["q_proj", "v_proj"]),
            trainable_token_indices: Some(vec![3, 7, 11]),
            ..section
        },
        "dora" => AdapterSection { use_dora: true, ..section },
        "dora_rslora_qv" => AdapterSection {
            target_modules: list(&["q_proj", "v_proj"]),
            use_dora: true,
            use_rslora: true,
            ..section
        },
        "ia3" => AdapterSection {
            target_modules: list(&["k_proj", "v_proj", "down_proj"]),
            peft_type: PeftType::Ia3,
            ..AdapterSection::default()
        },
        "vera" => AdapterSection {
            target_modules: list(&["q_proj", "o_proj"]),
            peft_type: PeftType::Vera,
            projection_prng_key: Some(11),
            ..AdapterSection::default()
        },
        "loha" | "lokr" => AdapterSection {
            target_modules: list(&["q_proj", "down_proj"]),
            peft_type: if case == "loha" { PeftType::Loha } else { PeftType::Lokr },
            r: 4,
            lora_alpha: 8.0,
            ..AdapterSection::default()
        },
        "lokr_full" => AdapterSection {
            target_modules: list(&["v_proj"]),
            peft_type: PeftType::Lokr,
            r: 64,
            lora_alpha: 64.0,
            decompose_both: true,
            decompose_factor: Some(4),
            ..AdapterSection::default()
        },
        _ => section,
    }
}

/// The configurations of make_golden.py, as a user of taper would write them.
fn configuration(case: &str) -> AdapterConfig {
    let seven = list(&["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    let section =
        AdapterSection { r: 8, lora_alpha: 16.0, target_modules: seven, ..AdapterSection::default() };
    let base = info(case)["base"].as_str().expect("a base").to_owned();
    let section = match case {
        "lora_all_linear" => {
            AdapterSection { target_modules: TargetModules::AllLinear, r: 2, lora_alpha: 3.0, ..section }
        }
        "rslora" => AdapterSection { use_rslora: true, ..section },
        "lora_patterns" => AdapterSection {
            rank_pattern: [
                ("q_proj", 4),
                ("model.layers.1.mlp.*", 2),
                ("^model.layers.0.self_attn.v_proj", 16),
            ]
            .map(|(k, v)| (k.to_owned(), v))
            .into(),
            alpha_pattern: [("k_proj", 64.0), ("layers.1.mlp.down_proj", 5.0)]
                .map(|(k, v)| (k.to_owned(), v))
                .into(),
            ..section
        },
        "lora_modules_to_save" => AdapterSection {
            target_modules: list(&["q_proj", "v_proj"]),
            modules_to_save: names(&["lm_head"]),
            ..section
        },
        "lora_modules_to_save_norm" => AdapterSection {
            target_modules: list(&["q_proj"]),
            modules_to_save: names(&["embed_tokens", "norm"]),
            ..section
        },
        "lora_layers" => AdapterSection { layers_to_transform: Some(vec![1]), ..section },
        "lora_exclude" => AdapterSection {
            target_modules: TargetModules::Regex(r".*\.(q_proj|v_proj|down_proj)".into()),
            exclude_modules: Some(ModuleNames::List(names(&["layers.0.self_attn.q_proj"]))),
            ..section
        },
        "lora_train_bias_all" => {
            AdapterSection { target_modules: list(&["q_proj", "v_proj"]), bias: Bias::All, ..section }
        }
        "lora_train_bias_lora_only" => {
            AdapterSection { target_modules: list(&["q_proj", "v_proj"]), bias: Bias::LoraOnly, ..section }
        }
        "lora_phi3" => AdapterSection {
            target_modules: list(&["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]),
            ..section
        },
        "lora_tied" => AdapterSection { target_modules: list(&["q_proj", "down_proj"]), ..section },
        _ => beyond_plain_lora(case, section),
    };
    assert!(section.check().is_empty(), "{case}");
    let config = section.to_config(&base);
    match case {
        "lora_default" => AdapterConfig { r: 4, lora_alpha: 32.0, target_modules: None, ..config },
        "lora_layers" => AdapterConfig { layers_pattern: names(&["layers"]), ..config },
        _ => config,
    }
}

#[test]
fn a_new_adapter_has_the_names_shapes_and_configuration_that_peft_writes() {
    for case in CASES {
        let mut model = model(info(case)["base"].as_str().unwrap());
        let model_type = model.config().model_type.name();
        let adapter = attach(&mut *model, &configuration(case), model_type, 5).unwrap();
        let out = tempfile::tempdir().unwrap();
        adapter.save(out.path()).unwrap();
        let ours = AdapterWeights::read(out.path()).unwrap();
        let pefts = AdapterWeights::read(&golden(&format!("peft/{case}"))).unwrap();
        let shapes = |weights: &AdapterWeights| {
            // The base's own tables, which PEFT writes along, are not ours to write.
            let own = weights.iter().filter(|(name, _)| !name.ends_with(".base_layer.weight"));
            own.map(|(name, t)| (name.to_owned(), t.dims().to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(shapes(&ours), shapes(&pefts), "{case}");
        let mut expected = AdapterConfig::read(&golden(&format!("peft/{case}"))).unwrap();
        expected.peft_version = None;
        assert_eq!(
            fs_err::read_to_string(out.path().join(CONFIG_FILE)).unwrap(),
            expected.to_json(),
            "{case}"
        );
    }
}

/// PEFT's own default is q and v for all that it has one for.
#[test]
fn every_architecture_has_pefts_default_targets_or_as_in_peft_none() {
    for model_type in ModelType::ALL {
        let base = match model_type {
            ModelType::Llama => "llama_untied",
            ModelType::Gemma3 => "gemma3",
            other => other.name(),
        };
        let mut model = model(&format!("models/{base}"));
        let config = AdapterConfig { target_modules: None, ..configuration("lora_default") };
        let attached = attach(&mut *model, &config, model_type.name(), 5);
        if WITHOUT_DEFAULT.contains(&model_type) {
            assert!(matches!(attached, Err(Error::NoDefaultTargets { .. })), "{base}");
            continue;
        }
        let adapter = attached.unwrap();
        let names: Vec<&str> = adapter.parameters.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), 2 * 2 * model.num_blocks(), "{base}: {names:?}");
        assert!(names.iter().all(|n| n.contains(".q_proj.") || n.contains(".v_proj.")), "{base}: {names:?}");
    }
}

fn info(case: &str) -> serde_json::Value {
    json(&golden(&format!("peft/{case}/golden.json")))
}
