//! What an item is to those who score it: no tokens, no prompt of a certain model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use taper_data::{RowPlace, TouchKind};

/// One item of an evaluation, the same for every candidate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ItemFacts {
    /// `file:line`, the file without its folder.
    pub id: String,
    /// What a person asked: the last turn before the answer, or the prompt.
    pub input: String,
    /// The whole prompt as the base sees it; empty for plain text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// The answer; `None` for plain text.
    pub expected: Option<String>,
    /// Choices, where they are scored; the expected answer is one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// The values by which scores are told apart, by the fields' names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slices: BTreeMap<String, String>,
    /// What the item belongs to, where items are not independent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// How its input stands among the training examples, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touched: Option<TouchKind>,
}

impl ItemFacts {
    /// The index of the expected answer among the choices.
    pub fn right_choice(&self) -> Option<usize> {
        let expected = self.expected.as_deref()?;
        self.choices.iter().position(|choice| choice.trim() == expected.trim())
    }
}

/// A row's name, without the folder: results of the same data are then equal wherever it lies.
pub(crate) fn id_of(place: &RowPlace) -> String {
    let file = place.file.file_name().unwrap_or(place.file.as_os_str()).to_string_lossy();
    match place.element {
        Some(element) => format!("{file}:{}[{element}]", place.line),
        None => format!("{file}:{}", place.line),
    }
}
