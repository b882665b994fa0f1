//! Extraction into JSON, scored against a JSON Schema: is the answer valid, and which of its fields are right, wrong, missing or
//! invented.
//!
//! A *field* is a value that is neither object nor list, named by its path with lists as `[]`: `patient.name`, `items[].price`; a key
//! that is neither expected nor in the schema is `*`. How it is compared follows from its schema (see [`Comparator`]) or is stated there
//! by `x-compare`. With E fields equal, W wrong, M missing and I invented, precision is `E / (E + W + I)`, recall `E / (E + W + M)` and
//! F1 `2 E / (2 E + 2 W + M + I)`.

mod assign;
mod dates;
mod fields;
mod schema;

pub use schema::{Comparator, SchemaError};

use super::numeric::Tolerance;
use fields::{Outcome, Walk};
use schema::FieldSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Violations of the schema that are told of one answer.
const MOST_VIOLATIONS: usize = 10;

/// What is overlooked between an answer and the fields in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExtractionOptions {
    /// How near a number must be where its field says nothing of it.
    pub tolerance: Tolerance,
    /// A field that is `null` counts as one that is not there.
    pub null_is_absent: bool,
    /// A Markdown fence around the whole answer is taken off.
    pub strip_fence: bool,
}

impl Default for ExtractionOptions {
    fn default() -> Self {
        Self { tolerance: Tolerance::default(), null_is_absent: true, strip_fence: false }
    }
}

/// The scorer of one schema.
#[derive(Debug)]
pub struct Extraction {
    schema: FieldSchema,
    options: ExtractionOptions,
}

/// How often a field came out which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FieldCounts {
    /// Expected and given, equal.
    pub equal: u64,
    /// Expected and given, not equal.
    pub wrong: u64,
    /// Expected and not given.
    pub missing: u64,
    /// Given and not expected.
    pub invented: u64,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DocumentScore {
    /// Whether it is JSON.
    pub is_json: bool,
    /// Whether it is valid by the schema.
    pub is_valid: bool,
    /// Where it is not and by which keyword, the first few; without the answer's own values.
    pub violations: Vec<String>,
    /// Its fields by their paths.
    pub fields: BTreeMap<String, FieldCounts>,
}

/// Several answers together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FieldTable {
    /// Answers.
    pub documents: u64,
    /// Those that are JSON.
    pub json: u64,
    /// Those that are valid by the schema.
    pub valid: u64,
    /// Those with every field equal and none invented.
    pub correct: u64,
    /// Fields by their paths.
    pub fields: BTreeMap<String, FieldCounts>,
}

impl Extraction {
    /// # Errors
    /// When `schema` is no JSON Schema, refers to a document outside itself (nothing is fetched), or has an unknown `x-compare`.
    pub fn new(schema: &Value, options: ExtractionOptions) -> Result<Self, SchemaError> {
        Ok(Self { schema: FieldSchema::new(schema)?, options })
    }

    /// Score an answer. One that is not JSON has no fields: all that are expected are missing.
    pub fn score(&self, expected: &Value, output: &str) -> DocumentScore {
        let text = if self.options.strip_fence { without_fence(output) } else { output.trim() };
        let given: Option<Value> = serde_json::from_str(text).ok();
        let violations =
            given.as_ref().map_or_else(Vec::new, |given| self.schema.violations(given, MOST_VIOLATIONS));
        let mut walk = Walk::new(&self.schema, self.options.tolerance, self.options.null_is_absent);
        let mut fields: BTreeMap<String, FieldCounts> = BTreeMap::new();
        for (path, outcome) in walk.compare(expected, given.as_ref()) {
            let counts = fields.entry(path).or_default();
            match outcome {
                Outcome::Equal => counts.equal += 1,
                Outcome::Wrong => counts.wrong += 1,
                Outcome::Missing => counts.missing += 1,
                Outcome::Invented => counts.invented += 1,
            }
        }
        let is_json = given.is_some();
        DocumentScore { is_json, is_valid: is_json && violations.is_empty(), violations, fields }
    }

    /// Where a value breaks the schema, as for an expected answer before it is trusted.
    pub fn violations(&self, value: &Value) -> Vec<String> {
        self.schema.violations(value, MOST_VIOLATIONS)
    }

    /// How `score`, for example `field_f1`, is computed; `schema` names the schema, for example by its hash.
    pub fn signature(&self, score: &str, schema: &str) -> String {
        let yes = |flag| if flag { "yes" } else { "no" };
        let Tolerance { absolute, relative } = self.options.tolerance;
        format!(
            "extraction|score:{score}|schema:{schema}|text:{}|abs:{absolute}|rel:{relative}|null_absent:{}|fence:{}|most_paired:{}|version:1",
            schema::TEXT.name(),
            yes(self.options.null_is_absent),
            yes(self.options.strip_fence),
            fields::MOST_PAIRED
        )
    }
}

impl FieldCounts {
    /// Equal among those given; 1 where none was given.
    pub fn precision(self) -> f64 {
        share(self.equal, self.equal + self.wrong + self.invented)
    }

    /// Equal among those expected; 1 where none was expected.
    pub fn recall(self) -> f64 {
        share(self.equal, self.equal + self.wrong + self.missing)
    }

    /// Their harmonic mean; 1 where there is no field on either side.
    pub fn f1(self) -> f64 {
        share(2 * self.equal, 2 * (self.equal + self.wrong) + self.missing + self.invented)
    }

    /// Fields expected.
    pub fn support(self) -> u64 {
        self.equal + self.wrong + self.missing
    }

    fn times(self, weight: u64) -> Self {
        Self {
            equal: self.equal * weight,
            wrong: self.wrong * weight,
            missing: self.missing * weight,
            invented: self.invented * weight,
        }
    }
}

impl AddAssign for FieldCounts {
    fn add_assign(&mut self, other: Self) {
        self.equal += other.equal;
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.invented += other.invented;
    }
}

impl DocumentScore {
    /// All its fields together.
    pub fn total(&self) -> FieldCounts {
        sum(&self.fields)
    }

    /// Whether it is JSON with every field equal and none invented.
    pub fn is_correct(&self) -> bool {
        let total = self.total();
        self.is_json && total.wrong + total.missing + total.invented == 0
    }
}

impl FieldTable {
    /// The answers together.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a DocumentScore>) -> Self {
        let mut table = Self::default();
        documents.into_iter().for_each(|document| table.add(document, 1));
        table
    }

    /// Count an answer `weight` times, as a resample of a bootstrap needs it.
    pub fn add(&mut self, document: &DocumentScore, weight: u32) {
        let weight = u64::from(weight);
        self.documents += weight;
        self.json += weight * u64::from(document.is_json);
        self.valid += weight * u64::from(document.is_valid);
        self.correct += weight * u64::from(document.is_correct());
        for (path, counts) in &document.fields {
            *self.fields.entry(path.clone()).or_default() += counts.times(weight);
        }
    }

    /// All fields together: precision, recall and F1 of it are the micro averages.
    pub fn total(&self) -> FieldCounts {
        sum(&self.fields)
    }

    /// The mean of the F1 scores of the fields that are expected at least once; `None` where none is. Fields that are invented
    /// only weigh in [`FieldTable::total`].
    pub fn macro_f1(&self) -> Option<f64> {
        let scores: Vec<f64> =
            self.fields.values().filter(|counts| counts.support() > 0).map(|counts| counts.f1()).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// The share of answers that are right as a whole. `None` without answers.
    pub fn document_rate(&self) -> Option<f64> {
        (self.documents > 0).then(|| self.correct as f64 / self.documents as f64)
    }

    /// The share of answers that are valid by the schema. `None` without answers.
    pub fn valid_rate(&self) -> Option<f64> {
        (self.documents > 0).then(|| self.valid as f64 / self.documents as f64)
    }
}

fn sum(fields: &BTreeMap<String, FieldCounts>) -> FieldCounts {
    let mut total = FieldCounts::default();
    fields.values().for_each(|counts| total += *counts);
    total
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// What stands between a first line of three backticks, perhaps with a language, and a last line of them.
fn without_fence(output: &str) -> &str {
    let text = output.trim();
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    inner.and_then(|inner| inner.split_once('\n')).map_or(text, |(_, body)| body.trim())
}

#[cfg(test)]
mod tests;
