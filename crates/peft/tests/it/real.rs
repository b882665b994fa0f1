//! Adapters found in public repositories; the tests skip loudly where they are not present.

use crate::support::{model, workspace};
use std::path::PathBuf;
use taper_diagnostics::Problem;
use taper_peft::{AdapterConfig, AdapterWeights, Error, LoadMode, TargetModules, load};

fn adapters() -> Option<PathBuf> {
    let root =
        std::env::var_os("TAPER_REAL_DATA").map_or_else(|| workspace().join("../shared/real"), PathBuf::from);
    let folder = root.join("adapters");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no real adapters at `{}` (set TAPER_REAL_DATA)", folder.display());
    None
}

/// The keys that a configuration is refused for.
fn refusals(text: &str) -> Vec<String> {
    match AdapterConfig::from_json(text) {
        Ok(_) => Vec::new(),
        Err(Error::Problems(problems)) => problems.iter().filter_map(|p| p.location.clone()?.key).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn real_configurations_are_read_or_refused_by_the_right_name() {
    let Some(folder) = adapters() else { return };
    let mut seen = 0;
    for entry in fs_err::read_dir(folder.join("configs-only/peft-method-comparison")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let expected: &[&str] = match name.as_str() {
            n if n.starts_with("trainable_tokens") => &["peft_type"],
            n if n.ends_with("bdlora") => &["use_bdlora"],
            n if n.ends_with("kasa") => &["kasa_config"],
            n if n.ends_with("mica") => &["init_lora_weights"],
            _ => &[],
        };
        assert_eq!(refusals(&fs_err::read_to_string(&path).unwrap()), expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 15, "only {seen} configurations");
}

#[test]
fn a_real_adapter_is_read_and_refused_over_a_base_that_is_not_its_own() {
    let Some(folder) = adapters() else { return };
    let folder = folder.join("tinyllama-r4-qv");
    let config = AdapterConfig::read(&folder).unwrap();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (4, 16.0, 0.1));
    assert_eq!(config.target_modules, Some(TargetModules::List(vec!["q_proj".into(), "v_proj".into()])));
    let weights = AdapterWeights::read(&folder).unwrap();
    assert_eq!(weights.iter().count(), 22 * 2 * 2);
    assert!(weights.iter().all(|(name, t)| name.contains("lora_B") || t.dims()[0] == 4));
    let error = load(&folder, &mut *model("models/llama_untied"), LoadMode::Inference).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("modules that the model does not have"), "{text}");
    assert!(text.contains("TinyLlama/TinyLlama-1.1B-Chat-v1.0"), "{text}");
}

#[test]
fn a_git_lfs_pointer_is_named_and_an_mlx_adapter_read() {
    let Some(folder) = adapters() else { return };
    let told = |name: &str| {
        let error =
            load(&folder.join(name), &mut *model("models/llama_untied"), LoadMode::Inference).unwrap_err();
        Problem::from_error("peft", &error).to_string()
    };
    let text = told("LFSPOINTER-llama3.2-1b-typo-target");
    assert!(text.contains("git-lfs pointer") && text.contains("git lfs pull"), "{text}");
    // Written by mlx-lm after `alpha` had lost its meaning: the scale is 10, not 10 * 16 / 8.
    let config = AdapterConfig::read(&folder.join("mlx-cli")).unwrap();
    assert_eq!((config.r, config.lora_alpha), (8, 80.0));
    let weights = AdapterWeights::read(&folder.join("mlx-cli")).unwrap();
    let shape = |name: &str| weights.get(name).map(|t| t.dims().to_vec());
    let v = "base_model.model.model.layers.20.self_attn.v_proj";
    assert_eq!(shape(&format!("{v}.lora_A.weight")), Some(vec![8, 896]));
    assert_eq!(shape(&format!("{v}.lora_B.weight")), Some(vec![128, 8]));
    assert_eq!(weights.iter().count(), 4 * 2 * 2);
    let text = told("mlx-cli");
    assert!(text.contains("modules that the model does not have") && text.contains("Qwen2.5-0.5B"), "{text}");
}

#[test]
fn real_adapters_are_inspected() {
    let Some(folder) = adapters() else { return };
    let mlx = taper_peft::inspect(&folder.join("mlx-cli")).unwrap();
    assert_eq!((mlx.method.as_str(), mlx.layout.as_str(), mlx.writer.as_str()), ("LoRA", "mlx-lm", "mlx-lm"));
    assert_eq!(mlx.modules.len(), 8);
    assert!(mlx.modules.iter().all(|m| m.scale == Some(10.0) && m.norm.is_some_and(|n| n > 0.0)));
    assert_eq!(mlx.parameters, 4 * 8 * ((896 + 896) + (896 + 128)));
    let tiny = taper_peft::inspect(&folder.join("tinyllama-r4-qv")).unwrap();
    assert_eq!(tiny.modules.len(), 44);
    assert!(tiny.modules.iter().all(|m| m.rank == Some(4) && m.scale == Some(4.0)));
    assert_eq!(tiny.base.as_deref(), Some("TinyLlama/TinyLlama-1.1B-Chat-v1.0"));
    assert_eq!(tiny.dead().count(), 0);
    assert!(taper_peft::inspect(&folder.join("LFSPOINTER-llama3.2-1b-typo-target")).is_err());
}
