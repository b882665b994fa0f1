//! Texts of single items at the level that is asked for.

use super::{SampleLine, TrainingSample};
use crate::Redaction;
use taper_hub::Fingerprint;

/// Hexadecimal digits of a text's hash.
const DIGITS: usize = 12;

/// What makes a text fit to be shown.
pub(super) struct Redactor {
    level: Redaction,
    /// Without it, short texts could be found by their hashes: it is the hash of all samples, which only their owner has.
    key: Fingerprint,
}

impl Redactor {
    /// `samples` is the whole of `samples.jsonl`.
    pub(super) fn new(level: Redaction, samples: &str) -> Self {
        Self { level, key: Fingerprint::of_bytes(samples.as_bytes()) }
    }

    fn text(&self, text: &mut String) {
        *text = match self.level {
            Redaction::Full => return,
            Redaction::Redacted => text.chars().map(shape).collect(),
            Redaction::Hashed | Redaction::Aggregate => {
                let keyed = format!("{}\0{text}", self.key.as_str());
                Fingerprint::of_bytes(keyed.as_bytes()).as_str()[..DIGITS].to_owned()
            }
        };
    }

    /// A sample; `None` where no single item is shown.
    pub(super) fn sample(&self, mut line: SampleLine) -> Option<SampleLine> {
        if self.level == Redaction::Aggregate {
            return None;
        }
        let item = &mut line.item;
        let texts = [&mut item.input, &mut item.prompt]
            .into_iter()
            .chain(&mut item.expected)
            .chain(&mut item.choices);
        // By what items belong together is a name from the data, as of a patient; it is needed to tell groups apart only.
        texts.chain(&mut item.cluster).for_each(|text| self.text(text));
        for stored in line.candidates.values_mut() {
            let texts =
                stored.response.output.iter_mut().chain(&mut stored.answer).chain(&mut stored.response.error);
            texts.for_each(|text| self.text(text));
        }
        Some(line)
    }

    /// A training sample; `None` where not even the shape of a text is shown.
    pub(super) fn training(&self, mut sample: TrainingSample) -> Option<TrainingSample> {
        if self.level < Redaction::Redacted {
            return None;
        }
        sample.tokens.iter_mut().for_each(|token| self.text(&mut token.text));
        Some(sample)
    }
}

fn shape(c: char) -> char {
    match c {
        c if c.is_numeric() => '0',
        c if c.is_alphabetic() => 'x',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_shape_or_a_keyed_hash_or_nothing() {
        let of = |level, samples: &str| {
            let mut text = "Anna Müller, 12. März".to_owned();
            Redactor::new(level, samples).text(&mut text);
            text
        };
        assert_eq!(of(Redaction::Full, ""), "Anna Müller, 12. März");
        assert_eq!(of(Redaction::Redacted, ""), "xxxx xxxxxx, 00. xxxx");
        let hash = of(Redaction::Hashed, "a");
        assert!(
            hash.len() == DIGITS && hash == of(Redaction::Hashed, "a") && hash != of(Redaction::Hashed, "b")
        );
        let line =
            SampleLine { eval: "test".into(), item: Default::default(), candidates: Default::default() };
        assert!(Redactor::new(Redaction::Aggregate, "").sample(line).is_none());
    }
}
