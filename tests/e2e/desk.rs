//! A user's desk: a folder with a base, data and a recipe, and the binary to type commands with.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use taper_testkit::TinySpec;
use tempfile::TempDir;

/// The task: the letter at the end of a question stands for a colour.
const COLOURS: [(&str, &str); 4] = [("R", "red"), ("G", "green"), ("B", "blue"), ("K", "black")];

/// Learns the task in about half a second; `runs/colours` is its folder.
pub(crate) const RECIPE: &str = r#"schema = 1
name = "colours"
description = "Name the colour that a letter stands for"

[model]
base = "base"

[adapter]
r = 8
lora_alpha = 16

[data]
train = "train.jsonl"
valid = "valid.jsonl"
test = "test.jsonl"

[train]
max_steps = 60
batch_size = 8
eval_steps = 20
save_steps = 20

[optimizer]
learning_rate = 1e-2

[[eval]]
name = "held-out"
max_new_tokens = 8

[gate]
min_exact_match_gain = 0.3

[export]
formats = ["peft", "merged"]
"#;

/// The adapter's weights in the run's folder.
pub(crate) const ADAPTER: &str = "runs/colours/adapter/adapter_model.safetensors";

pub(crate) struct Desk {
    folder: TempDir,
    /// What stands for the user's cache folder.
    cache: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Desk {
    /// An empty folder.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() }
    }

    /// A folder with `base/`, three data files and `recipe.toml`.
    pub(crate) fn new() -> Self {
        let desk = Self::empty();
        taper_testkit::tiny_checkpoint(&desk.path("base"), &spec());
        desk.write("train.jsonl", questions(0..96));
        desk.write("valid.jsonl", questions(100..116));
        desk.write("test.jsonl", questions(200..232));
        desk.write("recipe.toml", RECIPE);
        desk
    }

    /// [`Desk::new`] after a run that passed.
    pub(crate) fn trained() -> Self {
        let desk = Self::new();
        desk.taper(&["run", "recipe.toml"]).exits(0);
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs_err::read(self.path(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    pub(crate) fn json_lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Every file below a folder, by its path in it.
    pub(crate) fn files(&self, folder: impl AsRef<Path>) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let root = self.folder.path().join(folder);
        if root.is_dir() {
            collect(&root, &root, &mut files);
        }
        files
    }

    /// The folder in which tokens are kept, outside of this one.
    pub(crate) fn kept_tokens(&self) -> PathBuf {
        self.cache.path().join("tokens")
    }

    /// Run a command here.
    pub(crate) fn taper(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap(), args)
    }

    /// Run a command here that reads `input`.
    pub(crate) fn taper_reading(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A command that ends without reading closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        said(child.wait_with_output().unwrap(), args)
    }

    /// Begin a command here.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// A command as it is typed here: no terminal, no network, and none of the caller's settings.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_taper"), args)
    }

    /// Any program, with the settings of [`Desk::command`].
    pub(crate) fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.args(args).current_dir(self.folder.path());
        for name in ["HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "RAYON_NUM_THREADS", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env("CI", "true").env("COLUMNS", "100").env("HF_HUB_CACHE", self.path("hub-cache"));
        command.env("TAPER_CACHE_DIR", self.cache.path());
        // Nothing listens there: whoever asks the hub fails at once.
        command.env("HF_ENDPOINT", "http://127.0.0.1:9");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Said {
    /// Hold the exit code to `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.all());
        self
    }

    /// Hold what people read to these pieces of text, in this order.
    #[track_caller]
    pub(crate) fn tells(self, pieces: &[&str]) -> Self {
        let mut rest = self.err.as_str();
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => panic!("`{piece}` is not told (there) in\n{}", self.all()),
            }
        }
        self
    }

    /// What people read must not hold `piece`.
    #[track_caller]
    pub(crate) fn never_tells(self, piece: &str) -> Self {
        assert!(!self.err.contains(piece), "`{piece}` is told in\n{}", self.all());
        self
    }

    /// stdout as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        match serde_json::from_str(&self.out) {
            Ok(value) => value,
            Err(error) => panic!("stdout is not one JSON value: {error}\n{}", self.all()),
        }
    }

    fn all(&self) -> String {
        format!("exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.out, self.err)
    }
}

#[track_caller]
pub(crate) fn said(output: Output, args: &[&str]) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    // A killed process has no code.
    let code = output.status.code().unwrap_or(-1);
    let said = Said { code, out: text(output.stdout), err: text(output.stderr) };
    for trace in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!said.err.contains(trace), "taper {} shows its entrails\n{}", args.join(" "), said.all());
    }
    assert_ne!(said.code, 1, "taper {} is at fault itself\n{}", args.join(" "), said.all());
    said
}

/// Wait for something that a command in the background does.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The base of every desk: random, yet with logits far enough apart that an adapter alone can learn the task.
pub(crate) fn spec() -> TinySpec {
    TinySpec { hidden_size: 64, intermediate_size: 128, initializer_range: 0.2, ..TinySpec::default() }
}

/// A row with one question and its answer.
pub(crate) fn row(question: &str, answer: &str) -> String {
    let messages =
        json!([{ "role": "user", "content": question }, { "role": "assistant", "content": answer }]);
    json!({ "messages": messages }).to_string()
}

/// The question of that number, and its answer.
pub(crate) fn question(number: usize) -> (String, &'static str) {
    let (letter, colour) = COLOURS[number % COLOURS.len()];
    (format!("item {number} {letter}"), colour)
}

/// Questions with their answers, a row each.
pub(crate) fn questions(numbers: impl IntoIterator<Item = usize>) -> String {
    let mut rows = String::new();
    for number in numbers {
        let (question, answer) = question(number);
        writeln!(rows, "{}", row(&question, answer)).unwrap();
    }
    rows
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(name, fs_err::read(&path).unwrap());
        }
    }
}
