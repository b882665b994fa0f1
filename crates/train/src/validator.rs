//! A measure of the model beside the validation loss, by which the best checkpoint may be chosen.

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use taper_models::CausalLm;

/// What `train.metric_for_best_model` names the validation loss.
pub const EVAL_LOSS: &str = "eval_loss";
/// What stands before the name of a metric in the log, as in Hugging Face's trainer.
pub(crate) const PREFIX: &str = "eval_";

/// Scores the model when a validation is due, beside the validation loss; for example by the answers that it generates.
///
/// The model comes as it is trained at that step, its adapter on; a validator reads it and changes nothing of it. A score is to depend
/// on the model alone, not on when or how often it is asked for: a run that was interrupted then ends as the uninterrupted one.
/// The training does not go on meanwhile, and an interruption waits for it.
pub trait Validator {
    /// The metric's name without `eval_`: `exact_match`.
    fn name(&self) -> &str;

    /// Whether a higher score is a better one.
    fn higher_is_better(&self) -> bool;

    /// The score of the model after `step` steps. One that is not finite is no better than any other.
    ///
    /// # Errors
    /// Whatever kept it from being measured; the run ends there.
    fn score(&mut self, model: &dyn CausalLm, step: u64) -> Result<f64, ValidatorError>;
}

/// What kept a score from being measured.
pub type ValidatorError = Box<dyn std::error::Error + Send + Sync>;

/// A metric and its value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricValue {
    /// The name without `eval_`.
    pub name: String,
    /// The value.
    #[serde(with = "crate::checkpoint::exact")]
    pub value: f64,
}

impl MetricValue {
    /// The name as the log has it.
    pub fn logged_name(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }
}

/// In a line of the log: `"eval_exact_match": 0.5`.
pub(crate) mod in_line {
    use super::{
        Deserialize, Deserializer, EVAL_LOSS, Map, MetricValue, PREFIX, SerializeMap, Serializer, Value,
    };

    pub(crate) fn serialize<S: Serializer>(
        metric: &Option<MetricValue>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(usize::from(metric.is_some())))?;
        if let Some(metric) = metric {
            map.serialize_entry(&metric.logged_name(), &metric.value)?;
        }
        map.end()
    }

    /// A number that is not finite stands there as `null`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MetricValue>, D::Error> {
        let others = Map::<String, Value>::deserialize(deserializer)?;
        let metric = |(key, value): (&String, &Value)| {
            let name = key.strip_prefix(PREFIX).filter(|_| key != EVAL_LOSS)?.to_owned();
            (value.is_number() || value.is_null())
                .then(|| MetricValue { name, value: value.as_f64().unwrap_or(f64::NAN) })
        };
        Ok(others.iter().find_map(metric))
    }
}
