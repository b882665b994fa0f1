//! The `[[eval]]` and `[gate]` sections of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use taper_data::PathList;
use taper_diagnostics::{Location, Problem, Problems, did_you_mean, list_names};

/// One evaluation of base and adapter on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// What the report calls it.
    pub name: String,
    /// Files to evaluate on, in the format of `[data]`, relative to the recipe; left out, those of `data.test`.
    pub data: PathList,
    /// What is measured; the first one decides the verdict.
    pub metrics: Vec<Metric>,
    /// Most tokens of an answer, the stop token included. An answer that is cut here can hardly match.
    pub max_new_tokens: usize,
    /// Evaluate only this many examples, drawn by `seed`; left out, all of them. Fewer examples, wider intervals.
    pub limit: Option<usize>,
    /// Answers that are written at a time. Memory grows with it, the result stays.
    pub batch_size: usize,
    /// What is overlooked when answers are compared: "none" compares characters; "whitespace" takes runs of white space
    /// as one space and none at the ends; "lenient" also overlooks case and punctuation.
    pub normalize: Normalize,
    /// Seed of the draw of `limit` examples and of the resampling behind the intervals.
    pub seed: u64,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            name: "test".into(),
            data: PathList::default(),
            metrics: vec![Metric::ExactMatch, Metric::Perplexity],
            max_new_tokens: 256,
            limit: None,
            batch_size: 16,
            normalize: Normalize::Whitespace,
            seed: 0,
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
        problems
    }

    /// Whether answers have to be written, or only given ones scored.
    pub fn generates(&self) -> bool {
        self.metrics.iter().any(|metric| *metric != Metric::Perplexity)
    }
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of answers that equal the expected one (see `normalize`). What a reasoning model writes first in a
    /// `<think>` block is not part of its answer.
    ExactMatch,
    /// `exp` of the mean loss over the supervised tokens of the expected answers; lower is better.
    Perplexity,
    /// Micro F1 of the fields of JSON answers: twice the equal fields over all fields expected and given. An answer that
    /// is not JSON has no fields. Needs expected answers that are JSON objects or lists.
    JsonFields,
}

impl Metric {
    /// The name in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact_match",
            Self::Perplexity => "perplexity",
            Self::JsonFields => "json_fields",
        }
    }

    /// The name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact match",
            Self::Perplexity => "perplexity",
            Self::JsonFields => "JSON fields (micro F1)",
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        self != Self::Perplexity
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

/// What the evaluations must reach for the run to pass; each limit that is left out is not asked for.
///
/// A limit holds for every `[[eval]]` that measures its metric, or for the one named by `eval`. Gains and ratios compare the
/// adapter with its base. A gain that is reached but could well be chance makes the run inconclusive (exit code 5), not
/// passed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateSection {
    /// The name of the `[[eval]]` that the limits are for; left out, all of them.
    pub eval: Option<String>,
    /// Least share of exact matches of the adapter (0 to 1).
    pub min_exact_match: Option<f64>,
    /// Least rise of the share of exact matches over the base (-1 to 1); 0.05 asks for five points in a hundred.
    pub min_exact_match_gain: Option<f64>,
    /// Least micro F1 of JSON fields of the adapter (0 to 1).
    pub min_json_fields: Option<f64>,
    /// Least rise of the micro F1 of JSON fields over the base (-1 to 1).
    pub min_json_fields_gain: Option<f64>,
    /// Highest perplexity of the adapter (1 or more).
    pub max_perplexity: Option<f64>,
    /// Highest ratio of the adapter's perplexity to the base's (above 0); 0.8 asks for a fifth less.
    pub max_perplexity_ratio: Option<f64>,
}

impl GateSection {
    /// Every limit that is out of its range.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for limit in self.limits() {
            let (low, high) = limit.kind.range();
            if !(low..=high).contains(&limit.value) {
                let message =
                    format!("`{}` is {}, allowed is {low} to {high}", limit.kind.key(), limit.value);
                let at = Location::default().with_key(limit.kind.key());
                problems.push(Problem::error("out-of-range", message).at(at));
            }
        }
        problems
    }

    /// Limits that no evaluation could ever be held to.
    pub fn check_against(&self, evals: &[EvalSection]) -> Problems {
        let mut problems = Problems::new();
        let names: Vec<&str> = evals.iter().map(|eval| eval.name.as_str()).collect();
        if let Some(name) = self.eval.as_deref().filter(|name| !names.contains(name)) {
            let hint = match did_you_mean(name, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "add an `[[eval]]` section".into(),
                None => format!("the evaluations are {}", list_names(&names, 10)),
            };
            let at = Location::default().with_key("eval");
            let message = format!("there is no evaluation named `{name}`");
            problems.push(Problem::error("unknown-eval", message).at(at).hint(hint));
            return problems;
        }
        for limit in self.limits() {
            let metric = limit.kind.metric();
            let measured = evals.iter().any(|e| self.is_for(&e.name) && e.metrics.contains(&metric));
            if !measured {
                let key = limit.kind.key();
                let message = format!("`{key}` is set, but no evaluation measures `{metric}`");
                let hint = format!("add \"{metric}\" to the `metrics` of an `[[eval]]`");
                let at = Location::default().with_key(key);
                problems.push(Problem::error("gate-without-metric", message).at(at).hint(hint));
            }
        }
        problems
    }

    /// Whether the limits are for the evaluation of that name.
    pub fn is_for(&self, eval: &str) -> bool {
        self.eval.as_deref().is_none_or(|name| name == eval)
    }

    /// The limits that are set.
    pub fn limits(&self) -> Vec<Limit> {
        [
            (LimitKind::MinExactMatch, self.min_exact_match),
            (LimitKind::MinExactMatchGain, self.min_exact_match_gain),
            (LimitKind::MinJsonFields, self.min_json_fields),
            (LimitKind::MinJsonFieldsGain, self.min_json_fields_gain),
            (LimitKind::MaxPerplexity, self.max_perplexity),
            (LimitKind::MaxPerplexityRatio, self.max_perplexity_ratio),
        ]
        .into_iter()
        .filter_map(|(kind, value)| Some(Limit { kind, value: value? }))
        .collect()
    }
}

/// A limit that is set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// Which one.
    pub kind: LimitKind,
    /// Its value.
    pub value: f64,
}

/// The limits there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// `min_exact_match`.
    MinExactMatch,
    /// `min_exact_match_gain`.
    MinExactMatchGain,
    /// `min_json_fields`.
    MinJsonFields,
    /// `min_json_fields_gain`.
    MinJsonFieldsGain,
    /// `max_perplexity`.
    MaxPerplexity,
    /// `max_perplexity_ratio`.
    MaxPerplexityRatio,
}

impl LimitKind {
    /// The key in `[gate]`.
    pub fn key(self) -> &'static str {
        match self {
            Self::MinExactMatch => "min_exact_match",
            Self::MinExactMatchGain => "min_exact_match_gain",
            Self::MinJsonFields => "min_json_fields",
            Self::MinJsonFieldsGain => "min_json_fields_gain",
            Self::MaxPerplexity => "max_perplexity",
            Self::MaxPerplexityRatio => "max_perplexity_ratio",
        }
    }

    /// The metric it looks at.
    pub fn metric(self) -> Metric {
        match self {
            Self::MinExactMatch | Self::MinExactMatchGain => Metric::ExactMatch,
            Self::MinJsonFields | Self::MinJsonFieldsGain => Metric::JsonFields,
            Self::MaxPerplexity | Self::MaxPerplexityRatio => Metric::Perplexity,
        }
    }

    /// Whether it compares the adapter with its base.
    pub fn is_comparison(self) -> bool {
        matches!(self, Self::MinExactMatchGain | Self::MinJsonFieldsGain | Self::MaxPerplexityRatio)
    }

    /// Whether it is a least value (else a highest).
    pub fn is_minimum(self) -> bool {
        !matches!(self, Self::MaxPerplexity | Self::MaxPerplexityRatio)
    }

    fn range(self) -> (f64, f64) {
        match self {
            Self::MinExactMatch | Self::MinJsonFields => (0.0, 1.0),
            Self::MinExactMatchGain | Self::MinJsonFieldsGain => (-1.0, 1.0),
            Self::MaxPerplexity => (1.0, f64::MAX),
            Self::MaxPerplexityRatio => (f64::MIN_POSITIVE, f64::MAX),
        }
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
        assert!(EvalSection::default().check().is_empty() && GateSection::default().check().is_empty());
        assert!(toml::from_str::<EvalSection>("metric = []").unwrap_err().to_string().contains("metric"));
        let error = toml::from_str::<EvalSection>("metrics = [\"rouge\"]").unwrap_err().to_string();
        assert!(error.contains("rouge") && error.contains("json_fields"), "{error}");
        assert!(toml::from_str::<GateSection>("min_exact = 1").is_err());
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let section: EvalSection = toml::from_str(
            "name = ' '\nmetrics = ['perplexity', 'perplexity']\nmax_new_tokens = 0\nlimit = 0\nbatch_size = 0",
        )
        .unwrap();
        assert_eq!(keys(&section.check()), ["name", "metrics", "max_new_tokens", "limit", "batch_size"]);
        let gate: GateSection = toml::from_str(
            "min_exact_match = 95\nmin_exact_match_gain = -2\nmax_perplexity = 0.5\nmax_perplexity_ratio = 0.0",
        )
        .unwrap();
        assert_eq!(
            keys(&gate.check()),
            ["min_exact_match", "min_exact_match_gain", "max_perplexity", "max_perplexity_ratio"]
        );
    }

    #[test]
    fn a_gate_that_nothing_can_be_held_to_is_an_error() {
        let evals = [EvalSection { metrics: vec![Metric::Perplexity], ..EvalSection::default() }];
        let gate: GateSection = toml::from_str("min_exact_match = 0.5\nmax_perplexity = 3.0").unwrap();
        assert_eq!(keys(&gate.check_against(&evals)), ["min_exact_match"]);
        let gate: GateSection = toml::from_str("eval = 'tets'\nmax_perplexity = 3.0").unwrap();
        let problems = gate.check_against(&evals);
        assert_eq!(keys(&problems), ["eval"]);
        assert_eq!(problems.iter().next().unwrap().hint.as_deref(), Some("did you mean `test`?"));
    }

    #[test]
    fn every_key_is_described_in_the_schema() {
        for schema in [schemars::schema_for!(EvalSection), schemars::schema_for!(GateSection)] {
            let schema = serde_json::to_value(schema).unwrap();
            let properties = schema["properties"].as_object().unwrap();
            assert!(!properties.is_empty());
            assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
        }
    }
}
