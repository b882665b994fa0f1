//! What an adapter's configuration means for the modules of one model, before anything is touched.

use crate::targets::{
    LayerIndex, Matcher, Pattern, Role, TargetModules, default_targets, is_output_head, is_router,
    names_module,
};
use crate::{Bias, Error, LoraConfig, ModuleNames, PREFIX, Result};
use std::collections::BTreeSet;
use taper_diagnostics::{did_you_mean, list_names};
use taper_nn::{ModuleMut, ParameterKind, VisitModules};

/// A module of the model, as far as planning cares.
#[derive(Debug, Clone)]
pub(crate) struct ModuleInfo {
    pub(crate) path: String,
    pub(crate) kind: ModuleKind,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum ModuleKind {
    Linear { n_in: usize, n_out: usize, bias: bool, tied: bool, occupied: bool },
    Embedding { rows: usize, width: usize },
    RmsNorm { width: usize },
}

/// The modules of a model in the order of its forward pass.
pub(crate) fn inventory(model: &mut dyn VisitModules) -> Result<Vec<ModuleInfo>> {
    let mut modules = Vec::new();
    model
        .visit_modules(&mut |module| {
            let kind = match &module {
                ModuleMut::Linear(m) => ModuleKind::Linear {
                    n_in: m.in_features(),
                    n_out: m.out_features(),
                    bias: m.bias().is_some(),
                    tied: m.is_tied(),
                    occupied: m.adapter().is_some(),
                },
                ModuleMut::Embedding(m) => {
                    let (rows, width) = m.weight().dims();
                    ModuleKind::Embedding { rows, width }
                }
                ModuleMut::RmsNorm(m) => ModuleKind::RmsNorm { width: m.weight().elem_count() },
            };
            modules.push(ModuleInfo { path: module.path().to_owned(), kind });
            Ok(())
        })
        .map_err(crate::error::doing("look at the model's modules"))?;
    Ok(modules)
}

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// Somebody typed it for this model: all that it names must exist.
    User,
    /// It came with an adapter: what is missing is found by its tensors.
    File,
}

/// One tensor of the adapter's file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: ParameterKind,
}

/// What happens to one module.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) path: String,
    pub(crate) action: Action,
    /// The tensors, in the order of [`Action`]: for an adapter A, B and perhaps the bias.
    pub(crate) slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Action {
    Adapt { rank: usize, alpha: f64, scale: f64 },
    TrainBias,
    TrainAll,
}

/// The configuration with its targets spelled out, and the modules it touches.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) config: LoraConfig,
    pub(crate) modules: Vec<Planned>,
}

impl Plan {
    /// Every tensor of the adapter, in the order of the forward pass.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.modules.iter().flat_map(|m| &m.slots)
    }
}

/// Decide what `config` does to `modules`.
pub(crate) fn plan(
    config: &LoraConfig,
    modules: &[ModuleInfo],
    model_type: Option<&str>,
    author: Author,
) -> Result<Plan> {
    let targets = resolve_targets(config, modules, model_type)?;
    let matcher = Matcher::new(config, &targets)?;
    let mut planned = Vec::new();
    let mut taken_away = 0;
    for module in modules {
        let role = matcher.role(&module.path)?;
        taken_away += usize::from(matches!(role, Role::Excluded | Role::OtherLayer));
        let saved = is_saved(config, &module.path);
        if role == Role::Target && saved {
            return Err(conflict(
                "modules_to_save",
                format!("`{}` is both a target and trained in full", module.path),
                "name it in one of `target_modules` and `modules_to_save`",
            ));
        }
        planned.extend(match (role, saved) {
            (Role::Target, _) => Some(adapt(config, module)?),
            (_, true) => Some(train_all(module, modules)?),
            _ => train_bias(config, module),
        });
    }
    if !planned.iter().any(|p| matches!(p.action, Action::Adapt { .. })) {
        let excluded = taken_away;
        return Err(no_targets(config, &targets, modules, excluded, author));
    }
    refuse_containers(&matcher, modules, author)?;
    let config = LoraConfig { target_modules: Some(targets), ..config.clone() };
    let plan = Plan { config, modules: planned };
    if author == Author::User {
        everything_named_exists(&plan, &plan.config, modules)?;
    }
    Ok(plan)
}

/// `target_modules` without its shorthands, as PEFT saves it.
fn resolve_targets(
    config: &LoraConfig,
    modules: &[ModuleInfo],
    model_type: Option<&str>,
) -> Result<TargetModules> {
    match &config.target_modules {
        None => model_type
            .and_then(default_targets)
            .ok_or_else(|| Error::NoDefaultTargets { model_type: model_type.map(str::to_owned) }),
        Some(TargetModules::AllLinear) => {
            let index = LayerIndex::new(&config.layers_pattern)?;
            let mut names = Vec::new();
            for path in linear_paths(modules).filter(|path| !is_output_head(path) && !is_router(path)) {
                // Whole paths are not asked for their layer later on, so they are here.
                let inside = match &config.layers_to_transform {
                    Some(indices) if !indices.is_empty() => {
                        index.of(path)?.is_some_and(|i| indices.contains(&i))
                    }
                    _ => true,
                };
                if inside {
                    names.push(path.to_owned());
                }
            }
            names.sort();
            Ok(TargetModules::List(names))
        }
        Some(targets) => Ok(targets.clone()),
    }
}

fn linear_paths(modules: &[ModuleInfo]) -> impl Iterator<Item = &str> {
    modules
        .iter()
        .filter(|m| matches!(m.kind, ModuleKind::Linear { tied: false, .. }))
        .map(|m| m.path.as_str())
}

/// `modules_to_save` matches the end of a path, without regard to dots, or that of a module around it.
fn is_saved(config: &LoraConfig, path: &str) -> bool {
    config.modules_to_save.iter().any(|entry| with_ancestors(path).any(|p| p.ends_with(entry.as_str())))
}

/// `a`, `a.b`, `a.b.c` for `a.b.c`.
fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(i, _)| &path[..i]).chain(std::iter::once(path))
}

fn slot(name: String, shape: &[usize], kind: ParameterKind) -> Slot {
    Slot { name, shape: shape.to_vec(), kind }
}

fn adapt(config: &LoraConfig, module: &ModuleInfo) -> Result<Planned> {
    let path = &module.path;
    let (n_in, n_out, bias) = match module.kind {
        ModuleKind::Linear { occupied: true, .. } => return Err(Error::Occupied { path: path.clone() }),
        ModuleKind::Linear { tied: true, .. } => {
            return Err(conflict(
                "target_modules",
                format!(
                    "`{path}` shares its weight with the embedding, and an adapter on one of the two is lost on merging"
                ),
                "leave the head out of `target_modules`, or use a base whose head is its own (`tie_word_embeddings` false)",
            ));
        }
        ModuleKind::Linear { n_in, n_out, bias, .. } => (n_in, n_out, bias),
        ModuleKind::Embedding { .. } => return Err(not_linear(path, "an embedding")),
        ModuleKind::RmsNorm { .. } => return Err(not_linear(path, "a norm")),
    };
    let rank = config.rank_of(path)?;
    let mut slots = vec![
        slot(format!("{PREFIX}{path}.lora_A.weight"), &[rank, n_in], ParameterKind::LoraA),
        slot(format!("{PREFIX}{path}.lora_B.weight"), &[n_out, rank], ParameterKind::LoraB),
    ];
    if bias && config.bias != Bias::None {
        slots.push(slot(format!("{PREFIX}{path}.base_layer.bias"), &[n_out], ParameterKind::Bias));
    }
    let action = Action::Adapt { rank, alpha: config.alpha_of(path)?, scale: config.scale_of(path)? };
    Ok(Planned { path: path.clone(), action, slots })
}

fn train_bias(config: &LoraConfig, module: &ModuleInfo) -> Option<Planned> {
    let ModuleKind::Linear { n_out, bias: true, .. } = module.kind else { return None };
    (config.bias == Bias::All).then(|| Planned {
        path: module.path.clone(),
        action: Action::TrainBias,
        slots: vec![slot(format!("{PREFIX}{}.bias", module.path), &[n_out], ParameterKind::Bias)],
    })
}

fn train_all(module: &ModuleInfo, modules: &[ModuleInfo]) -> Result<Planned> {
    let path = &module.path;
    let tied_head = |m: &ModuleInfo| matches!(m.kind, ModuleKind::Linear { tied: true, .. });
    let name = format!("{PREFIX}{path}.weight");
    let slots = match module.kind {
        ModuleKind::Linear { n_in, n_out, bias, tied: false, .. } => {
            let mut slots = vec![slot(name, &[n_out, n_in], ParameterKind::Weight)];
            slots.extend(bias.then(|| slot(format!("{PREFIX}{path}.bias"), &[n_out], ParameterKind::Bias)));
            slots
        }
        ModuleKind::Embedding { rows, width } if !modules.iter().any(tied_head) => {
            vec![slot(name, &[rows, width], ParameterKind::Embedding)]
        }
        ModuleKind::RmsNorm { width } => vec![slot(name, &[width], ParameterKind::Norm)],
        ModuleKind::Linear { .. } | ModuleKind::Embedding { .. } => {
            return Err(conflict(
                "modules_to_save",
                format!(
                    "`{path}` is one of the two uses of a weight that embedding and head share; PEFT would train them apart"
                ),
                "use a base whose head is its own (`tie_word_embeddings` false), or train adapters alone",
            ));
        }
    };
    Ok(Planned { path: path.clone(), action: Action::TrainAll, slots })
}

fn conflict(key: &'static str, what: String, remedy: &'static str) -> Error {
    Error::Conflict { key, what, remedy }
}

fn not_linear(path: &str, what: &'static str) -> Error {
    Error::NotLinear { path: path.to_owned(), what }
}

/// A target must not match a module around linear layers: PEFT refuses it, and so would refuse our file.
///
/// PEFT sees modules without weights too (the activation in `mlp`, the rotary embedding), which a loose expression catches.
fn refuse_containers(matcher: &Matcher, modules: &[ModuleInfo], author: Author) -> Result<()> {
    let mut containers: BTreeSet<String> = BTreeSet::new();
    for path in modules.iter().map(|m| m.path.as_str()) {
        containers.extend(with_ancestors(path).filter(|p| *p != path).map(str::to_owned));
        if author == Author::User {
            containers.extend(path.strip_suffix("mlp.down_proj").map(|layer| format!("{layer}mlp.act_fn")));
            containers.extend(path.strip_suffix("embed_tokens").map(|stem| format!("{stem}rotary_emb")));
        }
    }
    for path in containers {
        if matcher.role(&path)? == Role::Target {
            return Err(not_linear(&path, "no linear layer"));
        }
    }
    Ok(())
}

fn no_targets(
    config: &LoraConfig,
    targets: &TargetModules,
    modules: &[ModuleInfo],
    excluded: usize,
    author: Author,
) -> Error {
    if author == Author::User && excluded == 0 {
        let all: Vec<&str> = modules.iter().map(|m| m.path.as_str()).collect();
        if let Err(error) = targets_exist(targets, modules).and_then(|()| layers_exist(config, &[], &all)) {
            return error;
        }
    }
    let given = config.target_modules.as_ref().unwrap_or(targets).to_string();
    Error::NoTargets { given, excluded, available: short_names(linear_paths(modules)) }
}

/// Last segments, each once, in the order of the model: what a person would type.
fn short_names<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for path in paths {
        let name = path.rsplit('.').next().unwrap_or(path);
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Invariant 7: nothing that was typed is without effect.
fn everything_named_exists(plan: &Plan, config: &LoraConfig, modules: &[ModuleInfo]) -> Result<()> {
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

const NO_MODULE: &str = "no module of the model";
const NOT_ADAPTED: &str = "no adapted module";

fn nothing(
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

fn targets_exist(targets: &TargetModules, modules: &[ModuleInfo]) -> Result<()> {
    let linear: Vec<&str> = linear_paths(modules).collect();
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

fn layers_exist(config: &LoraConfig, adapted: &[&str], all: &[&str]) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use taper_diagnostics::Diagnose;

    fn linear(path: &str) -> ModuleInfo {
        let kind = ModuleKind::Linear { n_in: 6, n_out: 4, bias: false, tied: false, occupied: false };
        ModuleInfo { path: path.into(), kind }
    }

    fn model() -> Vec<ModuleInfo> {
        let mut modules = vec![ModuleInfo {
            path: "model.embed_tokens".into(),
            kind: ModuleKind::Embedding { rows: 9, width: 6 },
        }];
        for layer in 0..2 {
            let norm = format!("model.layers.{layer}.input_layernorm");
            modules.push(ModuleInfo { path: norm, kind: ModuleKind::RmsNorm { width: 6 } });
            for name in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"] {
                modules.push(linear(&format!("model.layers.{layer}.{name}")));
            }
        }
        modules.push(ModuleInfo { path: "model.norm".into(), kind: ModuleKind::RmsNorm { width: 6 } });
        modules.push(linear("lm_head"));
        modules
    }

    fn config(json: &str) -> LoraConfig {
        let section: crate::AdapterSection = serde_json::from_str(json).unwrap();
        section.to_config("base")
    }

    fn planned(json: &str) -> Result<Plan> {
        plan(&config(json), &model(), Some("llama"), Author::User)
    }

    fn hint(json: &str) -> String {
        let error = planned(json).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    }

    #[test]
    fn all_linear_leaves_the_head_out_and_is_spelled_out() {
        let plan = planned("{}").unwrap();
        assert_eq!(plan.modules.len(), 6);
        let Some(TargetModules::List(names)) = &plan.config.target_modules else { panic!("no list") };
        assert_eq!(names[0], "model.layers.0.mlp.down_proj");
        assert!(!names.contains(&"lm_head".to_owned()));
        let one = planned(r#"{"layers_to_transform": [1]}"#).unwrap();
        assert!(one.modules.iter().all(|m| m.path.contains("layers.1.")) && one.modules.len() == 3);
    }

    #[test]
    fn null_targets_are_pefts_default_for_the_model_type() {
        let config = LoraConfig::default();
        let plan_of = |model_type| plan(&config, &model(), model_type, Author::User);
        assert_eq!(plan_of(Some("llama")).unwrap().modules.len(), 4);
        assert!(matches!(plan_of(Some("mamba")), Err(Error::NoDefaultTargets { .. })));
        assert!(matches!(plan_of(None), Err(Error::NoDefaultTargets { .. })));
    }

    #[test]
    fn a_name_that_matches_nothing_is_an_error_with_the_nearest_name() {
        assert!(hint(r#"{"target_modules": ["q_prpj", "v_proj"]}"#).contains("did you mean `q_proj`?"));
        assert!(hint(r#"{"target_modules": ["zzz"]}"#).contains("there are `q_proj`, `v_proj`, `down_proj`"));
        assert!(hint(r#"{"target_modules": "q_proj"}"#).contains("`[\"q_proj\"]`"));
        assert!(hint(r#"{"exclude_modules": ["qproj"]}"#).contains("did you mean `q_proj`?"));
        assert!(hint(r#"{"exclude_modules": "nothing.*"}"#).contains("`exclude_modules` names `nothing.*`"));
        assert!(hint(r#"{"rank_pattern": {"k_proj": 4}}"#).contains("no adapted module"));
        assert!(
            hint(r#"{"target_modules": ["q_proj"], "alpha_pattern": {"v_proj": 4}}"#)
                .contains("no adapted module")
        );
        assert!(hint(r#"{"layers_to_transform": [0, 2]}"#).contains("the layers are 0 to 1"));
        assert!(hint(r#"{"modules_to_save": ["lm_heads"]}"#).contains("did you mean `lm_head`?"));
        assert!(hint(r#"{"bias": "all"}"#).contains("the base has no biases"));
        assert!(
            hint(r#"{"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}"#)
                .contains("2 modules were taken away")
        );
    }

    #[test]
    fn a_readers_configuration_may_name_what_is_not_there() {
        let config = config(r#"{"target_modules": ["q_prpj", "v_proj"], "modules_to_save": ["score"]}"#);
        assert_eq!(plan(&config, &model(), None, Author::File).unwrap().modules.len(), 2);
    }

    #[test]
    fn what_is_no_linear_layer_is_refused_as_in_peft() {
        for (targets, path) in [
            (r#"["embed_tokens"]"#, "model.embed_tokens"),
            (r#"["input_layernorm"]"#, "model.layers.0.input_layernorm"),
            (r#"["q_proj", "mlp"]"#, "model.layers.0.mlp"),
            (r#"".*layers.*\\.mlp\\..*""#, "model.layers.0.mlp.act_fn"),
        ] {
            let error = planned(&format!("{{\"target_modules\": {targets}}}")).unwrap_err();
            assert!(
                matches!(&error, Error::NotLinear { path: given, .. } if given == path),
                "{targets}: {error}"
            );
        }
    }

    #[test]
    fn modules_to_save_match_the_end_of_a_path_or_of_a_module_around_it() {
        let saved = |entry: &str| -> Vec<String> {
            let plan =
                planned(&format!(r#"{{"target_modules": ["q_proj"], "modules_to_save": ["{entry}"]}}"#))
                    .unwrap();
            plan.modules.into_iter().filter(|m| m.action == Action::TrainAll).map(|m| m.path).collect()
        };
        assert_eq!(saved("lm_head"), ["lm_head"]);
        assert_eq!(
            saved("norm"),
            ["model.layers.0.input_layernorm", "model.layers.1.input_layernorm", "model.norm"]
        );
        assert_eq!(saved("layers.1.mlp"), ["model.layers.1.mlp.down_proj"]);
        let both = planned(r#"{"target_modules": ["q_proj"], "modules_to_save": ["_proj"]}"#).unwrap_err();
        assert!(both.to_string().contains("both a target and trained in full"), "{both}");
    }

    #[test]
    fn a_shared_head_is_refused_as_target_and_as_trained_module() {
        let mut modules = model();
        let head = modules.last_mut().unwrap();
        head.kind = ModuleKind::Linear { n_in: 6, n_out: 9, bias: false, tied: true, occupied: false };
        for json in [
            r#"{"target_modules": ["q_proj", "lm_head"]}"#,
            r#"{"modules_to_save": ["lm_head"]}"#,
            r#"{"modules_to_save": ["embed_tokens"]}"#,
        ] {
            let error = plan(&config(json), &modules, None, Author::User).unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{json}: {error}");
        }
        assert_eq!(plan(&config("{}"), &modules, None, Author::User).unwrap().modules.len(), 6);
    }

    #[test]
    fn the_number_of_trained_values_is_r_times_in_plus_out_for_each_target_set() {
        let count = |json: &str| -> usize {
            planned(json).unwrap().slots().map(|s| s.shape.iter().product::<usize>()).sum()
        };
        assert_eq!(count(r#"{"r": 3}"#), 6 * 3 * (6 + 4));
        assert_eq!(count(r#"{"r": 3, "target_modules": ["q_proj"]}"#), 2 * 3 * 10);
        assert_eq!(count(r#"{"r": 3, "rank_pattern": {"layers.0.self_attn.q_proj": 1}}"#), 5 * 30 + 10);
        assert_eq!(
            count(r#"{"r": 3, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}"#),
            60 + 24
        );
    }
}
