//! Adapters found in public repositories; the tests skip loudly where they are not present.

use crate::support::{model, workspace};
use std::path::PathBuf;
use taper_diagnostics::Problem;
use taper_peft::{AdapterWeights, Error, LoadMode, LoraConfig, TargetModules, load};

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
    match LoraConfig::from_json(text) {
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
            n if !n.starts_with("lora__") => &["peft_type"],
            n if n.ends_with("bdlora") => &["use_bdlora"],
            n if n.ends_with("dora") => &["use_dora"],
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
    let config = LoraConfig::read(&folder).unwrap();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (4, 16.0, 0.1));
    assert_eq!(config.target_modules, Some(TargetModules::List(vec!["q_proj".into(), "v_proj".into()])));
    let weights = AdapterWeights::read(&folder).unwrap();
    assert_eq!(weights.iter().count(), 22 * 2 * 2);
    assert!(weights.iter().all(|(name, t)| name.contains("lora_B") || t.dims()[0] == 4));
    let error = load(&folder, &mut *model("models/llama_untied"), LoadMode::Inference).unwrap_err();
    assert!(matches!(error, Error::UnexpectedTensors { .. }), "{error}");
}

#[test]
fn a_git_lfs_pointer_and_an_mlx_adapter_are_named() {
    let Some(folder) = adapters() else { return };
    let told = |name: &str| {
        let error =
            load(&folder.join(name), &mut *model("models/llama_untied"), LoadMode::Inference).unwrap_err();
        Problem::from_error("peft", &error).to_string()
    };
    let text = told("LFSPOINTER-llama3.2-1b-typo-target");
    assert!(text.contains("git-lfs pointer") && text.contains("git lfs pull"), "{text}");
    let text = told("mlx-cli");
    assert!(text.contains("mlx-lm") && text.contains("lora_parameters"), "{text}");
}
