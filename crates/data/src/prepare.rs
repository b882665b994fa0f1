//! From the `[data]` section to tokenised sets, with everything that is wrong with them.

use crate::check::check_dataset;
use crate::encode::{Encode, EncodedFacts};
use crate::error::{Error, Result};
use crate::example::{Example, ExampleKind};
use crate::load::{Dataset, LoadReport, load};
use crate::overlap::{groups, leaking};
use crate::section::{DataSection, OnError};
use crate::stats::DatasetStats;
use crate::tokenize::{Tokenized, TokenizedExample, tokenize};
use std::path::{Path, PathBuf};
use taper_diagnostics::{Problem, Problems};
use taper_kernels::rng;

/// One of train, valid, test.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// `train`, `valid` or `test`.
    pub name: &'static str,
    /// The examples that are left, in the order of the files.
    pub examples: Vec<Example>,
    /// The same examples as tokens.
    pub tokenized: Vec<TokenizedExample>,
    /// For each of them what was seen while it was rendered.
    pub facts: Vec<EncodedFacts>,
    /// How the files were read, and what was skipped there or later.
    pub report: LoadReport,
    /// Examples that `truncation = "drop"` left out.
    pub dropped: usize,
    /// Examples that `truncation = "right"` cut.
    pub truncated: usize,
}

impl Split {
    /// Counts.
    pub fn stats(&self) -> DatasetStats {
        DatasetStats::of(&self.tokenized)
    }
}

/// The three sets of a recipe and all that was found.
#[derive(Debug, Clone, Default)]
pub struct PreparedData {
    /// To train on.
    pub train: Split,
    /// To choose the checkpoint by; empty when the recipe has none.
    pub valid: Split,
    /// To evaluate on; empty when the recipe has none.
    pub test: Split,
    /// Everything that is wrong or odd, with codes and places.
    pub problems: Problems,
}

impl PreparedData {
    /// The three sets that have examples.
    pub fn splits(&self) -> impl Iterator<Item = &Split> {
        [&self.train, &self.valid, &self.test].into_iter().filter(|split| !split.examples.is_empty())
    }

    /// `Err` when a problem stops the run.
    ///
    /// # Errors
    /// [`Error::Problems`] with all problems, warnings included.
    pub fn into_result(self) -> Result<Self> {
        if self.problems.has_errors() { Err(Error::Problems(self.problems)) } else { Ok(self) }
    }
}

/// Read, split, tokenise and check everything that `section` names. `folder` is the recipe's, `seed` the run's.
///
/// What is wrong stands in [`PreparedData::problems`]: all of it, for all files. Nothing is tokenised with settings that
/// are out of range.
pub fn prepare(section: &DataSection, folder: &Path, seed: u64, encoder: &dyn Encode) -> PreparedData {
    let mut problems = section.check();
    let settings_are_wrong = problems.has_errors();
    let mut read = |paths: Vec<PathBuf>| {
        load(&paths, section).unwrap_or_else(|error| {
            collect(error, &mut problems);
            Dataset::default()
        })
    };
    let mut train = read(section.train.resolve(folder));
    let mut valid = read(section.valid.resolve(folder));
    let test = read(section.test.resolve(folder));
    if settings_are_wrong {
        return PreparedData { problems, ..PreparedData::default() };
    }
    if section.validation_split > 0.0 && section.valid.is_empty() && !train.examples.is_empty() {
        let held_out = hold_out(&mut train.examples, section.validation_split, seed);
        if held_out.is_empty() || train.examples.is_empty() {
            problems.push(empty_split(section.validation_split, train.examples.len() + held_out.len()));
        }
        valid.examples = held_out;
    }
    if section.on_error == OnError::Skip {
        skip_leaks(&mut train, &[("valid", &valid.examples), ("test", &test.examples)]);
    }
    let [train, valid, test] = [("train", train), ("valid", valid), ("test", test)]
        .map(|(name, dataset)| tokenized_split(name, dataset, section, encoder, &mut problems));
    let mut prepared = PreparedData { train, valid, test, problems: Problems::new() };
    problems.extend(check_dataset(&prepared, encoder));
    prepared.problems = problems;
    prepared
}

/// Take `share` of the examples (at least one) out, by groups of equal inputs in an order drawn from `seed`. Both sides
/// keep the order of the files.
pub(crate) fn hold_out(examples: &mut Vec<Example>, share: f64, seed: u64) -> Vec<Example> {
    let group_of = groups(examples);
    let count = group_of.iter().max().map_or(0, |last| last + 1);
    let mut sizes = vec![0usize; count];
    for &group in &group_of {
        sizes[group] += 1;
    }
    let mut order: Vec<usize> = (0..count).collect();
    rng::shuffle(seed, rng::stream_of("data.validation_split"), &mut order);
    let wanted = ((examples.len() as f64 * share).round() as usize).max(1);
    let mut is_held_out = vec![false; count];
    let mut taken = 0;
    for group in order {
        if taken < wanted && taken + sizes[group] < examples.len() {
            is_held_out[group] = true;
            taken += sizes[group];
        }
    }
    let mut held_out = Vec::with_capacity(taken);
    let mut kept = Vec::with_capacity(examples.len() - taken);
    for (example, group) in std::mem::take(examples).into_iter().zip(group_of) {
        if is_held_out[group] { held_out.push(example) } else { kept.push(example) }
    }
    *examples = kept;
    held_out
}

fn empty_split(share: f64, examples: usize) -> Problem {
    let message = format!("`validation_split` {share} of {examples} examples leaves one side empty");
    let hint = "rows with the same input go to the same side; name a `valid` file instead";
    Problem::error("empty-validation", message).hint(hint)
}

fn skip_leaks(train: &mut Dataset, held_out: &[(&str, &[Example])]) {
    for (name, examples) in held_out {
        let leaks = leaking(&train.examples, examples);
        let mut leaks = leaks.into_iter().peekable();
        let mut index = 0;
        let skipped = &mut train.report.skipped;
        train.examples.retain(|example| {
            let leak = leaks.next_if(|(at, _)| *at == index);
            index += 1;
            if let Some((_, twin)) = leak {
                let message = format!("the input occurs in `{name}`: {}", examples[twin].place);
                skipped.push(Problem::error("split-overlap", message).at(example.place.location()));
            }
            leak.is_none()
        });
    }
}

fn tokenized_split(
    name: &'static str,
    dataset: Dataset,
    section: &DataSection,
    encoder: &dyn Encode,
    problems: &mut Problems,
) -> Split {
    let Dataset { examples, mut report } = dataset;
    problems.extend(report.notes.clone());
    let is_chat = |example: &&Example| matches!(example.kind, ExampleKind::Chat { .. });
    if let (false, Some(chat)) = (encoder.has_chat_template(), examples.iter().find(is_chat)) {
        problems.push(no_template(name, chat));
        return Split { name, ..Split::default() };
    }
    let tokenized = tokenize(&examples, encoder, section);
    report.skipped.extend(tokenized.skipped.clone());
    problems.extend(tokenized.problems.clone());
    let mut kept = tokenized.origins.iter().copied().peekable();
    let mut index = 0;
    let examples = examples
        .into_iter()
        .filter(|_| {
            let is_kept = kept.next_if_eq(&index).is_some();
            index += 1;
            is_kept
        })
        .collect();
    let (dropped, truncated) = (tokenized.dropped, tokenized.truncated);
    let Tokenized { examples: tokenized, facts, .. } = tokenized;
    Split { name, examples, tokenized, facts, report, dropped, truncated }
}

fn no_template(name: &str, first: &Example) -> Problem {
    let message = format!("`{name}` holds conversations, and the model has no chat template");
    let hint = "give a template with `model.chat_template`; prompt and completion, or Alpaca rows, can also be plain text: \
                `data.apply_chat_template = false`";
    Problem::error("needs-chat-template", message).at(first.place.location()).hint(hint)
}

fn collect(error: Error, problems: &mut Problems) {
    match error {
        Error::Problems(many) => problems.extend(many),
        one => problems.push(one.to_problem()),
    }
}
