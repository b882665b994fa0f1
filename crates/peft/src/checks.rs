//! Ranges and combinations of a configuration's settings, for a file and for a recipe alike.

use crate::config::AdapterConfig;
use crate::targets::{ModuleNames, Pattern, TargetModules};
use taper_diagnostics::{Location, Problem, Problems};

/// Ranges, combinations and patterns, for a file and for a recipe alike; keys get `prefix` in front.
pub(crate) fn check(config: &AdapterConfig, prefix: &str, problems: &mut Problems) {
    let mut fault = |code, key: &str, message: String, hint: &str| {
        let at = Location::default().with_key(format!("{prefix}{key}"));
        problems.push(Problem::error(code, message).at(at).hint(hint));
    };
    if !(1..=MAX_RANK).contains(&config.r) {
        fault(
            "out-of-range",
            "r",
            format!("`r` is {}, allowed are 1 to {MAX_RANK}", config.r),
            "8 to 64 are usual",
        );
    }
    if !(config.lora_alpha.is_finite() && config.lora_alpha > 0.0) {
        let message = format!("`lora_alpha` is {}, it must be above 0", config.lora_alpha);
        fault("out-of-range", "lora_alpha", message, "r or twice r is usual");
    }
    // Masks are drawn and inputs scaled in f32, where 0.99999999 is 1.
    if !(0.0..1.0).contains(&(config.lora_dropout as f32)) {
        let message = format!("`lora_dropout` is {}, allowed are 0 to below 1", config.lora_dropout);
        fault("out-of-range", "lora_dropout", message, "it is a share: 0.05 drops every twentieth element");
    }
    for (name, rank) in config.rank_pattern.iter().filter(|(_, r)| !(1..=MAX_RANK).contains(r)) {
        let message = format!("the rank for `{name}` is {rank}, allowed are 1 to {MAX_RANK}");
        fault("out-of-range", "rank_pattern", message, "to leave a module out, use `exclude_modules`");
    }
    for (name, alpha) in config.alpha_pattern.iter().filter(|(_, a)| !(a.is_finite() && *a > 0.0)) {
        let message = format!("the alpha for `{name}` is {alpha}, it must be above 0");
        fault("out-of-range", "alpha_pattern", message, "to leave a module out, use `exclude_modules`");
    }
    let by_regex = matches!(config.target_modules, Some(TargetModules::Regex(_)));
    if by_regex && (config.layers_to_transform.is_some() || !config.layers_pattern.is_empty()) {
        let message =
            "`layers_to_transform` cannot go with a regular expression in `target_modules`".to_owned();
        fault("conflict", "layers_to_transform", message, "put the layers' numbers into the expression");
    }
    if !config.layers_pattern.is_empty() && config.layers_to_transform.is_none() {
        let message = "`layers_pattern` is set without `layers_to_transform`".to_owned();
        fault("conflict", "layers_pattern", message, "say which layers, or leave it out");
    }
    if matches!(&config.target_modules, Some(TargetModules::List(names)) if names.is_empty()) {
        fault(
            "out-of-range",
            "target_modules",
            "`target_modules` is an empty list".into(),
            "name at least one module",
        );
    }
    for (key, message, remedy) in config.method.as_dyn().faults(config) {
        fault("out-of-range", key, message, remedy);
    }
    check_combinations(config, &mut fault);
    check_names(config, &mut fault);
}

/// What LoRA's switches cannot be together, as in PEFT.
fn check_combinations(config: &AdapterConfig, fault: &mut impl FnMut(&'static str, &str, String, &str)) {
    if config.use_dora && config.lora_bias {
        let message = "`lora_bias` cannot go with `use_dora`".to_owned();
        fault("conflict", "lora_bias", message, "leave one of them out");
    }
    let of_the_weight = config.init_lora_weights.is_of_the_weight();
    if of_the_weight && (config.use_dora || config.lora_bias) {
        let key = if config.use_dora { "use_dora" } else { "lora_bias" };
        let message =
            format!("`{key}` cannot go with an `init_lora_weights` that changes the base while training");
        fault("conflict", key, message, "leave it out, or begin with `init_lora_weights = true`");
    }
    for (name, ids) in config.trainable_token_indices.iter().flat_map(|t| t.of_modules()) {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if ids.is_empty() || sorted.len() != ids.len() {
            let what = if ids.is_empty() { "no token" } else { "a token twice" };
            let message = format!("`trainable_token_indices` has {what} for `{name}`");
            fault("out-of-range", "trainable_token_indices", message, "name each token once");
        }
    }
}

/// The largest rank that is taken: no layer in use is that small, and a typing slip is that large.
pub(crate) const MAX_RANK: usize = 16_384;

fn check_names(config: &AdapterConfig, fault: &mut impl FnMut(&'static str, &str, String, &str)) {
    let list = |names: &Option<ModuleNames>| match names {
        Some(ModuleNames::List(names)) => names.clone(),
        _ => Vec::new(),
    };
    let targets = list(&config.target_modules.clone().map(Into::into));
    let excluded = list(&config.exclude_modules);
    let named = [
        ("target_modules", &targets),
        ("exclude_modules", &excluded),
        ("modules_to_save", &config.modules_to_save),
    ];
    for (key, names) in named {
        if names.iter().any(String::is_empty) {
            fault("out-of-range", key, format!("`{key}` has an empty name"), "take it out");
        }
    }
    let mut pattern = |key: &'static str, compiled: crate::Result<Pattern>| {
        if let Err(error) = compiled {
            fault("bad-pattern", key, error.to_string(), "it is matched against a module's path");
        }
    };
    if let Some(TargetModules::Regex(regex)) = &config.target_modules {
        pattern("target_modules", Pattern::full("target_modules", regex));
    }
    if let Some(ModuleNames::Regex(regex)) = &config.exclude_modules {
        pattern("exclude_modules", Pattern::full("exclude_modules", regex));
    }
    for (name, _) in &config.rank_pattern {
        pattern("rank_pattern", Pattern::suffix("rank_pattern", name));
    }
    for (name, _) in &config.alpha_pattern {
        pattern("alpha_pattern", Pattern::suffix("alpha_pattern", name));
    }
    for name in &config.modules_to_save {
        pattern("modules_to_save", Pattern::full("modules_to_save", name));
    }
    for name in &config.layers_pattern {
        pattern("layers_pattern", Pattern::full("layers_pattern", name));
    }
}
