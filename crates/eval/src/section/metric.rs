//! What can be measured.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What can be measured. Each needs something of a candidate: an answer, the losses of given tokens, the likelihoods of choices, or
/// what a judge says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of answers that equal the expected one (see `normalize`). What a reasoning model writes first in a
    /// `<think>` block is not part of its answer, for this and every other metric of answers.
    ExactMatch,
    /// Share of answers that equal the expected one after SQuAD's normalisation: no case, no ASCII punctuation, no articles.
    NormalisedMatch,
    /// Mean F1 over the words of answer and expected answer, after SQuAD's normalisation (v2.0).
    TokenF1,
    /// Mean F1 of the longest common subsequence of words, as Google's rouge-score computes `rougeL`, without stemming.
    RougeL,
    /// BLEU of all answers together (0 to 100), as sacrebleu computes it: tokeniser 13a, exponential smoothing.
    Bleu,
    /// chrF of all answers together (0 to 100), as sacrebleu computes it.
    Chrf,
    /// Share of answers in which the expected one stands (see `normalize`).
    Contains,
    /// Share of answers that `pattern` matches; with a group in it, of which the group equals the expected answer.
    Regex,
    /// Share of answers of which the number equals the expected one's (see `number` and `tolerance`).
    Numeric,
    /// Share of answers that name the expected label. An answer that is none of `labels` is wrong.
    Accuracy,
    /// Mean F1 over the labels.
    MacroF1,
    /// Share of items of which the likeliest of `choices` is the expected one: lm-evaluation-harness's `acc`. Nothing is written,
    /// each choice is scored as the answer.
    Acc,
    /// The same with each log-likelihood divided by the choice's characters: lm-evaluation-harness's `acc_norm`.
    AccNorm,
    /// `exp` of the mean loss over the supervised tokens of the expected answers; lower is better.
    Perplexity,
    /// Loss in bits over the bytes of the expected answers; lower is better, and comparable between tokenizers.
    BitsPerByte,
    /// Micro F1 of the fields of JSON answers, without a schema: twice the equal fields over all fields expected and given. An answer
    /// that is not JSON has no fields. Needs expected answers that are JSON objects or lists.
    JsonFields,
    /// Share of answers that are JSON and valid by `schema`.
    JsonValid,
    /// Micro F1 of the fields of JSON answers, each compared as `schema` says (numbers, dates, texts, enumerations, aligned lists).
    FieldF1,
    /// Share of JSON answers with every field right and none invented, by `schema`.
    DocumentMatch,
    /// Share of items on which a judge prefers the answer to the base's in both orders, ties counting half.
    Judge,
}

/// What a metric needs of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// An answer, and an expected one to hold it against.
    Answer,
    /// The losses of the expected answer's tokens.
    Losses,
    /// The log-likelihood of each choice.
    Choices,
    /// A judge.
    Judge,
}

/// How the scores of items become one value, and how two candidates' are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of zeros and ones: McNemar's exact test, Wilson's and Tango's intervals.
    Share,
    /// The mean of scores: the permutation test of signs, Student's interval.
    Mean,
    /// Counts are summed, then scored: the test swaps the candidates' answers, intervals are of the bootstrap.
    Corpus,
}

/// In what a value is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// 0 to 1.
    Share,
    /// 0 to 100.
    Percent,
    /// A number without bounds; changes are told as ratios.
    Plain,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::ExactMatch,
        Self::NormalisedMatch,
        Self::TokenF1,
        Self::RougeL,
        Self::Bleu,
        Self::Chrf,
        Self::Contains,
        Self::Regex,
        Self::Numeric,
        Self::Accuracy,
        Self::MacroF1,
        Self::Acc,
        Self::AccNorm,
        Self::Perplexity,
        Self::BitsPerByte,
        Self::JsonFields,
        Self::JsonValid,
        Self::FieldF1,
        Self::DocumentMatch,
        Self::Judge,
    ];

    /// The name in recipes and files.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// The name in reports.
    pub fn title(self) -> &'static str {
        self.words().1
    }

    /// The metric of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::ExactMatch => ("exact_match", "exact match"),
            Self::NormalisedMatch => ("normalised_match", "normalised match"),
            Self::TokenF1 => ("token_f1", "token F1"),
            Self::RougeL => ("rouge_l", "ROUGE-L"),
            Self::Bleu => ("bleu", "BLEU"),
            Self::Chrf => ("chrf", "chrF"),
            Self::Contains => ("contains", "contains the answer"),
            Self::Regex => ("regex", "matches the pattern"),
            Self::Numeric => ("numeric", "number right"),
            Self::Accuracy => ("accuracy", "accuracy"),
            Self::MacroF1 => ("macro_f1", "macro F1"),
            Self::Acc => ("acc", "multiple choice (acc)"),
            Self::AccNorm => ("acc_norm", "multiple choice (acc_norm)"),
            Self::Perplexity => ("perplexity", "perplexity"),
            Self::BitsPerByte => ("bits_per_byte", "bits per byte"),
            Self::JsonFields => ("json_fields", "JSON fields (micro F1)"),
            Self::JsonValid => ("json_valid", "valid JSON"),
            Self::FieldF1 => ("field_f1", "fields (micro F1)"),
            Self::DocumentMatch => ("document_match", "documents right"),
            Self::Judge => ("judge", "preferred by the judge"),
        }
    }

    /// What a candidate must give.
    pub fn needs(self) -> Needs {
        match self {
            Self::Perplexity | Self::BitsPerByte => Needs::Losses,
            Self::Acc | Self::AccNorm => Needs::Choices,
            Self::Judge => Needs::Judge,
            _ => Needs::Answer,
        }
    }

    /// How items become a value.
    pub fn pooling(self) -> Pooling {
        match self {
            Self::TokenF1 | Self::RougeL | Self::Judge => Pooling::Mean,
            Self::Bleu
            | Self::Chrf
            | Self::MacroF1
            | Self::Perplexity
            | Self::BitsPerByte
            | Self::JsonFields
            | Self::FieldF1 => Pooling::Corpus,
            _ => Pooling::Share,
        }
    }

    /// In what a value is told.
    pub fn scale(self) -> Scale {
        match self {
            Self::Bleu | Self::Chrf => Scale::Percent,
            Self::Perplexity | Self::BitsPerByte => Scale::Plain,
            _ => Scale::Share,
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        self.scale() != Scale::Plain
    }

    /// Whether it is scored by the section's `schema`.
    pub fn needs_schema(self) -> bool {
        matches!(self, Self::JsonValid | Self::FieldF1 | Self::DocumentMatch)
    }

    /// Whether it is scored by labels.
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::Accuracy | Self::MacroF1)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is overlooked when answers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Nothing: every character counts.
    None,
    /// Runs of white space count as one space, at the ends as nothing.
    #[default]
    Whitespace,
    /// As "whitespace", and case and ASCII punctuation do not count.
    Lenient,
}

impl Normalize {
    /// The name in recipes and signatures.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Whitespace => "whitespace",
            Self::Lenient => "lenient",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_found_by_the_name_that_a_recipe_gives_it() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
            assert_eq!(Metric::of_name(metric.name()), Some(metric));
        }
        assert_eq!(Metric::of_name("rouge"), None);
    }
}
