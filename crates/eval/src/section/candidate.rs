//! The `[[candidate]]` sections of a recipe: what is evaluated beside the base and what was trained.

use crate::remote::EndpointSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use taper_diagnostics::{Location, Problem, Problems};

/// The name of the base among the candidates.
pub const BASE: &str = "base";
/// The name of an adapter that was trained among the candidates.
pub const ADAPTER: &str = "adapter";
/// The name of a model that was trained whole among the candidates.
pub const TRAINED: &str = "trained";

/// One more candidate: a model, with or without an adapter, an artefact of this run's export, or an endpoint.
///
/// The base and what was trained are candidates without being named. Each candidate is measured on the same items.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CandidateSection {
    /// What the report and the gates call it.
    pub name: String,
    /// A model as in `model.base`: a folder, a GGUF file or a hub id; left out, the recipe's base.
    pub model: Option<String>,
    /// An adapter on that model, a folder in PEFT's format relative to the recipe.
    pub adapter: Option<PathBuf>,
    /// An artefact that this run exports; it must be among `export.formats`. In `taper run` it is measured after the export.
    pub export: Option<ExportedModel>,
    /// A model behind an address that speaks OpenAI's `/chat/completions`. It is measured by metrics of written answers alone.
    pub endpoint: Option<EndpointSection>,
    /// Ask through our own server over HTTP on the loopback rather than in the process: the served model as its users meet it. Latencies
    /// are those of whole requests. Without `model`, `adapter` or `export` it is what was trained.
    pub server: bool,
    /// Answered examples shown before each question, in place of the evaluation's `few_shot`.
    pub few_shot: Option<usize>,
}

/// An artefact of the export that can be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportedModel {
    /// `merged/`, the whole model.
    Merged,
    /// `gguf/`, the whole model in one file.
    Gguf,
}

impl CandidateSection {
    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut fault = |key: &str, message: String, hint: &str| {
            let at = Location::default().with_key(key);
            problems.push(Problem::error("conflict", message).at(at).hint(hint));
        };
        let name = self.name.trim();
        if name.is_empty() {
            fault("name", "a `[[candidate]]` has no `name`".into(), "give it the name that the report shows");
        }
        if [BASE, ADAPTER, TRAINED].contains(&name) {
            fault("name", format!("`{name}` is a candidate already"), "give this one another name");
        }
        if name.contains(['.', '"']) {
            fault(
                "name",
                format!("the name `{name}` has a `.` or a quote"),
                "gates are written `candidate.metric`: take it out",
            );
        }
        if self.export.is_some() && (self.model.is_some() || self.adapter.is_some()) {
            fault(
                "export",
                "`export` names the model; `model` and `adapter` do too".into(),
                "keep one of them",
            );
        }
        if self.endpoint.is_some()
            && (self.model.is_some() || self.adapter.is_some() || self.export.is_some() || self.server)
        {
            fault(
                "endpoint",
                "`endpoint` says where the answers come from, and another key does too".into(),
                "keep one of them",
            );
        }
        let says_nothing = self.endpoint.is_none()
            && self.model.is_none()
            && self.adapter.is_none()
            && self.export.is_none();
        if says_nothing && !self.server && self.few_shot.is_none() {
            fault(
                "name",
                format!("`{name}` is the base again"),
                "set `model`, `adapter`, `export`, `endpoint`, `server` or `few_shot`",
            );
        }
        for problem in
            self.endpoint.iter().flat_map(|endpoint| endpoint.check().iter().cloned().collect::<Vec<_>>())
        {
            let key = problem.location.as_ref().and_then(|location| location.key.clone()).unwrap_or_default();
            problems.push(problem.at(Location::default().with_key(format!("endpoint.{key}"))));
        }
        problems
    }

    /// Whether it is what was trained, through our own server.
    pub fn is_served_trained(&self) -> bool {
        self.server && self.model.is_none() && self.adapter.is_none() && self.export.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_says_what_it_is() {
        let found = |text: &str| toml::from_str::<CandidateSection>(text).unwrap().check().len();
        assert_eq!(found("name = 'shots'\nfew_shot = 3"), 0);
        assert_eq!(found("name = 'q4'\nexport = 'gguf'\nserver = true"), 0);
        for wrong in [
            "few_shot = 1",
            "name = 'same'",
            "name = 'base'\nfew_shot = 1",
            "name = 'a.b'\nfew_shot = 1",
            "name = 'a'\nexport = 'merged'\nmodel = 'x'",
        ] {
            assert_eq!(found(wrong), 1, "{wrong}");
        }
    }
}
