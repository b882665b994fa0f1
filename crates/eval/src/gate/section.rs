//! The `[gate]` section of a recipe.

use super::parse::{Names, ParseError, parse};
use super::requirement::{Ask, Quantity, Requirement, Subject};
use crate::{ADAPTER, BASE, CandidateSection, EvalSection, Metric, TRAINED};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_diagnostics::{Location, Problem, Problems, did_you_mean, list_names};

/// What the evaluations must reach for the run to pass; what is left out is not asked for.
///
/// A limit holds for every `[[eval]]` that measures its metric, or for the one named by `eval`. Gains and ratios compare what was
/// trained with its base. A gain that is reached but could well be chance makes the run inconclusive (exit code 5), not passed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateSection {
    /// The name of the `[[eval]]` that the keys below are for; left out, all of them.
    pub eval: Option<String>,
    /// Requirements in words: `adapter.exact_match >= 0.8`, `adapter better than base on exact_match` (perhaps `by 0.05`),
    /// `forgetting.accuracy not worse than base by 0.02`, `gpt.error_rate <= 0.01`, `p95_latency_ms <= 300`. A name is a candidate's or
    /// an evaluation's, with spaces in double quotes; without a candidate the trained one is meant.
    pub require: Vec<String>,
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
    /// Of the gain of what was trained over the base, by the first metric of each evaluation, the least share (0 to 1) that every exported
    /// and every served candidate keeps.
    pub min_gain_kept: Option<f64>,
}

/// A key of the section, what it asks and its range.
struct Key {
    name: &'static str,
    value: Option<f64>,
    range: (f64, f64),
    ask: fn(f64) -> Ask,
}

fn least(metric: Metric, value: f64) -> Ask {
    Ask::Limit { quantity: Quantity::Metric(metric), at_least: true, strict: false, value }
}

impl GateSection {
    fn keys(&self) -> [Key; 7] {
        let positive = (f64::MIN_POSITIVE, f64::MAX);
        [
            Key {
                name: "min_exact_match",
                value: self.min_exact_match,
                range: (0.0, 1.0),
                ask: |value| least(Metric::ExactMatch, value),
            },
            Key {
                name: "min_exact_match_gain",
                value: self.min_exact_match_gain,
                range: (-1.0, 1.0),
                ask: |value| Ask::Effect { metric: Metric::ExactMatch, at_least: true, value },
            },
            Key {
                name: "min_json_fields",
                value: self.min_json_fields,
                range: (0.0, 1.0),
                ask: |value| least(Metric::JsonFields, value),
            },
            Key {
                name: "min_json_fields_gain",
                value: self.min_json_fields_gain,
                range: (-1.0, 1.0),
                ask: |value| Ask::Effect { metric: Metric::JsonFields, at_least: true, value },
            },
            Key {
                name: "max_perplexity",
                value: self.max_perplexity,
                range: (1.0, f64::MAX),
                ask: |value| Ask::Limit {
                    quantity: Quantity::Metric(Metric::Perplexity),
                    at_least: false,
                    strict: false,
                    value,
                },
            },
            Key {
                name: "max_perplexity_ratio",
                value: self.max_perplexity_ratio,
                range: positive,
                ask: |value| Ask::Effect { metric: Metric::Perplexity, at_least: false, value },
            },
            Key {
                name: "min_gain_kept",
                value: self.min_gain_kept,
                range: (0.0, 1.0),
                ask: |share| Ask::GainKept { share },
            },
        ]
    }

    /// Every limit that is out of its range.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for key in self.keys() {
            let (low, high) = key.range;
            if let Some(value) = key.value.filter(|value| !(low..=high).contains(value)) {
                let message = format!("`{}` is {value}, allowed is {low} to {high}", key.name);
                problems
                    .push(Problem::error("out-of-range", message).at(Location::default().with_key(key.name)));
            }
        }
        problems
    }

    /// What the section asks, in its order.
    ///
    /// # Errors
    /// The requirements in words that cannot be read.
    pub fn requirements(
        &self,
        evals: &[EvalSection],
        candidates: &[CandidateSection],
    ) -> Result<Vec<Requirement>, Vec<ParseError>> {
        let evals: Vec<&str> = evals.iter().map(|eval| eval.name.as_str()).collect();
        let candidates: Vec<&str> = candidates.iter().map(|candidate| candidate.name.as_str()).collect();
        self.requirements_of(&evals, &candidates)
    }

    /// The same by the names of the evaluations and of the candidates besides base and trained.
    ///
    /// # Errors
    /// The requirements in words that cannot be read.
    pub fn requirements_of(
        &self,
        evals: &[&str],
        candidates: &[&str],
    ) -> Result<Vec<Requirement>, Vec<ParseError>> {
        let candidates: Vec<&str> = [BASE, ADAPTER, TRAINED].iter().chain(candidates).copied().collect();
        let names = Names { evals, candidates: &candidates };
        let mut errors = Vec::new();
        let mut requirements: Vec<Requirement> = self
            .require
            .iter()
            .filter_map(|text| parse(text, names).map_err(|e| errors.push(e)).ok())
            .collect();
        requirements.extend(self.keys().into_iter().filter_map(|key| {
            let value = key.value?;
            let subject = Subject { eval: self.eval.clone(), candidate: None };
            Some(Requirement {
                text: format!("{} = {value}", key.name),
                key: key.name.into(),
                subject,
                ask: (key.ask)(value),
            })
        }));
        if errors.is_empty() { Ok(requirements) } else { Err(errors) }
    }

    /// Requirements that cannot be read, and those that no evaluation could ever be held to.
    pub fn check_against(&self, evals: &[EvalSection], candidates: &[CandidateSection]) -> Problems {
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
        let requirements = match self.requirements(evals, candidates) {
            Ok(requirements) => requirements,
            Err(errors) => {
                for error in errors {
                    let at = Location::default().with_key("require");
                    problems.push(Problem::error("gate", error.to_string()).at(at).hint(
                        "write it as `adapter.exact_match >= 0.8`, `adapter better than base on exact_match` or `adapter not worse than base by 0.02 on accuracy`",
                    ));
                }
                return problems;
            }
        };
        for requirement in &requirements {
            let is_asked =
                |eval: &&EvalSection| requirement.subject.eval.as_ref().is_none_or(|name| *name == eval.name);
            let asked: Vec<&EvalSection> = evals.iter().filter(is_asked).collect();
            let metric = requirement.metric();
            let is_measured =
                metric.is_none_or(|metric| asked.iter().any(|eval| eval.metrics.contains(&metric)));
            let at = || Location::default().with_key(requirement.key.as_str());
            if asked.is_empty() {
                let message = format!("`{requirement}` is asked, but there is no `[[eval]]`");
                problems.push(
                    Problem::error("gate-without-metric", message).at(at()).hint("add an `[[eval]]` section"),
                );
            } else if let Some(metric) = metric.filter(|_| !is_measured) {
                let message = format!("`{requirement}` is asked, but no evaluation measures `{metric}`");
                let hint = format!("add \"{metric}\" to the `metrics` of an `[[eval]]`");
                problems.push(Problem::error("gate-without-metric", message).at(at()).hint(hint));
            }
            let kept = candidates.iter().any(|candidate| candidate.export.is_some() || candidate.server);
            if matches!(requirement.ask, Ask::GainKept { .. }) && !kept {
                let message = format!("`{requirement}` is asked, but no candidate is exported or served");
                let hint = "add a `[[candidate]]` with `export` or `server`";
                problems.push(Problem::error("gate-without-candidate", message).at(at()).hint(hint));
            }
        }
        problems
    }

    /// Whether anything is asked.
    pub fn is_empty(&self) -> bool {
        self.require.is_empty() && self.keys().iter().all(|key| key.value.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(problems: &Problems) -> Vec<String> {
        problems.iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect()
    }

    fn evals() -> Vec<EvalSection> {
        vec![EvalSection::default()]
    }

    #[test]
    fn limits_out_of_their_range_are_all_found() {
        assert!(GateSection::default().check().is_empty() && GateSection::default().is_empty());
        assert!(toml::from_str::<GateSection>("min_exact = 1").is_err());
        let gate: GateSection = toml::from_str(
            "min_exact_match = 80\nmin_exact_match_gain = -2\nmax_perplexity = 0.5\nmax_perplexity_ratio = 0\nmin_gain_kept = 2",
        )
        .unwrap();
        let expected = [
            "min_exact_match",
            "min_exact_match_gain",
            "max_perplexity",
            "max_perplexity_ratio",
            "min_gain_kept",
        ];
        assert_eq!(keys(&gate.check()), expected);
    }

    #[test]
    fn what_nothing_measures_is_refused() {
        let found = |text: &str| {
            let gate: GateSection = toml::from_str(text).unwrap();
            keys(&gate.check_against(&evals(), &[]))
        };
        assert_eq!(found("min_exact_match = 0.5\nrequire = ['adapter better than base']"), [""; 0]);
        assert_eq!(found("min_json_fields = 0.5"), ["min_json_fields"]);
        assert_eq!(found("require = ['adapter.bleu >= 10']"), ["require"]);
        assert_eq!(found("require = ['nobody.exact_match >= 0.1', 'x']"), ["require", "require"]);
        assert_eq!(found("eval = 'other'\nmin_exact_match = 0.5"), ["eval"]);
        assert_eq!(found("min_gain_kept = 0.9"), ["min_gain_kept"]);
        let nothing: GateSection = toml::from_str("min_exact_match = 0.5").unwrap();
        assert_eq!(keys(&nothing.check_against(&[], &[])), ["min_exact_match"]);
    }
}
