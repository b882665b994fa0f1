//! The model card (`README.md`): the Hub's metadata, then what a person wants to know before using the model.
//!
//! The metadata are those of the Hub's model card specification: `base_model` with its relation, `library_name`, `pipeline_tag`, `tags`,
//! `license` and `language` where the base says them, and `model-index` with the scores. A value that the Hub would not know what to do
//! with (a local folder as `base_model`, an unmeasured score) is left out rather than made up; the text below names it.

use crate::contract::Score;
use crate::merged::names;
use crate::{Error, ExportProof, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use taper_diagnostics::TextSource;

/// The longest card of a base that is read.
const MAX_CARD_BYTES: u64 = 1 << 20;

/// What a card is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CardKind {
    /// An adapter in PEFT's format.
    #[default]
    Adapter,
    /// A whole model, with an adapter merged into its weights or all of them trained.
    Model,
}

/// What a base says of itself that holds for what is made from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseTerms {
    /// The Hub's licence identifier, for example `apache-2.0`.
    pub license: Option<String>,
    /// Language codes, for example `en`.
    pub languages: Vec<String>,
}

/// A data set as a card names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CardData {
    /// Its name: a file, relative to nothing.
    pub name: String,
    /// Which split it was.
    pub split: String,
    /// Examples.
    pub examples: usize,
    /// The SHA-256 of the file.
    pub sha256: String,
}

/// What the card tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelCard {
    /// The run's name.
    pub title: String,
    /// Of what.
    pub kind: CardKind,
    /// What it is for, from the recipe.
    pub description: Option<String>,
    /// The method in words, for example "LoRA, r = 16".
    pub method: String,
    /// Tags beside those of the kind, for example `lora`.
    pub tags: Vec<String>,
    /// The base as a reader knows it.
    pub base: String,
    /// The base's hub id, when it has one; it goes into the card's metadata.
    pub base_hub_id: Option<String>,
    /// What the base says of licence and language.
    pub terms: BaseTerms,
    /// The training: name and value.
    pub training: Vec<(String, String)>,
    /// Training and held-out data.
    pub data: Vec<CardData>,
    /// Scores on held-out data.
    pub scores: Vec<Score>,
    /// The verdict in a sentence.
    pub verdict: Option<String>,
    /// Whether the texts of the proofs were held out of training.
    pub held_out: bool,
    /// What was exported, and its proof.
    pub proofs: Vec<(String, ExportProof)>,
    /// How to use it: what with, the language of the code block, the code.
    pub usage: Vec<(String, &'static str, String)>,
}

/// Write the card into a folder that is there, whole or not at all.
///
/// # Errors
/// When the disk fails.
pub fn write_card(folder: &Path, card: &ModelCard) -> Result<PathBuf> {
    names(folder)?;
    let path = folder.join("README.md");
    taper_diagnostics::write_bytes_atomically(&path, card.to_markdown().as_bytes())
        .map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

impl ModelCard {
    /// The card in the Hub's format: metadata between lines of dashes, then Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("---\n");
        self.metadata(&mut out);
        out.push_str("---\n\n");
        let _ = writeln!(out, "# {}\n", line(&self.title));
        let what = match self.kind {
            CardKind::Adapter => "An adapter in PEFT's format for",
            CardKind::Model => "A whole model in the Hub's layout, made from",
        };
        let _ = writeln!(out, "{what} {} ({}).", code(&self.base), line(&self.method));
        if let Some(description) = &self.description {
            let _ = write!(out, "\n## Intended use\n\n{}\n", description.trim());
        }
        self.results(&mut out);
        self.proof_table(&mut out);
        let training: Vec<_> = self.training.iter().map(|(k, v)| vec![k.clone(), v.clone()]).collect();
        table(&mut out, "Training", &["setting", "value"], &training);
        let data = self.data.iter().map(|d| {
            vec![d.split.clone(), d.name.clone(), d.examples.to_string(), format!("`{}`", d.sha256)]
        });
        table(&mut out, "Data", &["split", "file", "examples", "SHA-256"], &data.collect::<Vec<_>>());
        self.how_to_use(&mut out);
        out
    }

    fn metadata(&self, out: &mut String) {
        let (relation, library, mut tags) = match self.kind {
            CardKind::Adapter => ("adapter", "peft", Vec::new()),
            CardKind::Model => ("finetune", "transformers", Vec::new()),
        };
        if let Some(id) = &self.base_hub_id {
            let _ = writeln!(out, "base_model: {}\nbase_model_relation: {relation}", quoted(id));
            if self.kind == CardKind::Adapter {
                tags.push(format!("base_model:adapter:{id}"));
            }
        }
        if let Some(license) = &self.terms.license {
            let _ = writeln!(out, "license: {}", quoted(license));
        }
        list(out, "language", self.terms.languages.iter());
        let _ = writeln!(out, "library_name: {library}\npipeline_tag: text-generation");
        tags.extend(self.tags.iter().cloned());
        tags.push("taper".into());
        list(out, "tags", tags.iter());
        self.model_index(out);
    }

    /// `model-index`: a result for each evaluation, with the metrics that are numbers.
    fn model_index(&self, out: &mut String) {
        let scores: Vec<&Score> = self.scores.iter().filter(|score| score.adapter.is_finite()).collect();
        if scores.is_empty() {
            return;
        }
        let _ = writeln!(out, "model-index:\n- name: {}\n  results:", quoted(&self.title));
        for (i, first) in scores.iter().enumerate() {
            if scores[..i].iter().any(|score| score.evaluation == first.evaluation) {
                continue;
            }
            let name = quoted(&first.evaluation);
            let _ = write!(
                out,
                "  - task:\n      type: text-generation\n    dataset:\n      type: {name}\n      name: {name}\n      split: test\n    metrics:\n"
            );
            for score in scores.iter().filter(|score| score.evaluation == first.evaluation) {
                let title = format!("{} (n = {})", score.metric.replace('_', " "), score.n);
                let _ = writeln!(
                    out,
                    "    - type: {}\n      value: {}\n      name: {}",
                    quoted(&score.metric),
                    score.adapter,
                    quoted(&title)
                );
            }
        }
    }

    fn results(&self, out: &mut String) {
        if let Some(verdict) = &self.verdict {
            let _ = write!(out, "\n{}\n", verdict.trim());
        }
        let rows = self.scores.iter().map(|score| {
            let base = score.base.map_or("not measured".into(), |base| format!("{base:.4}"));
            let metric = score.metric.replace('_', " ");
            vec![score.evaluation.clone(), metric, base, format!("{:.4}", score.adapter), score.n.to_string()]
        });
        let head = ["evaluation", "metric", "base", "this", "n"];
        table(out, "Scores on held-out data", &head, &rows.collect::<Vec<_>>());
    }

    fn proof_table(&self, out: &mut String) {
        if self.proofs.is_empty() {
            return;
        }
        let rows = self.proofs.iter().map(|(format, proof)| {
            let gain = &proof.gain;
            let name = if proof.passed() { format.clone() } else { format!("{format}: failed") };
            let kept = gain.kept.map_or("no gain to keep".into(), |kept| format!("{:.1} %", 100.0 * kept));
            vec![
                name,
                kept,
                gain.loss_base.map_or("none".into(), |loss| format!("{loss:.4}")),
                format!("{:.4}", gain.loss_trained),
                format!("{:.4}", gain.loss_written),
                format!("{:.1e}", proof.mean_kl),
                format!("{:.1} %", 100.0 * proof.top1_agreement),
            ]
        });
        let head = [
            "file",
            "gain kept",
            "loss, base",
            "loss, trained",
            "loss, read back",
            "mean KL",
            "same top token",
        ];
        table(out, "What was written, read back", &head, &rows.collect::<Vec<_>>());
        let tokens = self.proofs[0].1.gain.tokens;
        let texts = if self.held_out { "held-out" } else { "training" };
        let _ = write!(
            out,
            "\nEach file was read back from the disk and compared with the trained model on {tokens} supervised tokens of {texts} texts. \
             The gain kept is (loss of the base - loss read back) / (loss of the base - loss trained); losses and divergences are in nats.\n"
        );
    }

    fn how_to_use(&self, out: &mut String) {
        for (i, (with, language, text)) in self.usage.iter().enumerate() {
            let title = if i == 0 { "\n## Use it\n" } else { "" };
            let _ = write!(
                out,
                "{title}\n{}:\n\n```{language}\n{}\n```\n",
                line(with),
                text.replace("```", "'''")
            );
        }
    }
}

impl BaseTerms {
    /// What the metadata of the card in a base's folder say; nothing where there is none, or it is no card.
    ///
    /// Of YAML that is read which cards use: a scalar, `[a, b]`, and a list of lines with a dash. What does not look like an identifier is
    /// left out.
    pub fn of_folder(folder: &Path) -> Self {
        let path = folder.join("README.md");
        let text = TextSource::file(path).read(MAX_CARD_BYTES).ok().and_then(|b| String::from_utf8(b).ok());
        text.map(|text| Self::of_card(&text)).unwrap_or_default()
    }

    fn of_card(text: &str) -> Self {
        let mut terms = Self::default();
        let mut lines = text.lines().map(str::trim_end);
        if lines.next() != Some("---") {
            return terms;
        }
        let mut key = "";
        for line in lines.take_while(|line| *line != "---") {
            let item = line.trim_start().strip_prefix("- ");
            let values = match (item, line.split_once(':')) {
                (Some(item), _) => item,
                (None, Some((name, values))) if !line.starts_with([' ', '#']) => {
                    key = name;
                    values
                }
                _ => continue,
            };
            let values = values.trim().trim_start_matches('[').trim_end_matches(']').split(',');
            let mut values =
                values.map(|v| v.trim().trim_matches(['"', '\'']).to_owned()).filter(|v| is_identifier(v));
            match key {
                "license" => terms.license = values.next().or(terms.license),
                "language" => terms.languages.extend(values),
                _ => {}
            }
        }
        terms
    }
}

fn is_identifier(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+');
    !text.is_empty() && text.len() <= 64 && text.chars().all(plain)
}

fn list<'a>(out: &mut String, key: &str, values: impl Iterator<Item = &'a String>) {
    for (i, value) in values.enumerate() {
        if i == 0 {
            let _ = writeln!(out, "{key}:");
        }
        let _ = writeln!(out, "- {}", quoted(value));
    }
}

fn table(out: &mut String, title: &str, head: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(out, "\n## {title}\n\n| {} |\n|{}\n", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

/// A JSON string is a YAML string; a plain word needs no quotes.
fn quoted(text: &str) -> String {
    let is_plain = is_identifier(text)
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        // What YAML 1.1 reads as something else than a word; `no` is a language code.
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

fn code(text: &str) -> String {
    format!("`{}`", line(text).replace('`', "'"))
}

fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn cell(text: &str) -> String {
    line(&text.replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gain;

    fn score(evaluation: &str, metric: &str, adapter: f64) -> Score {
        Score { evaluation: evaluation.into(), metric: metric.into(), base: Some(0.25), adapter, n: 32 }
    }

    fn card() -> ModelCard {
        let gain = Gain {
            tokens: 77,
            loss_base: Some(2.0),
            loss_trained: 1.0,
            loss_written: 1.02,
            standard_error: Some(0.1),
            kept: Some(0.98),
        };
        ModelCard {
            title: "tickets".into(),
            description: Some("Sort tickets".into()),
            method: "LoRA, r = 8".into(),
            tags: vec!["lora".into()],
            base: "models/tiny".into(),
            scores: vec![
                score("held-out", "exact_match", 0.9),
                score("other: \"x\"", "perplexity", 1.5),
                score("held-out", "perplexity", f64::NAN),
            ],
            data: vec![CardData {
                name: "a|b.jsonl".into(),
                split: "train".into(),
                examples: 3,
                sha256: "abc".into(),
            }],
            proofs: vec![(
                "merged".into(),
                ExportProof { gain, top1_agreement: 1.0, ..ExportProof::default() },
            )],
            usage: vec![("With taper".into(), "sh", "taper chat --model models/tiny".into())],
            ..ModelCard::default()
        }
    }

    #[test]
    fn the_card_has_the_hubs_metadata_and_what_was_given() {
        let local = card().to_markdown();
        assert!(
            local.starts_with(
                "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- taper\n"
            ),
            "{local}"
        );
        for part in [
            "# tickets",
            "`models/tiny` (LoRA, r = 8)",
            "## Intended use\n\nSort tickets",
            "| held-out | exact match | 0.2500 | 0.9000 | 32 |",
            "| train | a\\|b.jsonl | 3 | `abc` |",
            "| merged | 98.0 % | 2.0000 | 1.0000 | 1.0200 | 0.0e0 | 100.0 % |",
            "on 77 supervised tokens",
            "taper chat",
            "model-index:\n- name: tickets\n  results:\n  - task:\n      type: text-generation\n    dataset:\n      type: held-out\n",
            "    - type: exact_match\n      value: 0.9\n      name: \"exact match (n = 32)\"\n",
            "      type: \"other: \\\"x\\\"\"\n",
        ] {
            assert!(local.contains(part), "{part}: {local}");
        }
        assert!(
            !local.contains("NaN\n      name"),
            "a number that is none does not go into the metadata: {local}"
        );
        let hub = ModelCard { base_hub_id: Some("a/b: \"c\"".into()), ..card() };
        let hub = hub.to_markdown();
        assert!(
            hub.starts_with("---\nbase_model: \"a/b: \\\"c\\\"\"\nbase_model_relation: adapter\n"),
            "{hub}"
        );
        let merged =
            ModelCard { kind: CardKind::Model, base_hub_id: Some("a/b".into()), ..card() }.to_markdown();
        assert!(
            merged.contains("base_model_relation: finetune") && merged.contains("library_name: transformers")
        );
    }

    #[test]
    fn licence_and_language_are_those_of_the_base() {
        let of = |text: &str| BaseTerms::of_card(text);
        let terms =
            of("---\nlicense: apache-2.0\nlanguage:\n- en\n- \"fr\"\ntags:\n- de\n---\nlicense: mit\n");
        assert_eq!(
            (terms.license.as_deref(), terms.languages.as_slice()),
            (Some("apache-2.0"), &["en".into(), "fr".into()][..])
        );
        assert_eq!(of("---\nlanguage: [en, no]\n---\n").languages, ["en", "no"]);
        assert_eq!(of("license: mit\n"), BaseTerms::default());
        assert_eq!(of("---\nlicense: {{ x }}: y\n---\n").license, None);
        let here = tempfile::tempdir().unwrap();
        assert_eq!(BaseTerms::of_folder(here.path()), BaseTerms::default());
        fs_err::write(here.path().join("README.md"), "---\r\nlicense: mit\r\n---\r\n").unwrap();
        assert_eq!(BaseTerms::of_folder(here.path()).license.as_deref(), Some("mit"));
        let card = ModelCard { terms: of("---\nlanguage: no\n---\n"), ..card() }.to_markdown();
        assert!(card.contains("language:\n- \"no\"\n"), "the code of Norwegian is not a boolean: {card}");
    }

    #[test]
    fn a_card_is_written_into_a_folder_that_is_there() {
        let here = tempfile::tempdir().unwrap();
        write_card(here.path(), &ModelCard { title: "other".into(), ..card() }).unwrap();
        assert!(fs_err::read_to_string(here.path().join("README.md")).unwrap().contains("# other"));
        assert!(write_card(&here.path().join("nowhere"), &card()).is_err());
    }
}
