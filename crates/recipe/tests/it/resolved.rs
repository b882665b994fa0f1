//! `resolved.toml` says everything and is itself a recipe of the same run.

use crate::support::{LEAST, Place};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use taper_recipe::{ResolvedRun, builtin_recipes, resolve, resolved_toml};

/// Every key with a value of its own.
const EVERYTHING: &str = r#"
schema = 1
name = "every key"
description = "line one\nline two, \"quoted\", a tab\t, a bell \u0007, a delete \u007f, ünïcode 🕯 = # not a comment"

[model]
base = "owner/name"
revision = "v1"
dtype = "bf16"
chat_template = "chat.jinja"
init = "pretrained"

[adapter]
r = 4
lora_alpha = 9.5
lora_dropout = 0.05
target_modules = ["q_proj", "v_proj"]
exclude_modules = ".*\\.k_proj"
rank_pattern = { q_proj = 2, "layers\\.0\\..*\"v\\s" = 3 }
alpha_pattern = { "model.layers.1" = 1e-7 }
layers_to_transform = [0, 3]
use_rslora = true
bias = "lora_only"
modules_to_save = ["lm_head"]
init_lora_weights = "gaussian"

[data]
train = ["a.jsonl", "../b \"c\".jsonl"]
valid = "v.jsonl"
test = "t.jsonl"
format = "messages"
columns = { messages = "chat turns", text = "tëxt" }
max_length = 77
packing = true
truncation = "drop"
on_error = "skip"
supervise = "last_assistant"
system_prompt = '''Two
lines and a \backslash'''
apply_chat_template = false
shuffle = false
validation_split = 0.0

[train]
method = "adapter"
num_train_epochs = 1.5
max_steps = 300
batch_size = 3
gradient_accumulation_steps = 2
seed = 9223372036854775807
max_grad_norm = 0.5
neftune_noise_alpha = 5.0
gradient_checkpointing = true
logging_steps = 3
eval_steps = 4
save_steps = 5
save_total_limit = 6
early_stopping_patience = 7
load_best_model_at_end = false
self_test = false

[optimizer]
name = "adamw"
learning_rate = 1e-5
weight_decay = 0.1
adam_beta1 = 0.8
adam_beta2 = 0.95
adam_epsilon = 1e-30
loraplus_lr_ratio = 16

[schedule]
lr_scheduler_type = "warmup_stable_decay"
warmup_steps = 2
min_lr_ratio = 0.1
decay_ratio = 0.2

[[eval]]
name = "first"
data = ["e1.jsonl", "e2.jsonl"]
metrics = ["json_fields", "perplexity"]
max_new_tokens = 5
limit = 6
batch_size = 7
normalize = "lenient"
seed = 8

[[eval]]
name = "second"

[gate]
eval = "first"
min_json_fields = 0.5
min_json_fields_gain = 0.1
max_perplexity = 9
max_perplexity_ratio = 0.9

[export]
formats = ["merged"]
merged_dtype = "f16"

[smoke]
base = "owner/tiny@v2"
max_steps = 5
golden_loss = 1.25
tolerance = 0.01
limit = 4
"#;

/// Write the resolved run into a folder of its own, as a run does, and resolve that.
fn again(run: &ResolvedRun) -> (ResolvedRun, String) {
    let text = resolved_toml(run);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolved.toml");
    fs_err::write(&path, &text).unwrap();
    (resolve(&path, &[]).unwrap_or_else(|error| panic!("{error}\n{text}")), text)
}

#[track_caller]
fn comes_back(run: &ResolvedRun) -> String {
    let (back, text) = again(run);
    assert_eq!(back.recipe, run.recipe, "{text}");
    assert_eq!(back.name, run.name);
    // Once more gives the same values, now all from `resolved.toml`.
    let strip = |text: &str| {
        text.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(strip(&again(&back).1), strip(&text));
    text
}

#[test]
fn a_recipe_with_every_key_comes_back_as_it_was() {
    let run = Place::with(EVERYTHING).resolve(&[]).unwrap();
    let text = comes_back(&run);
    assert!(text.contains("\nlearning_rate = 0.00001  # recipe.toml:64\n"), "{text}");
    assert!(text.contains("\n[adapter.rank_pattern]\n"), "{text}");
    assert!(text.contains("\"model.layers.1\" = 1e-7  # recipe.toml:20\n"), "{text}");
    assert!(text.contains("# warmup_ratio: not set\n"), "{text}");
}

#[test]
fn every_built_in_recipe_comes_back_as_it_was() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut seen = 0;
    for builtin in builtin_recipes() {
        comes_back(&resolve(&recipes.join(format!("{}.toml", builtin.name)), &[]).unwrap());
        seen += 1;
    }
    assert!(seen >= 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_text_comes_back_as_it_was(description in any::<String>(), column in "(?s).+") {
        let mut recipe: toml_edit::DocumentMut = LEAST.parse().unwrap();
        recipe["description"] = toml_edit::value(description.as_str());
        recipe["data"]["columns"]["text"] = toml_edit::value(column.as_str());
        let run = Place::with(&recipe.to_string()).resolve(&[]).unwrap();
        prop_assert_eq!(run.recipe.description.as_ref(), Some(&description));
        prop_assert_eq!(&run.recipe.data.columns["text"], &column);
        prop_assert_eq!(again(&run).0.recipe, run.recipe);
    }
}

#[test]
fn every_value_says_where_it_came_from() {
    let place =
        Place::with("extends = \"base.toml\"\n[train]\nseed = 3\n[adapter.rank_pattern]\nq_proj = 2\n");
    place.write(
        "base.toml",
        &format!("{LEAST}[adapter.rank_pattern]\n\"v_proj\" = 1\n[[eval]]\ndata = \"x.jsonl\"\n"),
    );
    let run = place.resolve(&["train.batch_size=4"]).unwrap();
    let text = comes_back(&run);
    for line in [
        "schema = 1  # base.toml:1",
        "name = \"recipe\"  # default",
        "# description: not set",
        "base = \"owner/name\"  # base.toml:3",
        "seed = 3  # recipe.toml:3",
        "batch_size = 4  # --set",
        "save_total_limit = 2  # default",
        "# max_steps: not set",
        "v_proj = 1  # base.toml:8",
        "q_proj = 2  # recipe.toml:5",
        "alpha_pattern = {}  # default",
        "metrics = [\"exact_match\", \"perplexity\"]  # default",
    ] {
        assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line}\n{text}");
    }
    for line in text.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with('[')) {
        assert!(
            line.contains("  # ") || line.ends_with(": not set"),
            "`{line}` does not say where it came from"
        );
    }
    assert!(!text.contains("extends"), "what it extends is in it");
}

#[test]
fn paths_hold_wherever_the_file_lies() {
    let place = Place::with(
        "schema = 1\n[model]\nbase = \"../x/base\"\n[data]\ntrain = \"data/../t.jsonl\"\n[adapter]\n",
    );
    let run = place.resolve(&["data.test=here.jsonl"]).unwrap();
    let text = resolved_toml(&run);
    let written: toml_edit::DocumentMut = text.parse().unwrap();
    let path = |section: &str, key: &str| PathBuf::from(written[section][key].as_str().unwrap());
    assert_eq!(path("model", "base"), place.path().parent().unwrap().join("x/base"));
    assert_eq!(path("data", "train"), place.path().join("t.jsonl"));
    assert_eq!(path("data", "test"), std::env::current_dir().unwrap().join("here.jsonl"));
    comes_back(&run);
}

#[test]
fn a_run_without_adapter_and_evaluation_says_so() {
    let run = Place::with(
        "schema = 1\n[model]\nbase = \"a/b\"\n[data]\ntrain = \"t\"\n[train]\nmethod = \"full\"\n[export]\nformats = []\n",
    )
    .resolve(&[])
    .unwrap();
    let text = comes_back(&run);
    assert!(text.contains("\n# adapter: not set\n") && text.contains("\neval = []  # default\n"), "{text}");
}
