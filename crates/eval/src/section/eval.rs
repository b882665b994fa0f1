//! The `[[eval]]` sections of a recipe.

use super::metric::{Metric, Needs, Normalize};
use crate::metrics::contains::Pattern;
use crate::metrics::numeric::{NumberPlace, Numeric, Tolerance};
use crate::remote::JudgeSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use taper_data::PathList;
use taper_diagnostics::{Location, Problem, Problems};
use taper_infer::GenerationConfig;

/// One evaluation of the candidates on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// What the report calls it.
    pub name: String,
    /// Files to evaluate on, in the format of `[data]`, relative to the recipe; left out, those of `data.test`.
    pub data: PathList,
    /// What is measured; the first one decides the verdict.
    pub metrics: Vec<Metric>,
    /// Evaluate only this many examples, drawn by `seed`; left out, all of them. Fewer examples, wider intervals.
    pub limit: Option<usize>,
    /// Seed of the draws: of `limit` examples, of those shown, of answers at a `temperature`, and of the resampling behind intervals.
    pub seed: u64,
    /// Answered examples shown before each question, the same for all, drawn by `seed` from `few_shot_data`. A candidate can have
    /// another number.
    pub few_shot: usize,
    /// Files with the examples that are shown, in the format of `[data]`; left out, those of `data.train`.
    pub few_shot_data: PathList,
    /// System prompt of this evaluation, in place of the rows' own and of `data.system_prompt`.
    pub system: Option<String>,
    /// Most tokens of an answer, the stop token included. An answer that is cut here can hardly match.
    pub max_new_tokens: usize,
    /// What logits are divided by before a token is drawn; 0 takes the likeliest each time, which is what can be repeated everywhere.
    pub temperature: f64,
    /// Draw only from the likeliest tokens that together have this much probability (above 0, up to 1; 1 is off).
    pub top_p: f64,
    /// Draw only from this many of the likeliest tokens (0 is off).
    pub top_k: usize,
    /// Strings that end an answer; neither they nor anything after them is in it.
    pub stop: Vec<String>,
    /// Answers that are written at a time. Memory grows with it, the result stays.
    pub batch_size: usize,
    /// What is overlooked when answers are compared: "none" compares characters; "whitespace" takes runs of white space
    /// as one space and none at the ends; "lenient" also overlooks case and punctuation.
    pub normalize: Normalize,
    /// For the metric `regex`: an expression in the syntax of Rust's `regex` crate, without look-around.
    pub pattern: Option<String>,
    /// For the metric `numeric`: which number of a text is its answer: "last", "first", or "only" (a text with several has none).
    pub number: NumberPlace,
    /// For `numeric` and numbers in JSON: how far apart equal numbers may be, in their own unit.
    pub tolerance: f64,
    /// For `numeric` and numbers in JSON: the same as a share of the expected number; the wider of both counts.
    pub relative_tolerance: f64,
    /// For `accuracy` and `macro_f1`: the labels; left out, those among the expected answers.
    pub labels: Vec<String>,
    /// For `acc` and `acc_norm`: the field of a row that lists its choices; the expected answer is one of them.
    pub choices: String,
    /// For `json_valid`, `field_f1` and `document_match`: a file with the JSON Schema of the answers, relative to the recipe. How a field
    /// is compared follows from its type and format, or from `x-compare` beside it.
    pub schema: Option<PathBuf>,
    /// For the metrics of `schema`: take a Markdown fence around a whole answer off before it is read.
    pub strip_fence: bool,
    /// For the metric `judge`: the model that says which of two answers is better, and by what.
    pub judge: Option<JudgeSection>,
    /// Fields of a row (`site`, `meta.kind`) by whose values the scores are also told.
    pub slices: Vec<String>,
    /// A field of a row by which items belong together, as questions on one document do. Intervals and tests then count documents,
    /// not items.
    pub cluster_by: Option<String>,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            name: "test".into(),
            data: PathList::default(),
            metrics: vec![Metric::ExactMatch, Metric::Perplexity],
            limit: None,
            seed: 0,
            few_shot: 0,
            few_shot_data: PathList::default(),
            system: None,
            max_new_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            stop: Vec::new(),
            batch_size: 16,
            normalize: Normalize::Whitespace,
            pattern: None,
            number: NumberPlace::Last,
            tolerance: 0.0,
            relative_tolerance: 0.0,
            labels: Vec::new(),
            choices: "choices".into(),
            schema: None,
            strip_fence: false,
            judge: None,
            slices: Vec::new(),
            cluster_by: None,
        }
    }
}

impl EvalSection {
    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut require = |holds: bool, key: &str, message: String| {
            if !holds {
                problems.push(Problem::error("out-of-range", message).at(Location::default().with_key(key)));
            }
        };
        require(!self.name.trim().is_empty(), "name", "`name` is empty".into());
        require(!self.metrics.is_empty(), "metrics", "`metrics` is empty: nothing would be measured".into());
        for (i, metric) in self.metrics.iter().enumerate() {
            let twice = self.metrics[..i].contains(metric);
            require(!twice, "metrics", format!("`{metric}` stands twice in `metrics`"));
        }
        for (key, value) in [
            ("max_new_tokens", Some(self.max_new_tokens)),
            ("limit", self.limit),
            ("batch_size", Some(self.batch_size)),
        ] {
            require(value != Some(0), key, format!("`{key}` is 0, allowed is 1 or more"));
        }
        for (key, value) in [("tolerance", self.tolerance), ("relative_tolerance", self.relative_tolerance)] {
            let holds = value.is_finite() && value >= 0.0;
            require(holds, key, format!("`{key}` is {value}, allowed is 0 or more"));
        }
        problems.extend(self.generation(&[]).check());
        problems.extend(self.check_scoring());
        for problem in self.judge.iter().flat_map(|judge| judge.check().iter().cloned().collect::<Vec<_>>()) {
            let key = problem.location.as_ref().and_then(|location| location.key.clone()).unwrap_or_default();
            problems.push(problem.at(Location::default().with_key(format!("judge.{key}"))));
        }
        problems
    }

    /// What a metric cannot be scored without, and keys without a metric.
    fn check_scoring(&self) -> Problems {
        let mut problems = Problems::new();
        let mut fault = |key: &str, message: String, hint: &str| {
            let at = Location::default().with_key(key);
            problems.push(Problem::error("conflict", message).at(at).hint(hint));
        };
        let compares_numbers = |metric: Metric| metric == Metric::Numeric || metric.needs_schema();
        let any = |of: fn(Metric) -> bool| self.metrics.iter().copied().find(|metric| of(*metric));
        match (&self.pattern, any(|metric| metric == Metric::Regex)) {
            (Some(pattern), _) => {
                if let Err(error) = Pattern::new(pattern) {
                    fault(
                        "pattern",
                        format!("`pattern` cannot be used: {error}"),
                        "see the syntax of Rust's `regex` crate",
                    );
                }
            }
            (None, Some(_)) => {
                fault("metrics", "`regex` is measured, but there is no `pattern`".into(), "set `pattern`");
            }
            (None, None) => {}
        }
        if self.judge.is_none() && any(|metric| metric == Metric::Judge).is_some() {
            let message = "`judge` is measured, but there is no judge".to_owned();
            fault("metrics", message, "add `judge = { endpoint = { url = \"...\", model = \"...\" } }`");
        }
        if let (None, Some(metric)) = (&self.schema, any(Metric::needs_schema)) {
            let message = format!("`{metric}` is measured, but there is no `schema`");
            fault("metrics", message, "set `schema` to a file with a JSON Schema, or measure `json_fields`");
        }
        for (key, is_set, used) in [
            ("pattern", self.pattern.is_some(), any(|metric| metric == Metric::Regex)),
            ("schema", self.schema.is_some(), any(Metric::needs_schema)),
            ("strip_fence", self.strip_fence, any(Metric::needs_schema)),
            ("judge", self.judge.is_some(), any(|metric| metric == Metric::Judge)),
            ("labels", !self.labels.is_empty(), any(Metric::needs_labels)),
            ("choices", self.choices != "choices", any(|metric| metric.needs() == Needs::Choices)),
            ("number", self.number != NumberPlace::Last, any(|metric| metric == Metric::Numeric)),
            ("tolerance", self.tolerance != 0.0, any(compares_numbers)),
            ("relative_tolerance", self.relative_tolerance != 0.0, any(compares_numbers)),
        ] {
            if is_set && used.is_none() {
                fault(
                    key,
                    format!("`{key}` is set, but nothing that is measured looks at it"),
                    "take it out, or measure by it",
                );
            }
        }
        for (i, label) in self.labels.iter().enumerate() {
            if self.labels[..i].contains(label) {
                fault("labels", format!("the label `{label}` stands twice"), "name each label once");
            }
        }
        for (key, fields) in [
            ("slices", self.slices.as_slice()),
            ("cluster_by", self.cluster_by.as_slice()),
            ("choices", std::slice::from_ref(&self.choices)),
        ] {
            if fields.iter().any(|field| field.trim().is_empty()) {
                fault(
                    key,
                    format!("a field of `{key}` has no name"),
                    "name a field of the rows, for example `site` or `meta.kind`",
                );
            }
        }
        problems
    }

    /// Whether answers have to be written, or only given ones scored.
    pub fn generates(&self) -> bool {
        self.metrics.iter().any(|metric| matches!(metric.needs(), Needs::Answer | Needs::Judge))
    }

    /// Whether the losses of the expected answers are asked for.
    pub fn needs_losses(&self) -> bool {
        self.metrics.iter().any(|metric| metric.needs() == Needs::Losses)
    }

    /// Whether choices are scored.
    pub fn needs_choices(&self) -> bool {
        self.metrics.iter().any(|metric| metric.needs() == Needs::Choices)
    }

    /// The fields of a row that are looked at besides what a model is given.
    pub fn fields(&self) -> Vec<String> {
        let choices = self.needs_choices().then_some(&self.choices);
        let mut fields: Vec<String> =
            self.slices.iter().chain(&self.cluster_by).chain(choices).cloned().collect();
        fields.sort();
        fields.dedup();
        fields
    }

    /// How answers are written.
    pub fn generation(&self, stop_token_ids: &[u32]) -> GenerationConfig {
        GenerationConfig {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop.clone(),
            seed: self.seed,
            stop_token_ids: stop_token_ids.to_vec(),
            ..GenerationConfig::greedy(self.max_new_tokens)
        }
    }

    /// How numbers are found and compared.
    pub fn numeric(&self) -> Numeric {
        Numeric { place: self.number, tolerance: self.number_tolerance() }
    }

    /// How near numbers must be.
    pub fn number_tolerance(&self) -> Tolerance {
        Tolerance { absolute: self.tolerance, relative: self.relative_tolerance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(problems: &Problems) -> Vec<String> {
        problems.iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect()
    }

    #[test]
    fn an_empty_section_is_the_default_and_an_unknown_key_is_refused() {
        assert_eq!(toml::from_str::<EvalSection>("").unwrap(), EvalSection::default());
        assert!(EvalSection::default().check().is_empty());
        assert!(toml::from_str::<EvalSection>("metric = []").unwrap_err().to_string().contains("metric"));
        let error = toml::from_str::<EvalSection>("metrics = [\"rouge\"]").unwrap_err().to_string();
        assert!(error.contains("rouge") && error.contains("json_fields"), "{error}");
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let section: EvalSection = toml::from_str(
            "name = ' '\nmetrics = ['perplexity', 'perplexity']\nmax_new_tokens = 0\nlimit = 0\nbatch_size = 0\ntolerance = -1.0",
        )
        .unwrap();
        let found = keys(&section.check());
        for key in ["name", "metrics", "max_new_tokens", "limit", "batch_size", "tolerance"] {
            assert!(found.iter().any(|k| k == key), "{key}: {found:?}");
        }
    }

    #[test]
    fn a_metric_asks_for_its_key_and_a_key_for_its_metric() {
        let found = |text: &str| keys(&toml::from_str::<EvalSection>(text).unwrap().check());
        assert_eq!(found("metrics = ['regex']"), ["metrics"]);
        assert_eq!(found("metrics = ['regex']\npattern = '('"), ["pattern"]);
        assert_eq!(found("pattern = 'a'"), ["pattern"]);
        assert_eq!(found("metrics = ['field_f1']"), ["metrics"]);
        assert_eq!(found("labels = ['a', 'a']\nmetrics = ['accuracy']"), ["labels"]);
        assert_eq!(found("tolerance = 0.5\nrelative_tolerance = 0.1"), ["tolerance", "relative_tolerance"]);
        assert_eq!(found("tolerance = 0.5\nmetrics = ['numeric']"), [""; 0]);
        assert_eq!(found("slices = ['']"), ["slices"]);
        assert_eq!(found("metrics = ['acc']\nchoices = 'options'"), [""; 0]);
    }
}
