//! The `[data]` section of a recipe.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Location, Problem, Problems, did_you_mean, list_names};

/// The columns that a format can ask for; the left-hand names of `columns`.
pub const COLUMNS: [&str; 11] = [
    "messages",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "conversations",
    "text",
    "tools",
];

/// Where the examples come from and how they become training rows.
///
/// Paths are relative to the recipe file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files to train on: a path or a list of paths, read in this order. `.jsonl` holds one object per line; `.json` may
    /// also hold one array of objects.
    pub train: PathList,
    /// Files for validation during training: they choose the best checkpoint and stop early. Never trained on.
    pub valid: PathList,
    /// Files for the final evaluation. Never trained on and never looked at before the end.
    pub test: PathList,
    /// What a row looks like. "auto" looks at the first row of each file and says what it found; name the format to be
    /// sure, or when rows carry the columns of two formats.
    pub format: FormatChoice,
    /// Other names for columns: `columns = { prompt = "question", completion = "answer" }` reads the prompt from
    /// `question`. The left-hand names are those of the formats.
    pub columns: BTreeMap<String, String>,
    /// Longest example, in tokens, and the length of a packed row (2 to 1048576). Memory of a step grows with it; an
    /// example over it is handled by `truncation`.
    pub max_length: usize,
    /// Put several short examples into one row of up to `max_length` tokens. Examples in a row do not see each other.
    /// Faster when examples are much shorter than `max_length`; `batch_size` then counts rows, so a step holds more examples.
    pub packing: bool,
    /// What to do with an example over `max_length` tokens. "error" stops before step 1; "drop" leaves it out and counts
    /// it; "right" cuts its end off, which loses the stop token and, where nothing of the answer is left, is an error.
    pub truncation: Truncation,
    /// What to do with a row that cannot be read or used. "stop" lists up to 20 of them and ends; "skip" leaves them
    /// out, lists them in the report, and also leaves out training rows whose input occurs in `valid` or `test`.
    pub on_error: OnError,
    /// What to do when inputs of `test`, or of an evaluation's own data, occur in `train`. "error" stops before step 1; "report" warns and
    /// gives the scores with and without them. Inputs that are nearly those of training rows are always told, and never stop a run.
    pub overlap: OverlapChoice,
    /// Which tokens are learned: every assistant turn, only the last one, or all tokens. "all" also learns to write the
    /// user's turns; rows of plain `text` are always learned as a whole.
    pub supervise: Supervision,
    /// System prompt for conversations that have none of their own. It takes its tokens from `max_length`.
    pub system_prompt: Option<String>,
    /// Whether a row of a string `prompt` and a string `completion` becomes a user and an assistant message, rendered by
    /// the checkpoint's chat template (true), or plain text, the completion following the prompt with nothing between
    /// (false: for base models without a chat template).
    pub apply_chat_template: bool,
    /// Whether each epoch has its own order, drawn from `train.seed`. Off: the order of the files, for a curriculum.
    pub shuffle: bool,
    /// Whether the tokens of the examples are kept on the disk, so that the next run over the same data need not make them
    /// again. They lie in `TAPER_CACHE_DIR`, else in the user's cache folder (`~/.cache/taper`), readable by the user alone, and
    /// are found by a hash of the examples, the tokenizer and the chat template. They can be turned back into the text:
    /// switch it off where that must not leave the run's folder. It never changes what is trained.
    pub cache: bool,
    /// Share of `train` (0 to below 1) held out for validation when there is no `valid` file. Rows with the same input
    /// go to the same side; which ones is drawn from `train.seed`.
    pub validation_split: f64,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train: PathList::default(),
            valid: PathList::default(),
            test: PathList::default(),
            format: FormatChoice::Auto,
            columns: BTreeMap::new(),
            max_length: 1024,
            packing: false,
            truncation: Truncation::Error,
            on_error: OnError::Stop,
            overlap: OverlapChoice::Error,
            supervise: Supervision::Assistant,
            system_prompt: None,
            apply_chat_template: true,
            shuffle: true,
            cache: true,
            validation_split: 0.0,
        }
    }
}

impl DataSection {
    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut fault = |key: &str, message: String, hint: &str| {
            let at = Location::default().with_key(format!("data.{key}"));
            problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
        };
        if self.train.is_empty() {
            fault("train", "no training file is named".into(), "set `data.train` to a .jsonl file");
        }
        if !(2..=1 << 20).contains(&self.max_length) {
            let message = format!("`max_length` is {}, allowed are 2 to {} tokens", self.max_length, 1 << 20);
            fault("max_length", message, "1024 fits most instruction data");
        }
        if !(0.0..1.0).contains(&self.validation_split) {
            let message =
                format!("`validation_split` is {}, allowed are 0 to below 1", self.validation_split);
            fault("validation_split", message, "it is a share: 0.05 holds out every twentieth example");
        }
        if self.validation_split > 0.0 && !self.valid.is_empty() {
            let message = "both `valid` and `validation_split` are set".to_owned();
            fault("validation_split", message, "keep the file, or take the split out of `train`, not both");
        }
        if self.system_prompt.as_deref().is_some_and(|prompt| prompt.trim().is_empty()) {
            fault("system_prompt", "`system_prompt` is empty".into(), "leave the key out to have none");
        }
        self.check_columns(&mut problems);
        problems
    }

    fn check_columns(&self, problems: &mut Problems) {
        for (column, name) in &self.columns {
            let at = Location::default().with_key(format!("data.columns.{column}"));
            if !COLUMNS.contains(&column.as_str()) {
                let hint = match did_you_mean(column, COLUMNS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the columns of the formats are {}", list_names(COLUMNS, COLUMNS.len())),
                };
                let message = format!("no format has a column `{column}`");
                problems.push(Problem::error("unknown-column", message).at(at).hint(hint));
            } else if name.is_empty() {
                let message = format!("the name for column `{column}` is empty");
                let hint = "write the name that the column has in the file";
                problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
            }
        }
    }
}

/// What a row looks like, as a recipe names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatChoice {
    /// Recognised from the first row of each file.
    #[default]
    Auto,
    /// `messages`: a list of `{role, content}`, as the OpenAI API writes it.
    Messages,
    /// `prompt` and `completion`, strings or lists of messages.
    PromptCompletion,
    /// `instruction`, `output`, and perhaps `input`, `system`, `history`.
    Alpaca,
    /// `conversations`: a list of `{from, value}`.
    Sharegpt,
    /// `text`: all of it is learned.
    Text,
}

/// What to do about held-out inputs that were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverlapChoice {
    /// They stop the run before step 1.
    #[default]
    Error,
    /// They are told, and scores are given with and without them.
    Report,
}

/// What to do with an example over `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// It stops the run before step 1.
    #[default]
    Error,
    /// It is left out and counted.
    Drop,
    /// Its end is cut off.
    Right,
}

/// What to do with a row that cannot be read or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Up to 20 of them are listed and the run ends.
    #[default]
    Stop,
    /// They are left out, counted and listed.
    Skip,
}

/// Which tokens are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// Every assistant turn with its stop token.
    #[default]
    Assistant,
    /// The last assistant turn with its stop token.
    LastAssistant,
    /// All tokens.
    All,
}

/// One path or several: `"a.jsonl"` or `["a.jsonl", "b.jsonl"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathList(Vec<PathBuf>);

impl PathList {
    /// The paths as they were written.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Whether no path is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths seen from `folder`, which is the recipe's; absolute ones stay.
    pub fn resolve(&self, folder: &Path) -> Vec<PathBuf> {
        self.0.iter().map(|path| folder.join(path)).collect()
    }
}

impl<P: Into<PathBuf>> FromIterator<P> for PathList {
    fn from_iter<I: IntoIterator<Item = P>>(paths: I) -> Self {
        Self(paths.into_iter().map(Into::into).collect())
    }
}

impl Serialize for PathList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PathList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathListVisitor)
    }
}

struct PathListVisitor;

impl<'de> Visitor<'de> for PathListVisitor {
    type Value = PathList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path or a list of paths")
    }

    fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<PathList, E> {
        if path.is_empty() {
            return Err(E::invalid_value(serde::de::Unexpected::Str(path), &"a path that is not empty"));
        }
        Ok(PathList(vec![PathBuf::from(path)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut paths: A) -> Result<PathList, A::Error> {
        let mut list = Vec::new();
        while let Some(path) = paths.next_element::<String>()? {
            list.extend(Self.visit_str::<A::Error>(&path)?.0);
        }
        Ok(PathList(list))
    }
}

impl JsonSchema for PathList {
    fn schema_name() -> Cow<'static, str> {
        "PathList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A path or a list of paths, relative to the recipe file.",
            "oneOf": [
                { "type": "string", "minLength": 1 },
                { "type": "array", "items": { "type": "string", "minLength": 1 } }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(toml: &str) -> Result<DataSection, toml::de::Error> {
        toml::from_str(toml)
    }

    #[test]
    fn a_path_and_a_list_of_paths_are_read_and_written_back() {
        let one = section("train = \"a.jsonl\"").unwrap();
        let two = section("train = [\"a.jsonl\", \"b.jsonl\"]").unwrap();
        assert_eq!(one.train.paths(), [PathBuf::from("a.jsonl")]);
        assert_eq!(
            two.train.resolve(Path::new("/r")),
            [PathBuf::from("/r/a.jsonl"), PathBuf::from("/r/b.jsonl")]
        );
        for section in [one, two] {
            let text = toml::to_string(&section).unwrap();
            assert_eq!(toml::from_str::<DataSection>(&text).unwrap(), section);
        }
        assert!(section("train = 3").unwrap_err().to_string().contains("a path or a list of paths"));
        assert!(section("train = [\"a\", \"\"]").unwrap_err().to_string().contains("not empty"));
    }

    #[test]
    fn an_unknown_key_and_an_unknown_choice_are_errors_that_list_what_exists() {
        let error = section("trian = \"a\"").unwrap_err().to_string();
        assert!(error.contains("trian") && error.contains("max_length"), "{error}");
        let error = section("truncation = \"left\"").unwrap_err().to_string();
        assert!(error.contains("left") && error.contains("right"), "{error}");
    }

    #[test]
    fn all_faults_of_the_section_are_found_at_once() {
        let section = section(
            "max_length = 1\nvalid = \"v\"\nvalidation_split = 1.5\nsystem_prompt = \" \"\ncolumns = { promt = \"q\", text = \"\" }",
        )
        .unwrap();
        let problems = section.check();
        let keys: Vec<String> =
            problems.iter().map(|p| p.location.clone().unwrap().key.unwrap_or_default()).collect();
        assert_eq!(
            keys,
            [
                "data.train",
                "data.max_length",
                "data.validation_split",
                "data.validation_split",
                "data.system_prompt",
                "data.columns.promt",
                "data.columns.text"
            ]
        );
        assert!(problems.iter().any(|p| p.hint.as_deref() == Some("did you mean `prompt`?")));
    }

    #[test]
    fn the_schema_offers_both_forms_of_a_path_list_and_describes_every_key() {
        let schema = serde_json::to_value(schemars::schema_for!(DataSection)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let written = serde_json::to_value(DataSection::default()).unwrap();
        assert_eq!(
            properties.keys().collect::<Vec<_>>(),
            written.as_object().unwrap().keys().collect::<Vec<_>>()
        );
        assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
        assert_eq!(schema["$defs"]["PathList"]["oneOf"].as_array().unwrap().len(), 2);
    }
}
