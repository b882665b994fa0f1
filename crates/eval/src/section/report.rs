//! The `[report]` section of a recipe: what reports say of single items.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much reports say of single items. The texts themselves stay in `eval/samples.jsonl` in the run's folder, from which
/// `taper verify` computes the scores again; that file is no report and is not for sharing where the data are confidential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSection {
    /// Of `report.html`: "full" shows texts; "redacted" their shape, with letters as `x` and digits as `0`; "hashed" a keyed hash of
    /// each, so that equal texts can be seen to be equal; "aggregate" no single item.
    pub level: Redaction,
    /// Of what is made to be shared: `report.md`, `junit.xml`, annotations and step summaries of CI. "aggregate" names no single item;
    /// "hashed" names items by file and line, without a word of their texts.
    pub shared: SharedLevel,
}

/// How much of a text is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redaction {
    /// No single item.
    Aggregate,
    /// A keyed hash of each text.
    Hashed,
    /// Each text with letters as `x` and digits as `0`.
    Redacted,
    /// Texts.
    #[default]
    Full,
}

/// How much of single items is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SharedLevel {
    /// No single item.
    #[default]
    Aggregate,
    /// Items by file and line.
    Hashed,
}
