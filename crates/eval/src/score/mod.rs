//! From what a candidate wrote to what it scores: pure functions of the evaluation's settings, the item and the response, so that
//! stored responses give the same scores on any machine, without the model.

mod tally;

pub use tally::{Tally, pooled};

use crate::metrics::bleu::{BleuCounts, corpus_bleu_signature};
use crate::metrics::choice::{LengthNorm, chosen};
use crate::metrics::chrf::{Chrf, ChrfCounts};
use crate::metrics::classification::{ZeroDivision, classification_signature, label_of};
use crate::metrics::contains::{Pattern, contains, contains_signature};
use crate::metrics::exact::{exact_match, normalized, without_thoughts};
use crate::metrics::extraction::{DocumentScore, Extraction, ExtractionOptions};
use crate::metrics::json_fields::json_fields;
use crate::metrics::loss::{bits_per_byte_signature, perplexity_signature};
use crate::metrics::rouge::RougeL;
use crate::metrics::squad::{
    SquadVersion, normalised_match, normalised_match_signature, token_f1, token_f1_signature,
};
use crate::remote::JudgeSection;
use crate::{Error, EvalSection, ItemFacts, Metric, Needs, Response, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taper_data::PathList;
use taper_hub::Fingerprint;

/// What scoring needs besides the responses; it is stored with the results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scoring {
    /// The evaluation's settings.
    pub section: EvalSection,
    /// The schema of the answers, where metrics ask for one.
    pub schema: Option<Value>,
    /// The labels, where metrics ask for them: the section's, or those among the expected answers.
    pub labels: Vec<String>,
}

/// Scores responses.
#[derive(Debug)]
pub struct Scorer {
    scoring: Scoring,
    pattern: Option<Pattern>,
    extraction: Option<Extraction>,
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ItemScore {
    /// What it adds to each metric that it was measured by.
    pub tallies: BTreeMap<Metric, Tally>,
    /// What was taken for the answer, where it is not the whole output.
    pub answer: Option<String>,
    /// The label that was named.
    pub label: Option<String>,
    /// The fields of a JSON answer.
    pub document: Option<DocumentScore>,
}

impl Scoring {
    /// The settings with the labels that `items` have, where the section names none.
    pub fn new<'a>(
        section: &EvalSection,
        schema: Option<Value>,
        items: impl Iterator<Item = &'a ItemFacts>,
    ) -> Self {
        let mut labels = section.labels.clone();
        if labels.is_empty() && section.metrics.iter().any(|metric| metric.needs_labels()) {
            labels = items
                .filter_map(|item| item.expected.as_deref())
                .map(|label| label.trim().to_owned())
                .collect();
            labels.sort();
            labels.dedup();
        }
        // Where the files lay is no part of what is scored: results of the same data are then equal wherever they are made.
        let bare = |list: &PathList| {
            list.paths().iter().filter_map(|path| path.file_name()).map(PathBuf::from).collect()
        };
        let section = EvalSection {
            data: bare(&section.data),
            few_shot_data: bare(&section.few_shot_data),
            schema: section.schema.as_deref().and_then(Path::file_name).map(PathBuf::from),
            ..section.clone()
        };
        Self { section, schema, labels }
    }
}

impl Scorer {
    /// # Errors
    /// When the section's pattern or schema cannot be used.
    pub fn new(scoring: Scoring) -> Result<Self> {
        let section = &scoring.section;
        let unusable =
            |key: &'static str, reason: String| Error::Unusable { eval: section.name.clone(), key, reason };
        let pattern = section.pattern.as_deref().map(Pattern::new).transpose();
        let pattern = pattern.map_err(|error| unusable("pattern", error.to_string()))?;
        let options = ExtractionOptions {
            tolerance: section.number_tolerance(),
            strip_fence: section.strip_fence,
            ..ExtractionOptions::default()
        };
        let extraction = scoring.schema.as_ref().map(|schema| Extraction::new(schema, options)).transpose();
        let extraction = extraction.map_err(|error| unusable("schema", error.to_string()))?;
        Ok(Self { scoring, pattern, extraction })
    }

    /// The settings.
    pub fn scoring(&self) -> &Scoring {
        &self.scoring
    }

    /// Why an item cannot be measured by the section's metrics, whatever is answered; `None` where it can.
    pub fn unmeasurable(&self, item: &ItemFacts) -> Option<(Metric, String)> {
        let section = &self.scoring.section;
        let metric = *section.metrics.iter().find(|metric| metric.needs() != Needs::Losses)?;
        let Some(expected) = item.expected.as_deref() else {
            return Some((metric, format!("`{metric}` needs a prompt and an answer, the row is plain text")));
        };
        if expected.trim().is_empty() && section.metrics.iter().any(|m| m.needs() != Needs::Losses) {
            return Some((metric, format!("`{metric}` compares texts, and the expected answer has none")));
        }
        section
            .metrics
            .iter()
            .find_map(|&metric| self.cannot(metric, item, expected).map(|why| (metric, why)))
    }

    fn cannot(&self, metric: Metric, item: &ItemFacts, expected: &str) -> Option<String> {
        let normalize = self.scoring.section.normalize;
        match metric {
            Metric::JsonFields if json_fields(expected, expected, normalize).is_none() => {
                Some("`json_fields` is measured, but the expected answer is not a JSON object or list".into())
            }
            Metric::Numeric if self.scoring.section.numeric().find(expected).is_none() => {
                Some("`numeric` is measured, but there is no number in the expected answer".into())
            }
            Metric::Accuracy | Metric::MacroF1
                if label_of(expected, &self.scoring.labels, normalize).is_none() =>
            {
                Some(format!("`{metric}` is measured, but the expected answer is none of `labels`"))
            }
            Metric::Acc | Metric::AccNorm if item.choices.len() < 2 => {
                let field = &self.scoring.section.choices;
                Some(format!(
                    "`{metric}` is measured, but the row has no list of two choices or more in `{field}`"
                ))
            }
            Metric::Acc | Metric::AccNorm if item.right_choice().is_none() => {
                Some(format!("`{metric}` is measured, but the expected answer is none of the row's choices"))
            }
            Metric::JsonValid | Metric::FieldF1 | Metric::DocumentMatch => {
                let Ok(value) = serde_json::from_str::<Value>(expected.trim()) else {
                    return Some(format!("`{metric}` is measured, but the expected answer is not JSON"));
                };
                let violations = self.extraction.as_ref().map(|e| e.violations(&value)).unwrap_or_default();
                let first = violations.first()?;
                Some(format!("the expected answer breaks the schema of `{metric}`: {first}"))
            }
            _ => None,
        }
    }

    /// Score one response. A metric that it holds nothing for is left out.
    pub fn score(&self, item: &ItemFacts, response: &Response) -> ItemScore {
        let mut score = ItemScore::default();
        if response.error.is_some() {
            return score;
        }
        let section = &self.scoring.section;
        let pair = item.expected.as_deref().zip(response.output.as_deref());
        let pair = pair.map(|(expected, output)| (expected, without_thoughts(output, expected)));
        if let (Some((_, answer)), Some(output)) = (pair, &response.output) {
            score.answer = (answer.len() != output.len()).then(|| answer.to_owned());
        }
        let asks_schema = section.metrics.iter().any(|metric| metric.needs_schema());
        if let (Some((expected, answer)), Some(extraction), true) = (pair, &self.extraction, asks_schema)
            && let Ok(expected) = serde_json::from_str(expected.trim())
        {
            score.document = Some(extraction.score(&expected, answer));
        }
        if let Some((_, answer)) = pair {
            let found = label_of(answer, &self.scoring.labels, section.normalize);
            score.label = found.map(str::to_owned);
        }
        for &metric in &section.metrics {
            let tally = match metric {
                Metric::Perplexity | Metric::BitsPerByte => response.losses.map(Tally::Loss),
                Metric::Acc => self.choice(item, response, LengthNorm::None),
                Metric::AccNorm => self.choice(item, response, LengthNorm::Characters),
                Metric::Judge => response.judged.map(Tally::Score),
                Metric::JsonValid | Metric::FieldF1 | Metric::DocumentMatch => {
                    score.document.as_ref().map(|document| of_document(metric, document))
                }
                _ => pair.and_then(|(expected, answer)| {
                    self.of_answer(metric, expected, answer, &mut score.answer)
                }),
            };
            if let Some(tally) = tally {
                score.tallies.insert(metric, tally);
            }
        }
        score
    }

    fn choice(&self, item: &ItemFacts, response: &Response, norm: LengthNorm) -> Option<Tally> {
        let texts: Vec<&str> = item.choices.iter().map(String::as_str).collect();
        let likeliest = chosen(&texts, response.choices.as_deref()?, norm)?;
        Some(share(Some(likeliest) == item.right_choice()))
    }

    fn of_answer(
        &self,
        metric: Metric,
        expected: &str,
        answer: &str,
        taken: &mut Option<String>,
    ) -> Option<Tally> {
        let normalize = self.scoring.section.normalize;
        Some(match metric {
            Metric::ExactMatch => share(exact_match(expected, answer, normalize)),
            Metric::NormalisedMatch => share(normalised_match(expected, answer)),
            Metric::TokenF1 => Tally::Score(token_f1(expected, answer, SquadVersion::V2)),
            Metric::RougeL => Tally::Score(RougeL::default().score(expected, answer).f1),
            Metric::Bleu => Tally::Bleu(BleuCounts::of(expected, answer)),
            Metric::Chrf => Tally::Chrf(ChrfCounts::of(expected, answer, Chrf::Chrf)),
            Metric::Contains => share(contains(expected, answer, normalize)),
            Metric::Regex => {
                let pattern = self.pattern.as_ref()?;
                *taken = pattern.extract(answer).map(str::to_owned).or(taken.take());
                share(pattern.matches(expected, answer, normalize))
            }
            Metric::Numeric => {
                let numeric = self.scoring.section.numeric();
                *taken = numeric.find(answer).map(|number| number.to_string()).or(taken.take());
                share(numeric.matches(expected, answer)?)
            }
            Metric::Accuracy => {
                let labels = &self.scoring.labels;
                let wanted = label_of(expected, labels, normalize)?;
                share(label_of(answer, labels, normalize) == Some(wanted))
            }
            Metric::MacroF1 => {
                let labels = &self.scoring.labels;
                let place = |text| {
                    let label = label_of(text, labels, normalize)?;
                    labels.iter().position(|l| l == label)
                };
                Tally::Label(place(expected)?, place(answer))
            }
            Metric::JsonFields => Tally::JsonFields(json_fields(expected, answer, normalize)?),
            _ => return None,
        })
    }

    /// How a metric is computed here; numbers with different signatures must not be compared.
    pub fn signature(&self, metric: Metric) -> String {
        let section = &self.scoring.section;
        let normalize = section.normalize;
        let scored = match metric {
            Metric::ExactMatch => format!("exact_match|normalize:{}|version:2", normalize.name()),
            Metric::NormalisedMatch => normalised_match_signature(),
            Metric::TokenF1 => token_f1_signature(SquadVersion::V2),
            Metric::RougeL => RougeL::default().signature(),
            Metric::Bleu => corpus_bleu_signature(),
            Metric::Chrf => Chrf::Chrf.signature(),
            Metric::Contains => contains_signature(normalize),
            Metric::Regex => self.pattern.as_ref().map(|p| p.signature(normalize)).unwrap_or_default(),
            Metric::Numeric => section.numeric().signature(),
            Metric::Accuracy | Metric::MacroF1 => {
                classification_signature(metric.name(), normalize, ZeroDivision::Zero)
            }
            Metric::Acc => LengthNorm::None.signature(),
            Metric::AccNorm => LengthNorm::Characters.signature(),
            Metric::Perplexity => return perplexity_signature(),
            Metric::BitsPerByte => return bits_per_byte_signature(),
            Metric::JsonFields => format!("json_fields|micro_f1|normalize:{}|version:2", normalize.name()),
            Metric::JsonValid | Metric::FieldF1 | Metric::DocumentMatch => {
                let schema = self.scoring.schema.as_ref().map(hash_of).unwrap_or_default();
                self.extraction.as_ref().map(|e| e.signature(metric.name(), &schema)).unwrap_or_default()
            }
            Metric::Judge => section.judge.as_ref().map(JudgeSection::signature).unwrap_or_default(),
        };
        if metric.needs() == Needs::Choices {
            return scored;
        }
        format!("{scored}|{}", decoding(section))
    }
}

fn decoding(section: &EvalSection) -> String {
    let how = if section.temperature == 0.0 {
        "greedy".to_owned()
    } else {
        format!(
            "temperature:{}|top_p:{}|top_k:{}|seed:{}",
            section.temperature, section.top_p, section.top_k, section.seed
        )
    };
    format!("{how}|max_new_tokens:{}", section.max_new_tokens)
}

/// The first eight hex digits of a schema's hash.
fn hash_of(schema: &Value) -> String {
    Fingerprint::of_bytes(schema.to_string().as_bytes()).as_str()[..8].to_owned()
}

fn of_document(metric: Metric, document: &DocumentScore) -> Tally {
    match metric {
        Metric::JsonValid => share(document.is_valid),
        Metric::DocumentMatch => share(document.is_correct()),
        _ => Tally::Fields(document.total()),
    }
}

fn share(holds: bool) -> Tally {
    Tally::Score(f64::from(u8::from(holds)))
}

/// Whether two texts are the same answer, as far as the evaluation looks.
pub fn same_answer(a: &str, b: &str, section: &EvalSection) -> bool {
    normalized(a, section.normalize) == normalized(b, section.normalize)
}
