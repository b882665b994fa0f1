//! The keys of PEFT's configurations: of LoRA's 41, which are honoured, and which are refused and why; what all methods share.
//!
//! PEFT drops keys that it does not know with a warning. For a reader that is the worst choice: DoRA weights served as plain
//! LoRA are another model. Here an unknown key is an error unless it says nothing (null, false, empty).

use crate::config::{AdapterConfig, Bias, InitLoraWeights, TokenIndices};
use crate::methods::{AdapterMethod, Method};
use crate::targets::{ModuleNames, TargetModules};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use taper_diagnostics::{Location, Problem, Problems, did_you_mean};

/// Keys whose value is used.
const HONOURED: [&str; 24] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// What a refused key may hold, as JSON.
#[derive(Clone, Copy)]
enum Inert {
    Null,
    False,
    EmptyMap,
    Int(i64),
    Text(&'static str),
}

impl Inert {
    fn value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::False => json!(false),
            Self::EmptyMap => json!({}),
            Self::Int(n) => json!(n),
            Self::Text(text) => json!(text),
        }
    }
}

struct Refused {
    key: &'static str,
    inert: Inert,
    why: &'static str,
    remedy: &'static str,
}

const MERGE: &str = "merge it in PEFT (`merge_and_unload`) and use the merged model as the base";
const PLAIN_INIT: &str = "use true, false or \"gaussian\" for `init_lora_weights`";
const LEAVE_OUT: &str = "train without it: leave the key out";

/// Keys that are known and not supported, with the value that makes them harmless.
const REFUSED: [Refused; 17] = [
    refused(
        "alora_invocation_tokens",
        Inert::Null,
        "the adapter is active only after an invocation sequence",
        MERGE_NOT,
    ),
    refused("arrow_config", Inert::Null, "it routes between several adapters", LEAVE_OUT),
    refused("corda_config", Inert::Null, "CorDA changes the base weights before training", PLAIN_INIT),
    refused("eva_config", Inert::Null, "EVA initialises from activations of the training data", PLAIN_INIT),
    refused(
        "fan_in_fan_out",
        Inert::False,
        "it is for layers that store their weight as (in, out), as GPT-2 does",
        LEAVE_OUT,
    ),
    refused("kasa_config", Inert::Null, "KaSA changes the base weights for good", MERGE),
    refused("layer_replication", Inert::Null, "it stacks layers of the base anew", LEAVE_OUT),
    refused("loftq_config", Inert::EmptyMap, "LoftQ changes the base weights before training", PLAIN_INIT),
    refused("lora_ga_config", Inert::Null, "LoRA-GA changes the base weights before training", PLAIN_INIT),
    refused("megatron_config", Inert::Null, "it is for Megatron's parallel layers", LEAVE_OUT),
    refused("megatron_core", Inert::Text("megatron.core"), "it is for Megatron's parallel layers", LEAVE_OUT),
    refused("monteclora_config", Inert::Null, "it samples perturbations of the adapter", LEAVE_OUT),
    refused("qalora_group_size", Inert::Int(16), "it is for QA-LoRA over GPTQ weights", LEAVE_OUT),
    refused(
        "target_parameters",
        Inert::Null,
        "it adapts bare parameters, as of fused experts",
        "name linear layers in `target_modules`",
    ),
    refused("use_bdlora", Inert::Null, "its factors are block-diagonal", MERGE),
    refused("use_qalora", Inert::False, "it is for QA-LoRA over GPTQ weights", LEAVE_OUT),
    refused("velora_config", Inert::Null, "it compresses activations in training", LEAVE_OUT),
];

const MERGE_NOT: &str = "such an adapter cannot be merged; train one without it";

const fn refused(key: &'static str, inert: Inert, why: &'static str, remedy: &'static str) -> Refused {
    Refused { key, inert, why, remedy }
}

/// The refused keys with the values that make them harmless, as PEFT writes them.
pub(crate) fn inert_values() -> BTreeMap<&'static str, Value> {
    REFUSED.iter().map(|r| (r.key, r.inert.value())).collect()
}

/// Read the text of an `adapter_config.json`.
pub(crate) fn parse(text: &str) -> Result<AdapterConfig, Problems> {
    let map = match serde_json::from_str::<Value>(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(one(Problem::error("not-an-object", "the configuration is not a JSON object"))),
        Err(e) => {
            let at = Location { line: Some(e.line()), column: Some(e.column()), ..Location::default() };
            return Err(one(Problem::error("invalid-json", e.to_string()).at(at)));
        }
    };
    let mut method = method_of(&map)?;
    let mut reader = Reader { map, problems: Problems::new() };
    let mut config = reader.common();
    match &mut method {
        Method::Lora => reader.lora(&mut config),
        Method::Vera(own) => own.read(&mut config, &mut reader),
        Method::Ia3(own) => own.read(&mut config, &mut reader),
        Method::Loha(own) => own.read(&mut config, &mut reader),
        Method::Lokr(own) => own.read(&mut config, &mut reader),
    }
    config.method = method;
    reader.refuse_the_rest(&config);
    crate::checks::check(&config, "", &mut reader.problems);
    if reader.problems.is_empty() { Ok(config) } else { Err(reader.problems) }
}

fn one(problem: Problem) -> Problems {
    let mut problems = Problems::new();
    problems.push(problem);
    problems
}

/// The method that a configuration is of; what is said of another is in another language, so nothing more is said of it.
fn method_of(map: &Map<String, Value>) -> Result<Method, Problems> {
    let fault = |code, key: &str, message: String| {
        Problem::error(code, message).at(Location::default().with_key(key))
    };
    Err(one(match map.get("peft_type") {
        Some(Value::String(kind)) if Method::named(kind).is_some() => {
            return Ok(Method::named(kind).unwrap_or_default());
        }
        Some(given) => {
            let known = "LORA, VERA, IA3, LOHA and LOKR are supported";
            fault("unsupported-method", "peft_type", format!("`peft_type` is {given}; {known}")).hint(MERGE)
        }
        None if map.contains_key("lora_parameters") || map.contains_key("fine_tune_type") => {
            let key = if map.contains_key("lora_parameters") { "lora_parameters" } else { "fine_tune_type" };
            let message = format!("this is an adapter of mlx-lm (it has `{key}` and no `peft_type`)");
            fault("mlx-adapter", key, message)
                .hint("fuse it with mlx_lm (`mlx_lm.fuse`) and use the fused model as the base")
        }
        None => {
            let message = "there is no `peft_type`: this is no configuration of PEFT".to_owned();
            fault("missing-key", "peft_type", message)
        }
    }))
}

/// Whether a value says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A configuration that is being read: keys that were taken are gone from it.
pub(crate) struct Reader {
    map: Map<String, Value>,
    problems: Problems,
}

impl Reader {
    /// What all methods have.
    fn common(&mut self) -> AdapterConfig {
        self.map.shift_remove("peft_type");
        AdapterConfig {
            base_model_name_or_path: self.take("base_model_name_or_path", "a string", as_text),
            revision: self.take("revision", "a string", as_text),
            task_type: self.task_type(),
            inference_mode: self.take("inference_mode", "a boolean", Value::as_bool).unwrap_or(false),
            peft_version: self.take("peft_version", "a string", as_text),
            auto_mapping: self.take("auto_mapping", "anything", |v| Some(v.clone())),
            target_modules: self.take("target_modules", NAMES, as_names).map(TargetModules::from),
            modules_to_save: self
                .take("modules_to_save", "a list of module names", as_text_list)
                .unwrap_or_default(),
            ..AdapterConfig::default()
        }
    }

    /// LoRA's own keys.
    pub(crate) fn lora(&mut self, config: &mut AdapterConfig) {
        self.exclude_modules(config);
        self.layers(config);
        self.patterns(config);
        config.r = self.take_index("r").unwrap_or(config.r);
        config.lora_alpha = self.take("lora_alpha", "a number", Value::as_f64).unwrap_or(config.lora_alpha);
        config.lora_dropout =
            self.take("lora_dropout", "a number", Value::as_f64).unwrap_or(config.lora_dropout);
        let mut flag = |key| self.take(key, "a boolean", Value::as_bool).unwrap_or(false);
        config.use_rslora = flag("use_rslora");
        config.use_dora = flag("use_dora");
        config.lora_bias = flag("lora_bias");
        config.ensure_weight_tying = flag("ensure_weight_tying");
        config.bias = self.bias();
        config.init_lora_weights = self.init();
        config.trainable_token_indices =
            self.take("trainable_token_indices", "a list of token ids, or lists by module", as_tokens);
    }

    /// The keys that LoHa and LoKr share.
    pub(crate) fn lycoris(&mut self, config: &mut AdapterConfig) {
        self.exclude_modules(config);
        self.layers(config);
        self.patterns(config);
        config.r = self.take_index("r").unwrap_or(8);
        config.lora_alpha = self.take("alpha", "a number", Value::as_f64).unwrap_or(8.0);
        // Of convolutions.
        self.inert("use_effective_conv2d", &[json!(false), json!(true)]);
        let why = "such dropout in training is not supported, and forgotten it would train another adapter";
        self.must_be("rank_dropout", &json!(0.0), why);
        self.must_be("module_dropout", &json!(0.0), why);
    }

    pub(crate) fn exclude_modules(&mut self, config: &mut AdapterConfig) {
        config.exclude_modules =
            self.take("exclude_modules", NAMES, as_names).filter(|names| !says_nothing(names));
    }

    /// Which layers.
    pub(crate) fn layers(&mut self, config: &mut AdapterConfig) {
        config.layers_to_transform = self.take("layers_to_transform", "layer indices", as_indices);
        config.layers_pattern =
            self.take("layers_pattern", "a string or a list of them", as_texts).unwrap_or_default();
    }

    fn patterns(&mut self, config: &mut AdapterConfig) {
        config.rank_pattern = self
            .take("rank_pattern", "whole numbers by name", |v| as_patterns(v, as_index))
            .unwrap_or_default();
        config.alpha_pattern = self
            .take("alpha_pattern", "numbers by name", |v| as_patterns(v, Value::as_f64))
            .unwrap_or_default();
    }

    pub(crate) fn take_index(&mut self, key: &'static str) -> Option<usize> {
        self.take(key, "a whole number", as_index)
    }

    /// A key that is known and has to hold one value, or to be absent.
    pub(crate) fn must_be(&mut self, key: &'static str, value: &Value, why: &str) {
        let Some(given) = self.map.shift_remove(key).filter(|v| !v.is_null()) else { return };
        let same_number = given.as_f64().is_some_and(|v| value.as_f64() == Some(v));
        if given != *value && !same_number {
            let message = format!("`{key}` is {}, which is not supported: {why}", short(&given));
            self.problem("unsupported-key", key, message, Some(MERGE.to_owned()));
        }
    }

    /// A key that says nothing about linear layers, whichever of these it holds.
    pub(crate) fn inert(&mut self, key: &'static str, values: &[Value]) {
        if let Some(given) = self.map.shift_remove(key)
            && !given.is_null()
            && !values.contains(&given)
        {
            self.problem("bad-value", key, format!("`{key}` is {}", short(&given)), None);
        }
    }

    /// The value of a key; null and absence are `None`, a value of another kind is a problem.
    pub(crate) fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.map.shift_remove(key).filter(|v| !v.is_null())?;
        let read = read(&value);
        if read.is_none() {
            self.problem(
                "bad-value",
                key,
                format!("`{key}` is {}, expected {expected}", short(&value)),
                None,
            );
        }
        read
    }

    fn problem(&mut self, code: &'static str, key: &str, message: String, hint: Option<String>) {
        let problem = Problem::error(code, message).at(Location::default().with_key(key));
        self.problems.push(Problem { hint, ..problem });
    }

    fn task_type(&mut self) -> Option<String> {
        let given = self.take("task_type", "a string", as_text)?;
        if given != "CAUSAL_LM" {
            let hint = Some("only adapters of causal language models can be used".to_owned());
            self.problem("unsupported-key", "task_type", format!("`task_type` is \"{given}\""), hint);
        }
        Some(given)
    }

    fn bias(&mut self) -> Bias {
        let Some(given) = self.take("bias", "a string", as_text) else { return Bias::None };
        let all = [Bias::None, Bias::All, Bias::LoraOnly];
        all.into_iter().find(|b| b.as_str() == given).unwrap_or_else(|| {
            let hint = Some("the choices are \"none\", \"all\" and \"lora_only\"".to_owned());
            self.problem("bad-value", "bias", format!("`bias` is \"{given}\""), hint);
            Bias::None
        })
    }

    fn init(&mut self) -> InitLoraWeights {
        let value = self.map.shift_remove("init_lora_weights").unwrap_or(Value::Null);
        match &value {
            Value::Null | Value::Bool(true) => InitLoraWeights::Default,
            Value::Bool(false) => InitLoraWeights::Random,
            Value::String(s) if s.eq_ignore_ascii_case("gaussian") => InitLoraWeights::Gaussian,
            Value::String(s) => {
                let message = format!("`init_lora_weights` is \"{s}\", which is not supported");
                let remedy = if ["eva", "orthogonal"].contains(&s.as_str()) {
                    "it leaves the base as it was, so that a trained adapter may say true here instead"
                        .to_owned()
                } else {
                    format!(
                        "such an adapter belongs to a base from which its beginning was taken away, so that on the base itself it is wrong, unless it was converted to plain LoRA on saving; {MERGE}"
                    )
                };
                self.problem("unsupported-key", "init_lora_weights", message, Some(remedy));
                InitLoraWeights::Default
            }
            other => {
                let message =
                    format!("`init_lora_weights` is {}, expected true, false or \"gaussian\"", short(other));
                self.problem("bad-value", "init_lora_weights", message, None);
                InitLoraWeights::Default
            }
        }
    }

    /// What is left: keys that are known and refused, and keys that nobody knows.
    fn refuse_the_rest(&mut self, config: &AdapterConfig) {
        let is_lora = config.method == Method::Lora;
        for (key, value) in std::mem::take(&mut self.map) {
            if let Some(refused) = REFUSED.iter().find(|r| is_lora && r.key == key) {
                if !is_empty(&value) && value != refused.inert.value() {
                    let message =
                        format!("`{key}` is {}, which is not supported: {}", short(&value), refused.why);
                    self.problem("unsupported-key", &key, message, Some(refused.remedy.to_owned()));
                }
            } else if !is_empty(&value) {
                let own = config.method.as_dyn().write(config).into_keys();
                let known: Vec<&str> = if is_lora {
                    HONOURED.into_iter().chain(REFUSED.iter().map(|r| r.key)).collect()
                } else {
                    own.collect()
                };
                let hint = match did_you_mean(&key, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "a key that is not known may change what the weights mean, so it is not skipped; if it says nothing about the forward pass, take it out of the file".to_owned(),
                };
                self.problem(
                    "unknown-key",
                    &key,
                    format!("unknown key `{key}` with the value {}", short(&value)),
                    Some(hint),
                );
            }
        }
    }
}

const NAMES: &str = "a list of module names or a regular expression";

fn says_nothing(names: &ModuleNames) -> bool {
    match names {
        ModuleNames::List(names) => names.is_empty(),
        ModuleNames::Regex(pattern) => pattern.is_empty(),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(crate) fn as_text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn as_index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn as_text_list(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(as_text).collect()
}

fn as_texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) if text.is_empty() => Some(Vec::new()),
        Value::String(text) => Some(vec![text.clone()]),
        other => as_text_list(other),
    }
}

pub(crate) fn as_names(value: &Value) -> Option<ModuleNames> {
    match value {
        Value::String(text) => Some(ModuleNames::Regex(text.clone())),
        other => as_text_list(other).map(ModuleNames::List),
    }
}

fn as_indices(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Array(items) => items.iter().map(as_index).collect(),
        other => as_index(other).map(|index| vec![index]),
    }
}

fn as_tokens(value: &Value) -> Option<TokenIndices> {
    let ids = |value: &Value| -> Option<Vec<u32>> {
        value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    match value {
        Value::Object(map) => {
            let lists = map.iter().map(|(name, list)| Some((name.clone(), ids(list)?)));
            lists.collect::<Option<_>>().map(TokenIndices::Map)
        }
        list => ids(list).map(TokenIndices::List),
    }
}

fn as_patterns<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(name, v)| Some((name.clone(), read(v)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &Value) -> String {
        let mut map: Map<String, Value> = serde_json::from_str(&AdapterConfig::default().to_json()).unwrap();
        map.insert(key.into(), value.clone());
        Value::Object(map).to_string()
    }

    fn keys_of(problems: &Problems) -> Vec<String> {
        problems.iter().filter_map(|p| p.location.clone()?.key).collect()
    }

    #[test]
    fn every_key_is_either_honoured_or_refused_and_none_is_both() {
        let mut all: Vec<&str> = HONOURED.into_iter().chain(REFUSED.iter().map(|r| r.key)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 41, "{all:?}");
    }

    #[test]
    fn every_refused_key_is_refused_by_name_when_it_says_something() {
        for refused in &REFUSED {
            for value in [json!(true), json!(3), json!("x"), json!({"a": 1}), json!([1])] {
                let problems = parse(&with(refused.key, &value)).unwrap_err();
                assert_eq!(keys_of(&problems), [refused.key], "{value}");
                assert!(problems.iter().all(|p| p.hint.is_some() && p.code == "unsupported-key"));
            }
            for value in [refused.inert.value(), Value::Null] {
                parse(&with(refused.key, &value)).unwrap();
            }
        }
    }

    #[test]
    fn every_honoured_key_refuses_a_value_of_another_kind() {
        for key in HONOURED.into_iter().filter(|k| !["auto_mapping", "peft_type"].contains(k)) {
            let problems = parse(&with(key, &json!({"a": {"b": 1}}))).unwrap_err();
            assert!(keys_of(&problems).contains(&key.to_owned()), "{key}: {problems}");
        }
    }

    #[test]
    fn an_unknown_key_that_says_something_is_refused_and_one_that_says_nothing_is_not() {
        let problems = parse(&with("use_doraa", &json!(true))).unwrap_err();
        assert_eq!(keys_of(&problems), ["use_doraa"]);
        assert_eq!(problems.iter().next().unwrap().hint.as_deref(), Some("did you mean `use_dora`?"));
        for nothing in [json!(null), json!(false), json!(""), json!([]), json!({})] {
            parse(&with("merge_weights", &nothing)).unwrap();
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = json!({"peft_type": "LORA", "r": 0, "lora_dropout": 1.5, "use_qalora": true, "bias": "some", "target_modules": "(q"});
        let problems = parse(&text.to_string()).unwrap_err();
        assert_eq!(keys_of(&problems), ["bias", "use_qalora", "r", "lora_dropout", "target_modules"]);
    }

    #[test]
    fn a_dropout_that_is_1_in_the_precision_of_training_is_refused() {
        let of = |dropout: f64| parse(&with("lora_dropout", &json!(dropout)));
        assert_eq!(keys_of(&of(0.999_999_99).unwrap_err()), ["lora_dropout"]);
        of(0.999_999).unwrap();
    }

    #[test]
    fn other_methods_and_other_tools_are_named() {
        let code = |text: &str| parse(text).unwrap_err().iter().next().unwrap().code;
        assert_eq!(code(r#"{"peft_type": "ADALORA"}"#), "unsupported-method");
        assert_eq!(code(r#"{"peft_type": "IA3", "r": 8}"#), "unknown-key");
        assert_eq!(code(r#"{"peft_type": "VERA", "save_projection": false}"#), "unsupported-key");
        assert_eq!(code(r#"{"peft_type": "LOHA", "rank_dropout": 0.1}"#), "unsupported-key");
        assert_eq!(code(r#"{"peft_type": "LOKR", "decompose_factor": 0}"#), "out-of-range");
        assert_eq!(code(r#"{"lora_parameters": {"rank": 8}}"#), "mlx-adapter");
        assert_eq!(code("{}"), "missing-key");
        assert_eq!(code("[]"), "not-an-object");
        assert_eq!(code("{"), "invalid-json");
    }
}
