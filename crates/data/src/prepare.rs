//! From the `[data]` section to tokenised sets, with everything that is wrong with them.

use crate::check::check_dataset;
use crate::encode::{Encode, EncodedFacts};
use crate::error::{Error, Result};
use crate::example::{Example, RowPlace};
use crate::load::{LoadReport, read};
use crate::overlap::{ExampleKeys, groups, leaking};
use crate::section::{DataSection, OnError};
use crate::stats::DatasetStats;
use crate::stream::{Stream, Streamed, StreamedRow};
use crate::token_cache::{Reuse, TokenCache};
use crate::tokenize::{Outcome, Tokenized, TokenizedExample};
use std::path::{Path, PathBuf};
use taper_diagnostics::{Problem, Problems};
use taper_kernels::rng;

/// One of train, valid, test.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// `train`, `valid` or `test`.
    pub name: &'static str,
    /// The examples of `test` that are left, in the order of the files: an evaluation asks for their words. Those of the other
    /// sets are not kept.
    pub examples: Vec<Example>,
    /// The examples that are left as tokens, in the order of the files.
    pub tokenized: Vec<TokenizedExample>,
    /// For each of them by what it is compared with others.
    pub keys: Vec<ExampleKeys>,
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
    /// Examples whose tokens an earlier run had kept.
    pub reused: usize,
}

impl PreparedData {
    /// The three sets that have examples.
    pub fn splits(&self) -> impl Iterator<Item = &Split> {
        [&self.train, &self.valid, &self.test].into_iter().filter(|split| !split.tokenized.is_empty())
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
    prepare_with(section, folder, seed, encoder, PrepareOptions::default())
}

/// What a caller may ask for beside the recipe.
#[derive(Debug, Clone, Copy, Default)]
pub struct PrepareOptions<'a> {
    /// Where tokens of an earlier run are, and are kept for the next, unless `data.cache` is off. What comes out is the same, but
    /// for a problem with the code `token-cache` where a kept file is broken or none can be written.
    pub cache: Option<&'a TokenCache>,
    /// Names of fields that the examples of `test` are to have, as for [`crate::load_with_fields`]; in no file are they told as
    /// unread. No token depends on them, and neither does a name in the cache.
    pub fields: &'a [String],
}

/// [`prepare`] with options.
pub fn prepare_with(
    section: &DataSection,
    folder: &Path,
    seed: u64,
    encoder: &dyn Encode,
    options: PrepareOptions<'_>,
) -> PreparedData {
    let PrepareOptions { cache, fields } = options;
    let mut problems = section.check();
    if problems.has_errors() {
        for paths in [&section.train, &section.valid, &section.test] {
            if let Err(error) = read(&paths.resolve(folder), section, fields, &mut |_| {}) {
                collect(error, &mut problems);
            }
        }
        return PreparedData { problems, ..PreparedData::default() };
    }
    let reuse = Reuse::new(cache.filter(|_| section.cache), encoder);
    let mut stream = Stream { section, encoder, reuse };
    let mut streamed = |paths: Vec<PathBuf>, keep_words| {
        stream.read(&paths, fields, keep_words).unwrap_or_else(|error| {
            collect(error, &mut problems);
            Streamed::default()
        })
    };
    let mut train = streamed(section.train.resolve(folder), false);
    let mut valid = streamed(section.valid.resolve(folder), false);
    let test = streamed(section.test.resolve(folder), true);
    if section.validation_split > 0.0 && section.valid.is_empty() && !train.rows.is_empty() {
        let held_out = hold_out(&mut train.rows, section.validation_split, seed);
        if held_out.is_empty() || train.rows.is_empty() {
            problems.push(empty_split(section.validation_split, train.rows.len() + held_out.len()));
        }
        valid.rows = held_out;
    }
    if section.on_error == OnError::Skip {
        skip_leaks(&mut train, &[("valid", &valid.rows), ("test", &test.rows)]);
    }
    let [train, valid, test] = [("train", train), ("valid", valid), ("test", test)]
        .map(|(name, streamed)| split(name, streamed, section, &mut problems));
    let (reused, of_cache) = stream.reuse.finish();
    problems.extend(of_cache);
    let mut prepared = PreparedData { train, valid, test, problems: Problems::new(), reused };
    problems.extend(check_dataset(&prepared, encoder, section.overlap));
    prepared.problems = problems;
    prepared
}

/// Take `share` of the rows (at least one) out, by groups of equal inputs in an order drawn from `seed`. Both sides keep the
/// order of the files.
fn hold_out(rows: &mut Vec<StreamedRow>, share: f64, seed: u64) -> Vec<StreamedRow> {
    let group_of = groups(rows);
    let count = group_of.iter().max().map_or(0, |last| last + 1);
    let mut sizes = vec![0usize; count];
    for &group in &group_of {
        sizes[group] += 1;
    }
    let mut order: Vec<usize> = (0..count).collect();
    rng::shuffle(seed, rng::stream_of("data.validation_split"), &mut order);
    let wanted = ((rows.len() as f64 * share).round() as usize).max(1);
    let mut is_held_out = vec![false; count];
    let mut taken = 0;
    for group in order {
        if taken < wanted && taken + sizes[group] < rows.len() {
            is_held_out[group] = true;
            taken += sizes[group];
        }
    }
    let mut held_out = Vec::with_capacity(taken);
    let mut kept = Vec::with_capacity(rows.len() - taken);
    for (row, group) in std::mem::take(rows).into_iter().zip(group_of) {
        if is_held_out[group] { held_out.push(row) } else { kept.push(row) }
    }
    *rows = kept;
    held_out
}

fn empty_split(share: f64, examples: usize) -> Problem {
    let message = format!("`validation_split` {share} of {examples} examples leaves one side empty");
    let hint = "rows with the same input go to the same side; name a `valid` file instead";
    Problem::error("empty-validation", message).hint(hint)
}

fn skip_leaks(train: &mut Streamed, held_out: &[(&str, &[StreamedRow])]) {
    for (name, rows) in held_out {
        let leaks = leaking(&train.rows, rows);
        let mut leaks = leaks.into_iter().peekable();
        let mut index = 0;
        let skipped = &mut train.report.skipped;
        train.rows.retain(|row| {
            let leak = leaks.next_if(|(at, _)| *at == index);
            index += 1;
            if let Some((_, twin)) = leak {
                let message = format!("the input occurs in `{name}`: {}", rows[twin].keys.place);
                skipped.push(Problem::error("split-overlap", message).at(row.keys.place.location()));
            }
            leak.is_none()
        });
    }
}

fn split(name: &'static str, streamed: Streamed, section: &DataSection, problems: &mut Problems) -> Split {
    let Streamed { rows, mut report } = streamed;
    problems.extend(report.notes.clone());
    let without_template = rows.iter().find_map(|row| match &row.outcome {
        Outcome::NoTemplate(place) => Some(place),
        _ => None,
    });
    if let Some(first) = without_template {
        problems.push(no_template(name, first));
        return Split { name, ..Split::default() };
    }
    let mut tokenized = Tokenized::default();
    let (mut keys, mut examples) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        if tokenized.add(row.outcome, section) {
            keys.push(row.keys);
            examples.extend(row.example.map(|example| *example));
        }
    }
    tokenized.finish(section);
    let Tokenized { examples: tokens, facts, skipped, problems: found, dropped, truncated, .. } = tokenized;
    report.skipped.extend(skipped);
    problems.extend(found);
    Split { name, examples, tokenized: tokens, keys, facts, report, dropped, truncated }
}

fn no_template(name: &str, first: &RowPlace) -> Problem {
    let message = format!("`{name}` holds conversations, and the model has no chat template");
    let hint = "give a template with `model.chat_template`; prompt and completion, or Alpaca rows, can also be plain text: \
                `data.apply_chat_template = false`";
    Problem::error("needs-chat-template", message).at(first.location()).hint(hint)
}

fn collect(error: Error, problems: &mut Problems) {
    match error {
        Error::Problems(many) => problems.extend(many),
        one => problems.push(one.to_problem()),
    }
}
