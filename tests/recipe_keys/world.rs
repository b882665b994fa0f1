//! Bases, data and recipes to run the program with.

use crate::cases::{Case, Change};
use candle_core::DType;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use taper_models::ModelConfig;
use taper_testkit::{TinySpec, tiny_checkpoint};
use tempfile::TempDir;

/// Three steps over twelve examples, and an evaluation.
pub(crate) const RECIPE: &str = r#"schema = 1

[model]
base = "base"

[adapter]
r = 4
lora_alpha = 8

[data]
train = "train.jsonl"
valid = "valid.jsonl"
test = "test.jsonl"

[train]
num_train_epochs = 1
batch_size = 4
logging_steps = 1
self_test = false

[optimizer]
learning_rate = 1e-2

[[eval]]
name = "held-out"
max_new_tokens = 4
"#;

/// Training data alone.
const BARE: &str = r#"schema = 1

[model]
base = "base"

[adapter]

[data]
train = "train.jsonl"
"#;

/// Neither an adapter nor what else to train.
const UNSAID: &str = r#"schema = 1

[model]
base = "base"

[data]
train = "train.jsonl"

[train]
num_train_epochs = 1
logging_steps = 1
self_test = false

[export]
formats = ["merged"]
"#;

/// Teaches one answer to every question, and holds what is written against others in many ways.
const CONSTANT: &str = r#"schema = 1

[model]
base = "able"

[adapter]
r = 8
lora_alpha = 16

[data]
train = "constant.jsonl"
test = "near.jsonl"

[train]
max_steps = 100
batch_size = 6
self_test = false

[optimizer]
learning_rate = 1e-2

[[eval]]
name = "held-out"
metrics = ["regex", "numeric", "field_f1"]
pattern = "never"
schema = "strict.schema.json"
max_new_tokens = 40
"#;

/// What the recipe above teaches: JSON in a fence, with two numbers.
const ANSWER: &str = "```json\n{\"a\": 10, \"b\": 12}\n```";

/// A folder with everything that the cases name.
pub(crate) struct World {
    folder: TempDir,
    runs: AtomicUsize,
    unchanged: Mutex<BTreeMap<String, Arc<Ran>>>,
}

/// A command that was run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    /// Where it ran; a run lies in `runs/<name>` below.
    pub(crate) folder: PathBuf,
}

impl Ran {
    pub(crate) fn all(&self) -> String {
        format!("exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.out, self.err)
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            runs: AtomicUsize::new(0),
            unchanged: Mutex::new(BTreeMap::new()),
        };
        checkpoint(&world.path("base"), 1);
        checkpoint(&world.path("other"), 2);
        tiny_checkpoint(&world.path("tied"), &TinySpec::default());
        // Random too, yet with logits far enough apart that an adapter alone learns an answer.
        let able = TinySpec {
            hidden_size: 64,
            intermediate_size: 128,
            initializer_range: 0.2,
            ..TinySpec::default()
        };
        tiny_checkpoint(&world.path("able"), &able);
        world.hub();
        world.recipes();
        world.data();
        world.evaluated();
        world.trained();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    fn rows(&self, name: &str, rows: impl IntoIterator<Item = Value>) {
        let text: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
        self.write(name, &text);
    }

    /// A hub's cache with one model at two revisions.
    fn hub(&self) {
        for (revision, commit, model) in [("main", "aaaa", "base"), ("v1", "bbbb", "other")] {
            let model_folder = "hub/models--owner--tiny";
            self.write(&format!("{model_folder}/refs/{revision}"), commit);
            let snapshot = self.path(&format!("{model_folder}/snapshots/{commit}"));
            copy_folder(&self.path(model), &snapshot);
        }
    }

    fn recipes(&self) {
        self.write("recipe.toml", RECIPE);
        self.write("bare.toml", BARE);
        self.write("unsaid.toml", UNSAID);
        self.write("full.toml", &UNSAID.replace("[train]", "[train]\nmethod = \"full\""));
        self.write("two.toml", &format!("{RECIPE}\n[[eval]]\nname = \"second\"\n"));
        self.write("constant.toml", CONSTANT);
        self.write("rival.toml", &format!("{RECIPE}\n[[candidate]]\nname = \"rival\"\nfew_shot = 1\n"));
        let merged =
            "\n[[candidate]]\nname = \"rival\"\nexport = \"merged\"\n\n[export]\nformats = [\"merged\"]\n";
        self.write("kept.toml", &format!("{RECIPE}metrics = [\"perplexity\"]\n{merged}"));
        self.write("seed.toml", "[train]\nseed = 7\n");
        self.write("extending.toml", &format!("extends = \"seed.toml\"\n{RECIPE}"));
        self.write(
            "other.jinja",
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}",
        );
    }

    fn data(&self) {
        self.rows("train.jsonl", (0..12).map(question));
        self.rows("more.jsonl", (0..13).map(question));
        self.rows("valid.jsonl", (20..24).map(question));
        self.rows("more_valid.jsonl", (20..25).map(question));
        self.rows("test.jsonl", (30..36).map(question));
        self.rows("more_test.jsonl", (30..37).map(question));
        self.rows("json.jsonl", (30..36).map(|n| chat(&asked(n), "{\"colour\": 1}")));
        self.rows("long.jsonl", (0..4).map(question).chain([chat(&"a long story ".repeat(60), "ok")]));
        let both =
            |n: usize| json!({ "messages": question(n)["messages"], "text": format!("text number {n}") });
        self.rows("both.jsonl", (0..4).map(both));
        let columns = |n: usize| json!({ "prompt": asked(n), "completion": "red", "question": format!("which is {n}?") });
        self.rows("columns.jsonl", (0..4).map(columns));
        self.rows("faulty.jsonl", (0..4).map(question).chain([json!({ "messages": "none" })]));
    }

    /// Data of the cases of `[[eval]]`.
    fn evaluated(&self) {
        self.rows("constant.jsonl", (0..12).map(|n| chat(&asked(n), ANSWER)));
        // One number beside what is answered.
        self.rows("near.jsonl", (30..36).map(|n| chat(&asked(n), "{\"a\": 10, \"b\": 13}")));
        for (name, absolute) in [("strict", 0), ("lenient", 2)] {
            let number = json!({ "type": "number", "x-compare": { "as": "number", "absolute": absolute } });
            let schema = json!({ "type": "object", "properties": { "a": number, "b": number } });
            self.write(&format!("{name}.schema.json"), &schema.to_string());
        }
        let with_fields = |n: usize| {
            let mut row = question(n);
            row["site"] = json!(if n.is_multiple_of(2) { "north" } else { "south" });
            row["document"] = json!(n / 2);
            row["choices"] = json!(["red", "green", "blue"]);
            row["options"] = json!(["blue", "green", "red", "black"]);
            row
        };
        self.rows("fields.jsonl", (30..36).map(with_fields));
        self.rows("touched.jsonl", (3..6).chain(30..36).map(question));
        self.rows("shots.jsonl", (60..64).map(question));
    }

    /// What an evaluation and an export begin with, and answers that the model gives itself.
    fn trained(&self) {
        let ran = self.command(&["train", "../recipe.toml"], None);
        assert_eq!(ran.code, 0, "{}", ran.all());
        copy_folder(&ran.folder.join("runs/recipe/adapter"), &self.path("adapter"));
        let ran = self.command(&["train", "../constant.toml"], None);
        assert_eq!(ran.code, 0, "{}", ran.all());
        copy_folder(&ran.folder.join("runs/constant/adapter"), &self.path("adapter-constant"));
        let ran = self.command(&["eval", "../recipe.toml"], Some("recipe"));
        assert_eq!(ran.code, 0, "{}", ran.all());
        let samples = fs_err::read_to_string(ran.folder.join("runs/recipe/eval/samples.jsonl")).unwrap();
        let echo = samples.lines().map(|line| {
            let sample: Value = serde_json::from_str(line).unwrap();
            let output = sample["candidates"]["adapter"]["output"].as_str().unwrap();
            chat(sample["input"].as_str().unwrap(), &format!("{output}!"))
        });
        self.rows("echo.jsonl", echo.collect::<Vec<_>>());
    }

    /// Run a case, with its key or without.
    pub(crate) fn run(&self, case: &Case, with_key: bool) -> Arc<Ran> {
        let (recipe, key) = match (case.change, with_key) {
            (Change::Recipe(with), true) => (with, None),
            (Change::Recipe(_), false) | (Change::Set(_), false) => (case.recipe, None),
            (Change::Set(value), true) => (case.recipe, Some(value)),
        };
        let mut args = vec![case.verb.to_owned(), format!("../{recipe}.toml"), "--offline".to_owned()];
        let name = match case.key.split_once('.') {
            Some((list @ ("eval" | "candidate"), key)) => format!("{list}.0.{key}"),
            _ => case.key.to_owned(),
        };
        let key = key.map(|value| format!("{name}={value}"));
        for set in case.beside.iter().map(|set| (*set).to_owned()).chain(key) {
            args.extend(["--set".to_owned(), set]);
        }
        if matches!(case.verb, "check" | "explain") {
            args.push("--json".to_owned());
        }
        let cached = args.join("\n");
        if let Some(ran) = self.unchanged.lock().unwrap().get(&cached).filter(|_| !with_key) {
            return ran.clone();
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran =
            Arc::new(self.command(&args, matches!(case.verb, "eval" | "export" | "serve").then_some(recipe)));
        if !with_key {
            self.unchanged.lock().unwrap().insert(cached, ran.clone());
        }
        ran
    }

    /// Run a command in a folder of its own, in which the run of that name is already trained.
    fn command(&self, args: &[&str], trained: Option<&str>) -> Ran {
        let folder = self.path(&format!("ran-{}", self.runs.fetch_add(1, Ordering::SeqCst)));
        fs_err::create_dir_all(&folder).unwrap();
        if let Some(name) = trained {
            let adapter = if name == "constant" { "adapter-constant" } else { "adapter" };
            copy_folder(&self.path(adapter), &folder.join(format!("runs/{name}/adapter")));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_taper"));
        command.args(args).current_dir(&folder).stdin(Stdio::null());
        for name in ["HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command
            .env("CI", "true")
            .env("HF_HUB_CACHE", self.path("hub"))
            .env("TAPER_CACHE_DIR", folder.join("cache"))
            .env("HF_ENDPOINT", "http://127.0.0.1:9");
        let output = match args.first() {
            Some(&"serve") => crate::served::output(&mut command),
            _ => command.output().unwrap(),
        };
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            folder,
        }
    }
}

/// A tiny Llama with biases and a head of its own, so that every key of `[adapter]` has something to take hold of.
fn checkpoint(folder: &Path, seed: u64) {
    tiny_checkpoint(folder, &TinySpec { tie_word_embeddings: false, seed, ..TinySpec::default() });
    let path = folder.join("config.json");
    let mut config = taper_testkit::read_json(&path);
    config["attention_bias"] = true.into();
    fs_err::write(&path, config.to_string()).unwrap();
    let config = ModelConfig::read(&path.as_path().into()).unwrap();
    let mut model = taper_models::init(&config, seed, Some(DType::F32)).unwrap();
    let tensors = taper_models::state_tensors(model.as_mut()).unwrap().into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn asked(number: usize) -> String {
    format!("item {number} {}", ["R", "G", "B"][number % 3])
}

fn question(number: usize) -> Value {
    chat(&asked(number), ["red", "green", "blue"][number % 3])
}

fn chat(user: &str, assistant: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": user }, { "role": "assistant", "content": assistant }] })
}
