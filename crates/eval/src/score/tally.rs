//! What one item adds to a metric, and what the items give together.

use crate::metrics::bleu::BleuCounts;
use crate::metrics::chrf::{Chrf, ChrfCounts};
use crate::metrics::classification::{Confusion, ZeroDivision};
use crate::metrics::extraction::FieldCounts;
use crate::metrics::json_fields::JsonFields;
use crate::metrics::loss::LossSum;
use crate::{Metric, Pooling};

/// What one item adds to one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tally {
    /// A score whose mean is the value.
    Score(f64),
    /// N-grams.
    Bleu(BleuCounts),
    /// N-grams of characters.
    Chrf(ChrfCounts),
    /// Losses.
    Loss(LossSum),
    /// Fields scored by a schema.
    Fields(FieldCounts),
    /// Fields scored without one.
    JsonFields(JsonFields),
    /// The expected label and the one that was named, by their places among the labels.
    Label(usize, Option<usize>),
}

impl Tally {
    /// The item's own value, by which two candidates are compared on it.
    pub fn value(&self, metric: Metric) -> f64 {
        match self {
            Self::Score(score) => *score,
            Self::Bleu(counts) => counts.sentence_bleu(),
            Self::Chrf(counts) => counts.score(),
            Self::Loss(losses) if metric == Metric::BitsPerByte => losses.bits_per_byte().unwrap_or(f64::NAN),
            Self::Loss(losses) => losses.perplexity().unwrap_or(f64::NAN),
            Self::Fields(counts) => counts.f1(),
            Self::JsonFields(fields) => fields.f1(),
            Self::Label(expected, named) => f64::from(u8::from(Some(*expected) == *named)),
        }
    }
}

/// The metric over items that count as often as said: the value of all of them, or of a resample. `None` where no item counts or there
/// is no value.
pub fn pooled<'a>(
    metric: Metric,
    labels: &[String],
    items: impl Iterator<Item = (&'a Tally, u32)>,
) -> Option<f64> {
    let mut items = items.filter(|(_, weight)| *weight > 0).peekable();
    items.peek()?;
    match metric.pooling() {
        Pooling::Share | Pooling::Mean => {
            let (mut sum, mut n) = (0.0, 0.0);
            for (tally, weight) in items {
                sum += f64::from(weight) * tally.value(metric);
                n += f64::from(weight);
            }
            Some(sum / n)
        }
        Pooling::Corpus => corpus(metric, labels, items),
    }
}

fn corpus<'a>(
    metric: Metric,
    labels: &[String],
    items: impl Iterator<Item = (&'a Tally, u32)>,
) -> Option<f64> {
    let mut bleu = BleuCounts::default();
    let mut chrf = ChrfCounts::empty(Chrf::Chrf);
    let mut losses = LossSum::default();
    let (mut equal, mut either) = (0u64, 0u64);
    let mut confusion =
        Confusion { labels: Vec::new(), counts: vec![vec![0; labels.len() + 1]; labels.len()] };
    for (tally, weight) in items {
        match tally {
            Tally::Score(_) => {}
            Tally::Bleu(counts) => bleu += counts.times(weight),
            Tally::Chrf(counts) => chrf += counts.times(weight),
            Tally::Loss(sum) => losses += sum.times(weight),
            Tally::Fields(counts) => {
                equal += u64::from(weight) * 2 * counts.equal;
                either += u64::from(weight)
                    * (2 * (counts.equal + counts.wrong) + counts.missing + counts.invented);
            }
            Tally::JsonFields(fields) => {
                equal += u64::from(weight) * 2 * fields.equal as u64;
                either += u64::from(weight) * (fields.expected + fields.given) as u64;
            }
            Tally::Label(expected, named) => {
                confusion.counts[*expected][named.unwrap_or(labels.len())] += u64::from(weight);
            }
        }
    }
    match metric {
        Metric::Bleu => Some(bleu.corpus_bleu()),
        Metric::Chrf => Some(chrf.score()),
        Metric::Perplexity => losses.perplexity(),
        Metric::BitsPerByte => losses.bits_per_byte(),
        Metric::MacroF1 => {
            confusion.labels = labels.to_vec();
            confusion.macro_mean(ZeroDivision::Zero).map(|mean| mean.f1)
        }
        // Nothing expected and nothing given is all right.
        _ => Some(if either == 0 { 1.0 } else { equal as f64 / either as f64 }),
    }
}
