//! Accuracy, precision, recall and F1 by class, and the confusion matrix, as scikit-learn computes them.

use super::exact::exact_match;
use crate::Normalize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a ratio without a denominator is, as a class that was never predicted has no precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroDivision {
    /// 0.
    #[default]
    Zero,
    /// 1.
    One,
}

impl ZeroDivision {
    fn ratio(self, numerator: u64, denominator: u64) -> f64 {
        match (self, denominator) {
            (Self::Zero, 0) => 0.0,
            (Self::One, 0) => 1.0,
            _ => numerator as f64 / denominator as f64,
        }
    }
}

/// The label that an answer names: the one that it equals, as far as `normalize` looks. `None` for any other text.
pub fn label_of<'a>(output: &str, labels: &'a [String], normalize: Normalize) -> Option<&'a str> {
    labels.iter().map(String::as_str).find(|label| exact_match(label, output, normalize))
}

/// How often each class was predicted for items of each class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// The classes, in the order of rows and columns.
    pub labels: Vec<String>,
    /// Rows: the expected class; columns: the predicted one, and at the end answers that name none of `labels`.
    pub counts: Vec<Vec<u64>>,
}

/// One class against all others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassScore {
    /// Right among those predicted to be of the class.
    pub precision: f64,
    /// Right among those that are of it.
    pub recall: f64,
    /// `2 tp / (2 tp + fp + fn)`.
    pub f1: f64,
    /// Items that are of it.
    pub support: u64,
}

/// Means over the classes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassMeans {
    /// Of the precisions.
    pub precision: f64,
    /// Of the recalls.
    pub recall: f64,
    /// Of the F1 scores.
    pub f1: f64,
}

impl Confusion {
    /// Count pairs of an expected label and the label predicted for it, if any. A prediction that is none of `labels` counts as
    /// none; an item whose expected label is none of them is left out, which scikit-learn does too with `labels=`.
    pub fn new<'a>(labels: &[String], pairs: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Self {
        Self::weighted(labels, pairs.into_iter().map(|(expected, predicted)| (expected, predicted, 1)))
    }

    /// The same with how often each pair counts, as a resample of a bootstrap needs it.
    pub fn weighted<'a>(
        labels: &[String],
        pairs: impl IntoIterator<Item = (&'a str, Option<&'a str>, u32)>,
    ) -> Self {
        let index: BTreeMap<&str, usize> =
            labels.iter().enumerate().map(|(i, label)| (label.as_str(), i)).collect();
        let mut counts = vec![vec![0; labels.len() + 1]; labels.len()];
        for (expected, predicted, weight) in pairs {
            let Some(&row) = index.get(expected) else { continue };
            let column = predicted.and_then(|label| index.get(label)).copied().unwrap_or(labels.len());
            counts[row][column] += u64::from(weight);
        }
        Self { labels: labels.to_vec(), counts }
    }

    /// Items counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// The share of right predictions. `None` without items.
    pub fn accuracy(&self) -> Option<f64> {
        let right: u64 = (0..self.labels.len()).map(|i| self.counts[i][i]).sum();
        (self.total() > 0).then(|| right as f64 / self.total() as f64)
    }

    /// Each class, in the order of the labels.
    pub fn by_class(&self, zero: ZeroDivision) -> Vec<ClassScore> {
        (0..self.labels.len())
            .map(|class| {
                let right = self.counts[class][class];
                let support: u64 = self.counts[class].iter().sum();
                let predicted: u64 = self.counts.iter().map(|row| row[class]).sum();
                ClassScore {
                    precision: zero.ratio(right, predicted),
                    recall: zero.ratio(right, support),
                    f1: zero.ratio(2 * right, support + predicted),
                    support,
                }
            })
            .collect()
    }

    /// The plain mean over the classes. `None` without a class.
    pub fn macro_mean(&self, zero: ZeroDivision) -> Option<ClassMeans> {
        mean(&self.by_class(zero), |_| 1.0)
    }

    /// The mean over the classes, each as often as it has items. `None` without items.
    pub fn weighted_mean(&self, zero: ZeroDivision) -> Option<ClassMeans> {
        mean(&self.by_class(zero), |class| class.support as f64)
    }
}

fn mean(classes: &[ClassScore], weight: impl Fn(&ClassScore) -> f64) -> Option<ClassMeans> {
    let total: f64 = classes.iter().map(&weight).sum();
    let of = |value: fn(&ClassScore) -> f64| {
        classes.iter().map(|class| weight(class) * value(class)).sum::<f64>() / total
    };
    (total > 0.0).then(|| ClassMeans {
        precision: of(|c| c.precision),
        recall: of(|c| c.recall),
        f1: of(|c| c.f1),
    })
}

/// How a score over a [`Confusion`] was computed; `score` is for example `macro_f1`.
pub fn classification_signature(score: &str, normalize: Normalize, zero: ZeroDivision) -> String {
    let zero = match zero {
        ZeroDivision::Zero => 0,
        ZeroDivision::One => 1,
    };
    format!(
        "classification|score:{score}|label:equal|normalize:{}|zero_division:{zero}|version:1",
        normalize.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["cat", "dog", "owl"].map(String::from).to_vec()
    }

    #[test]
    fn a_confusion_is_counted_by_hand() {
        let pairs = [
            ("cat", Some("cat")),
            ("cat", Some("dog")),
            ("dog", Some("dog")),
            ("dog", None),
            ("dog", Some("fish")),
            ("eel", Some("cat")),
        ];
        let confusion = Confusion::new(&labels(), pairs);
        assert_eq!(confusion.counts, [[1, 1, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]);
        assert_eq!(confusion.accuracy(), Some(0.4));
        let [cat, dog, owl] = confusion.by_class(ZeroDivision::Zero)[..] else { panic!() };
        assert_eq!((cat.precision, cat.recall, cat.support), (1.0, 0.5, 2));
        assert!((dog.f1 - 2.0 / 5.0).abs() < 1e-15 && owl.f1 == 0.0);
        let doubled = Confusion::weighted(&labels(), pairs.map(|(e, p)| (e, p, 2)));
        assert_eq!(doubled.macro_mean(ZeroDivision::Zero), confusion.macro_mean(ZeroDivision::Zero));
        assert_eq!(Confusion::new(&[], []).macro_mean(ZeroDivision::Zero), None);
        assert_eq!(Confusion::new(&labels(), []).accuracy(), None);
    }

    #[test]
    fn an_answer_names_a_label_or_none() {
        assert_eq!(label_of(" Cat.", &labels(), Normalize::Lenient), Some("cat"));
        assert_eq!(label_of("a cat", &labels(), Normalize::Lenient), None);
    }
}
