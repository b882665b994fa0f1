//! What an adapter's configuration means for the modules of one model, before anything is touched.

use crate::methods::{Method, slot};
use crate::modules::{ModuleKind, ModuleShape, TrainedParameter};
use crate::named::{
    NO_MODULE, everything_named_exists, feedforward_exists, layers_exist, nothing, short_names, targets_exist,
};
use crate::sizes::Sizes;
use crate::targets::{
    LayerIndex, Matcher, Role, TargetModules, default_targets, is_output_head, is_router, names_module,
};
use crate::{AdapterConfig, Bias, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use taper_nn::ParameterKind;

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// Somebody typed it for this model: all that it names must exist.
    User,
    /// It came with an adapter: what is missing is found by its tensors.
    File,
}

/// What happens to one module.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) path: String,
    pub(crate) action: Action,
    /// The tensors, in the order of [`Action`]: for an adapter A, B and perhaps the bias.
    pub(crate) slots: Vec<TrainedParameter>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// As the method does it.
    Adapt {
        rank: usize,
        alpha: f64,
        scale: f64,
    },
    TrainBias,
    TrainAll,
    /// Rows of their own for these tokens.
    TrainTokens(Vec<u32>),
    /// A head that shares the embedding's table and takes part in what is trained of it: the rows of these tokens, or all of it.
    Follow(Option<Vec<u32>>),
    /// A head that shared the table and does not any more: the embedding alone is trained.
    Part,
}

/// The configuration with its targets spelled out, and the modules it touches.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) config: AdapterConfig,
    pub(crate) modules: Vec<Planned>,
    /// Tensors that all adapted layers share, not trained.
    pub(crate) shared: Vec<TrainedParameter>,
    /// Shapes of the tables of adapted embeddings and heads, by path.
    tables: BTreeMap<String, [usize; 2]>,
}

impl Plan {
    /// Every tensor of the adapter: the shared ones, then in the order of the forward pass.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &TrainedParameter> {
        self.shared.iter().chain(self.modules.iter().flat_map(|m| &m.slots))
    }

    /// Tensors that PEFT writes along and that a file may lack: the tables of adapted embeddings and heads, and a head that is the embedding.
    pub(crate) fn optional(&self) -> Vec<TrainedParameter> {
        let table =
            |p: &Planned, name: &str, shape: &[usize]| slot(&p.path, name, shape, ParameterKind::Weight);
        let of_module = |p: &Planned| match &p.action {
            Action::Adapt { .. } => {
                self.tables.get(&p.path).map(|shape| table(p, "base_layer.weight", shape))
            }
            Action::Follow(None) => {
                let embedding = self.slots().find(|slot| slot.kind == ParameterKind::Embedding)?;
                Some(table(p, "weight", &embedding.shape))
            }
            _ => None,
        };
        self.modules.iter().filter_map(of_module).collect()
    }
}

/// Decide what `config` does to `modules`.
pub(crate) fn plan(
    config: &AdapterConfig,
    modules: &[ModuleShape],
    model_type: Option<&str>,
    author: Author,
) -> Result<Plan> {
    if author == Author::User {
        feedforward_exists(config, modules)?;
    }
    let targets = resolve_targets(config, modules, model_type)?;
    let spelled_out;
    let config = match (&config.method, &config.target_modules) {
        (Method::Ia3(ia3), Some(TargetModules::AllLinear)) => {
            spelled_out = AdapterConfig { method: Method::Ia3(ia3.among(&targets)?), ..config.clone() };
            &spelled_out
        }
        _ => config,
    };
    let matcher = Matcher::new(config, &targets)?;
    let sizes = Sizes::new(config)?;
    let method = config.method.as_dyn();
    let tokens = tokens_by_path(config, modules)?;
    let tying = trained_as_one(config, modules);
    let mut planned = Vec::new();
    let mut adapted = Vec::new();
    let mut taken_away = 0;
    for module in modules {
        let role = matcher.role(&module.path)?;
        taken_away += usize::from(matches!(role, Role::Excluded | Role::OtherLayer));
        // Trained as one, head and embedding are the embedding.
        let saved = match &tying {
            Some(table) => module.path == *table || (!is_tied(module) && is_saved(config, &module.path)),
            None => is_saved(config, &module.path),
        };
        let ids = tokens.get(&module.path);
        let (is_target, path) = (role == Role::Target, &module.path);
        if is_target && saved {
            return Err(conflict(
                "modules_to_save",
                format!("`{path}` is both a target and trained in full"),
                "name it in one of `target_modules` and `modules_to_save`",
            ));
        }
        if ids.is_some() && (is_target || saved) {
            return Err(conflict(
                "trainable_token_indices",
                format!("`{path}` is adapted or trained in full, and so are the rows of its tokens"),
                "leave the tokens out, or name the table in neither `target_modules` nor `modules_to_save`",
            ));
        }
        if role == Role::Target {
            adapted.push(module);
        }
        planned.extend(match (role, saved, ids) {
            (Role::Target, ..) => Some(method.adapt(config, &sizes, module)?),
            (_, true, _) => Some(train_all(module)),
            (_, _, Some(ids)) => Some(train_tokens(module, ids)),
            _ if is_tied(module) => {
                let table = modules.iter().find(|m| matches!(m.kind, ModuleKind::Embedding { .. }));
                let table_is_target = adapted.iter().any(|m| table.is_some_and(|t| t.path == m.path));
                let ids = table.and_then(|table| tokens.get(&table.path));
                let is_part = table_is_target || table.is_some_and(|table| is_saved(config, &table.path));
                follow(module, ids, tying.is_some(), is_part).or_else(|| train_bias(config, module))
            }
            _ => train_bias(config, module),
        });
    }
    if adapted.is_empty() {
        return Err(no_targets(config, &targets, modules, taken_away, author));
    }
    refuse_containers(&matcher, modules, author)?;
    let shared = method.shared(config, &adapted);
    let tables = adapted.iter().filter_map(|m| Some((m.path.clone(), table_shape(m)?))).collect();
    let config = AdapterConfig { target_modules: Some(targets), ..config.clone() };
    let plan = Plan { config, modules: planned, shared, tables };
    if author == Author::User {
        everything_named_exists(&plan, &plan.config, modules)?;
    }
    Ok(plan)
}

/// The shape of what PEFT saves beside the adapter of a module.
fn table_shape(module: &ModuleShape) -> Option<[usize; 2]> {
    match module.kind {
        ModuleKind::Embedding { rows, width } => Some([rows, width]),
        ModuleKind::Linear { n_in, n_out, .. } if is_output_head(&module.path) => Some([n_out, n_in]),
        _ => None,
    }
}

fn is_tied(module: &ModuleShape) -> bool {
    matches!(module.kind, ModuleKind::Linear { tied: true, .. })
}

/// Tokens with rows of their own, by the path of their embedding.
fn tokens_by_path(config: &AdapterConfig, modules: &[ModuleShape]) -> Result<BTreeMap<String, Vec<u32>>> {
    let mut by_path = BTreeMap::new();
    for (name, ids) in config.trainable_token_indices.iter().flat_map(|t| t.of_modules()) {
        let mut found = false;
        for module in modules.iter().filter(|m| names_module(name, &m.path)) {
            let ModuleKind::Embedding { rows, .. } = module.kind else {
                let what = format!("`{}` is no embedding, and has no rows of tokens", module.path);
                return Err(conflict("trainable_token_indices", what, "name the token embedding"));
            };
            if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
                let what = format!("token {id} is not in the vocabulary of {rows}");
                return Err(conflict(
                    "trainable_token_indices",
                    what,
                    "name token ids that the tokenizer knows",
                ));
            }
            found = true;
            by_path.insert(module.path.clone(), ids.to_vec());
        }
        if !found {
            let all: Vec<&str> = modules.iter().map(|m| m.path.as_str()).collect();
            return Err(nothing("trainable_token_indices", name, NO_MODULE, &all, None));
        }
    }
    Ok(by_path)
}

/// The path of the table that `ensure_weight_tying` trains for embedding and head at once, where they share one.
fn trained_as_one(config: &AdapterConfig, modules: &[ModuleShape]) -> Option<String> {
    let head = modules.iter().find(|m| is_tied(m)).filter(|_| config.ensure_weight_tying)?;
    let table = modules.iter().find(|m| matches!(m.kind, ModuleKind::Embedding { .. }))?;
    let named = is_saved(config, &head.path) || is_saved(config, &table.path);
    named.then(|| table.path.clone())
}

/// What becomes of a head that shares the embedding's table, when something of that is trained.
fn follow(head: &ModuleShape, ids: Option<&Vec<u32>>, as_one: bool, is_part: bool) -> Option<Planned> {
    let action = match ids {
        Some(ids) => Action::Follow(Some(ids.clone())),
        None if as_one => Action::Follow(None),
        None if is_part => Action::Part,
        None => return None,
    };
    Some(Planned { path: head.path.clone(), action, slots: Vec::new() })
}

/// `target_modules` without its shorthands, as PEFT saves it.
fn resolve_targets(
    config: &AdapterConfig,
    modules: &[ModuleShape],
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

fn linear_paths(modules: &[ModuleShape]) -> impl Iterator<Item = &str> {
    modules
        .iter()
        .filter(|m| matches!(m.kind, ModuleKind::Linear { tied: false, .. }))
        .map(|m| m.path.as_str())
}

/// `modules_to_save` matches the end of a path, without regard to dots, or that of a module around it.
fn is_saved(config: &AdapterConfig, path: &str) -> bool {
    config.modules_to_save.iter().any(|entry| with_ancestors(path).any(|p| p.ends_with(entry.as_str())))
}

/// `a`, `a.b`, `a.b.c` for `a.b.c`.
pub(crate) fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(i, _)| &path[..i]).chain(std::iter::once(path))
}

fn train_bias(config: &AdapterConfig, module: &ModuleShape) -> Option<Planned> {
    let ModuleKind::Linear { n_out, bias: true, .. } = module.kind else { return None };
    (config.bias == Bias::All).then(|| Planned {
        path: module.path.clone(),
        action: Action::TrainBias,
        slots: vec![slot(&module.path, "bias", &[n_out], ParameterKind::Bias)],
    })
}

fn train_all(module: &ModuleShape) -> Planned {
    let path = &module.path;
    let weight = |shape: &[usize], kind| slot(path, "weight", shape, kind);
    let slots = match module.kind {
        ModuleKind::Linear { n_in, n_out, bias, .. } => {
            let mut slots = vec![weight(&[n_out, n_in], ParameterKind::Weight)];
            slots.extend(bias.then(|| slot(path, "bias", &[n_out], ParameterKind::Bias)));
            slots
        }
        ModuleKind::Embedding { rows, width } => vec![weight(&[rows, width], ParameterKind::Embedding)],
        ModuleKind::RmsNorm { width } => vec![weight(&[width], ParameterKind::Norm)],
    };
    Planned { path: path.clone(), action: Action::TrainAll, slots }
}

fn train_tokens(module: &ModuleShape, ids: &[u32]) -> Planned {
    let width = if let ModuleKind::Embedding { width, .. } = module.kind { width } else { 0 };
    let name = "token_adapter.trainable_tokens_delta";
    let slots = vec![slot(&module.path, name, &[ids.len(), width], ParameterKind::Embedding)];
    Planned { path: module.path.clone(), action: Action::TrainTokens(ids.to_vec()), slots }
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
fn refuse_containers(matcher: &Matcher, modules: &[ModuleShape], author: Author) -> Result<()> {
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
    config: &AdapterConfig,
    targets: &TargetModules,
    modules: &[ModuleShape],
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

#[cfg(test)]
mod tests {
    use super::*;
    use taper_diagnostics::Diagnose;

    fn linear(path: &str) -> ModuleShape {
        let kind = ModuleKind::Linear { n_in: 6, n_out: 4, bias: false, tied: false, occupied: false };
        ModuleShape { path: path.into(), kind }
    }

    fn model() -> Vec<ModuleShape> {
        let mut modules = vec![ModuleShape {
            path: "model.embed_tokens".into(),
            kind: ModuleKind::Embedding { rows: 9, width: 6 },
        }];
        for layer in 0..2 {
            let norm = format!("model.layers.{layer}.input_layernorm");
            modules.push(ModuleShape { path: norm, kind: ModuleKind::RmsNorm { width: 6 } });
            for name in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"] {
                modules.push(linear(&format!("model.layers.{layer}.{name}")));
            }
        }
        modules.push(ModuleShape { path: "model.norm".into(), kind: ModuleKind::RmsNorm { width: 6 } });
        modules.push(linear("lm_head"));
        modules
    }

    fn config(json: &str) -> AdapterConfig {
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
        let config = AdapterConfig::default();
        let plan_of = |model_type| plan(&config, &model(), model_type, Author::User);
        assert_eq!(plan_of(Some("llama")).unwrap().modules.len(), 4);
        assert!(matches!(plan_of(Some("mamba")), Err(Error::NoDefaultTargets { .. })));
        assert!(matches!(plan_of(None), Err(Error::NoDefaultTargets { .. })));
    }

    #[test]
    fn a_name_that_matches_nothing_is_an_error_with_the_nearest_name() {
        assert!(hint(r#"{"target_modules": ["q_prpj", "v_proj"]}"#).contains("did you mean `q_proj`?"));
        assert!(hint(r#"{"target_modules": ["zzz"]}"#).contains("`q_proj`, `v_proj`, `down_proj`"));
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
    fn a_shared_head_parts_from_the_table_follows_it_or_is_left_alone() {
        let mut modules = model();
        let head = modules.last_mut().unwrap();
        head.kind = ModuleKind::Linear { n_in: 6, n_out: 9, bias: false, tied: true, occupied: false };
        let of_head = |json: &str| -> Option<Action> {
            let plan = plan(&config(json), &modules, None, Author::User).unwrap();
            plan.modules.into_iter().find(|m| m.path == "lm_head").map(|m| m.action)
        };
        assert_eq!(of_head("{}"), None);
        assert!(matches!(of_head(r#"{"target_modules": ["lm_head"]}"#), Some(Action::Adapt { .. })));
        assert_eq!(of_head(r#"{"target_modules": ["embed_tokens"]}"#), Some(Action::Part));
        assert_eq!(of_head(r#"{"modules_to_save": ["lm_head"]}"#), Some(Action::TrainAll));
        assert_eq!(of_head(r#"{"modules_to_save": ["embed_tokens"]}"#), Some(Action::Part));
        for saved in ["embed_tokens", "lm_head"] {
            let json = format!(r#"{{"modules_to_save": ["{saved}"], "ensure_weight_tying": true}}"#);
            assert_eq!(of_head(&json), Some(Action::Follow(None)), "{saved}");
        }
        let tokens = Some(Action::Follow(Some(vec![2, 5])));
        assert_eq!(of_head(r#"{"trainable_token_indices": [2, 5]}"#), tokens);
        let both = r#"{"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": true}"#;
        assert!(matches!(plan(&config(both), &modules, None, Author::User), Err(Error::Conflict { .. })));
    }

    #[test]
    fn tokens_are_in_the_vocabulary_and_their_table_is_not_trained_otherwise() {
        let told = |json: &str| planned(json).unwrap_err().to_string();
        assert!(
            told(r#"{"trainable_token_indices": [9]}"#).contains("token 9 is not in the vocabulary of 9")
        );
        let both = r#"{"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]}"#;
        assert!(told(both).contains("so are the rows of its tokens"));
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
