//! Invariant 7: what a configuration names exists in the model, and what does not is an error with the nearest name.

use crate::methods::{Ia3, Method};
use crate::modules::{ModuleKind, ModuleShape};
use crate::plan::{Action, Plan, with_ancestors};
use crate::targets::{LayerIndex, Pattern, TargetModules, names_module};
use crate::{AdapterConfig, Bias, Error, ModuleNames, Result};
use std::collections::BTreeSet;
use taper_diagnostics::{did_you_mean, list_names};
use taper_nn::ParameterKind;

/// Last segments, each once, in the order of the model: what a person would type.
pub(crate) fn short_names<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for path in paths {
        let name = path.rsplit('.').next().unwrap_or(path);
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Invariant 7 for what IA3 scales at the input: a name is that of a module, adapted or not.
pub(crate) fn feedforward_exists(config: &AdapterConfig, modules: &[ModuleShape]) -> Result<()> {
    let all: Vec<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    match &config.method {
        Method::Ia3(Ia3 { feedforward_modules: Some(ModuleNames::List(names)), .. }) => {
            names_exist("feedforward_modules", names, &all)
        }
        Method::Ia3(Ia3 { feedforward_modules: Some(ModuleNames::Regex(given)), .. }) => {
            pattern_matches("feedforward_modules", given, false, &all, NO_MODULE)
        }
        _ => Ok(()),
    }
}

/// Invariant 7: nothing that was typed is without effect.
pub(crate) fn everything_named_exists(
    plan: &Plan,
    config: &AdapterConfig,
    modules: &[ModuleShape],
) -> Result<()> {
    if let Some(targets) = &config.target_modules {
        targets_exist(targets, modules)?;
    }
    let all: Vec<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let adapted = plan.modules.iter().filter(|p| matches!(p.action, Action::Adapt { .. }));
    let adapted: Vec<&str> = adapted.map(|p| p.path.as_str()).collect();
    match &config.exclude_modules {
        Some(ModuleNames::List(names)) => names_exist("exclude_modules", names, &all)?,
        Some(ModuleNames::Regex(given)) => pattern_matches("exclude_modules", given, false, &all, NO_MODULE)?,
        None => {}
    }
    for (given, _) in &config.rank_pattern {
        pattern_matches("rank_pattern", given, true, &adapted, NOT_ADAPTED)?;
    }
    for (given, _) in &config.alpha_pattern {
        pattern_matches("alpha_pattern", given, true, &adapted, NOT_ADAPTED)?;
    }
    if config.ensure_weight_tying && !plan.modules.iter().any(|p| matches!(p.action, Action::Follow(_))) {
        let remedy = "leave it out, or train the table that embedding and head of a tied base share: `modules_to_save = [\"embed_tokens\"]`";
        return Err(nothing(
            "ensure_weight_tying",
            "true",
            "no shared table that is trained",
            &[],
            Some(remedy.into()),
        ));
    }
    layers_exist(config, &adapted, &all)?;
    for entry in &config.modules_to_save {
        if !all.iter().any(|path| with_ancestors(path).any(|p| p.ends_with(entry.as_str()))) {
            return Err(nothing("modules_to_save", entry, NO_MODULE, &all, None));
        }
    }
    if config.bias != Bias::None && !plan.slots().any(|s| s.kind == ParameterKind::Bias) {
        let remedy = Some("set `bias` to \"none\": the base has no biases there".to_owned());
        return Err(nothing("bias", config.bias.as_str(), "no bias of the model", &[], remedy));
    }
    Ok(())
}

pub(crate) const NO_MODULE: &str = "no module of the model";
const NOT_ADAPTED: &str = "no adapted module";

pub(crate) fn nothing(
    key: &'static str,
    given: &str,
    among: &'static str,
    paths: &[&str],
    remedy: Option<String>,
) -> Error {
    let available = short_names(paths.iter().copied());
    // A path is compared with paths, a bare name with last segments.
    let nearest = if given.contains('.') {
        did_you_mean(given, paths.iter().copied())
    } else {
        did_you_mean(given, &available)
    };
    let remedy = remedy.unwrap_or_else(|| match nearest {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", list_names(&available, 16)),
    });
    Error::MatchesNothing { key, given: given.to_owned(), among, remedy }
}

pub(crate) fn targets_exist(targets: &TargetModules, modules: &[ModuleShape]) -> Result<()> {
    let can_be = |m: &&ModuleShape| !matches!(m.kind, ModuleKind::RmsNorm { .. });
    let linear: Vec<&str> = modules.iter().filter(can_be).map(|m| m.path.as_str()).collect();
    match targets {
        TargetModules::AllLinear => Ok(()),
        TargetModules::List(names) => names_exist("target_modules", names, &linear),
        TargetModules::Regex(given) => {
            // `"q_proj"` where `["q_proj"]` was meant: a string must match the whole path.
            let as_list = linear.iter().any(|path| names_module(given, path));
            let remedy = as_list.then(|| {
                format!("a string is an expression for the whole path; a list names last segments: `[\"{given}\"]`")
            });
            if Pattern::full("target_modules", given).and_then(|p| any(&p, &linear))? {
                return Ok(());
            }
            Err(nothing("target_modules", given, "no linear layer of the model", &linear, remedy))
        }
    }
}

fn any(pattern: &Pattern, paths: &[&str]) -> Result<bool> {
    for path in paths {
        if pattern.matches(path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn names_exist(key: &'static str, names: &[String], paths: &[&str]) -> Result<()> {
    for name in names {
        if !paths.iter().any(|path| with_ancestors(path).any(|p| names_module(name, p))) {
            return Err(nothing(key, name, NO_MODULE, paths, None));
        }
    }
    Ok(())
}

fn pattern_matches(
    key: &'static str,
    given: &str,
    suffix: bool,
    paths: &[&str],
    among: &'static str,
) -> Result<()> {
    let pattern = if suffix { Pattern::suffix(key, given)? } else { Pattern::full(key, given)? };
    if any(&pattern, paths)? { Ok(()) } else { Err(nothing(key, given, among, paths, None)) }
}

pub(crate) fn layers_exist(config: &AdapterConfig, adapted: &[&str], all: &[&str]) -> Result<()> {
    let index = LayerIndex::new(&config.layers_pattern)?;
    let layers = |paths: &[&str]| -> Result<BTreeSet<usize>> {
        let mut layers = BTreeSet::new();
        for path in paths {
            layers.extend(index.of(path)?);
        }
        Ok(layers)
    };
    let (with_adapter, existing) = (layers(adapted)?, layers(all)?);
    for wanted in config.layers_to_transform.iter().flatten() {
        if !with_adapter.contains(wanted) {
            let remedy = existing.last().map(|last| format!("the layers are 0 to {last}"));
            return Err(nothing("layers_to_transform", &wanted.to_string(), NOT_ADAPTED, &[], remedy));
        }
    }
    Ok(())
}
