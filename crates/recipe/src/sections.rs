//! The sections of a recipe, each a type of the crate that reads it.

use crate::smoke::SmokeSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_data::DataSection;
use taper_eval::cost::CostSection;
use taper_eval::{CandidateSection, EvalSection, GateSection, ReportSection};
use taper_export::ExportSection;
use taper_hub::ModelSection;
use taper_peft::AdapterSection;
use taper_serve::ServeSection;
use taper_train::{OptimizerSection, ScheduleSection, TrainSection};

/// One fine-tuning run: which base, which data, how to train, how to judge, what to write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the recipe format: 1.
    pub schema: u32,
    /// Name of the run; the default is the file's name. The run's folder is `runs/<name>`.
    #[serde(default)]
    pub name: Option<String>,
    /// What the run is for; it is printed and goes into the report.
    #[serde(default)]
    pub description: Option<String>,
    /// Another recipe, relative to this file, whose values hold where this one says nothing.
    #[serde(default)]
    pub extends: Option<String>,
    /// The base model.
    pub model: ModelSection,
    /// The low-rank adapter; left out when all weights are trained.
    #[serde(default)]
    pub adapter: Option<AdapterSection>,
    /// The examples.
    pub data: DataSection,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSection,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// The learning-rate schedule.
    #[serde(default)]
    pub schedule: ScheduleSection,
    /// Evaluations of base and adapter on held-out data.
    #[serde(default)]
    pub eval: Vec<EvalSection>,
    /// What is evaluated beside the base and what was trained.
    #[serde(default)]
    pub candidate: Vec<CandidateSection>,
    /// What the evaluations must reach for the run to pass.
    #[serde(default)]
    pub gate: GateSection,
    /// What it costs to run the candidates.
    #[serde(default)]
    pub cost: Option<CostSection>,
    /// What reports say of single items.
    #[serde(default)]
    pub report: ReportSection,
    /// What is written at the end.
    #[serde(default)]
    pub export: ExportSection,
    /// How `taper serve` serves the base and what was trained.
    #[serde(default)]
    pub serve: ServeSection,
    /// What `taper smoke` makes of the recipe: a run of minutes on a CPU, for each change.
    #[serde(default)]
    pub smoke: SmokeSection,
}
