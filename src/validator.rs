//! What chooses the best checkpoint of a recipe, where it is not the validation loss: a metric of answers to the validation data.

use crate::fault::{OrFault, user_error};
use crate::session::Session;
use taper_diagnostics::{Problem, Problems, list_names};
use taper_eval::{EvalTask, Metric, Needs};
use taper_models::CausalLm;
use taper_recipe::ResolvedRun;
use taper_text::Tokenizer;
use taper_train::{EVAL_LOSS, Validator, ValidatorError};

/// Measures the model in training on the validation data, as an evaluation of the recipe would.
struct ByMetric<'s> {
    metric: Metric,
    task: EvalTask,
    tokenizer: &'s Tokenizer,
}

impl Validator for ByMetric<'_> {
    fn name(&self) -> &str {
        self.metric.name()
    }

    fn higher_is_better(&self) -> bool {
        self.metric.higher_is_better()
    }

    fn score(&mut self, model: &dyn CausalLm, _step: u64) -> Result<f64, ValidatorError> {
        Ok(self.task.measure(model, self.tokenizer)?.unwrap_or(f64::NAN))
    }
}

/// Who measures what `train.metric_for_best_model` names; `None` for the validation loss, which the training measures itself.
pub(crate) fn validator_of(session: &Session) -> anyhow::Result<Option<Box<dyn Validator + '_>>> {
    check_metric(&session.run).into_result().or_fault()?;
    let train = &session.run.recipe.train;
    let metric = train.best_metric().and_then(Metric::of_name);
    let held_out = session
        .tasks
        .iter()
        .find(|held_out| metric.is_some_and(|metric| held_out.task.section.metrics.contains(&metric)));
    let (Some(metric), Some(held_out)) = (metric, held_out) else { return Ok(None) };
    let (base, valid) = (&session.base, &session.data.valid.tokenized);
    let section = &held_out.task.section;
    let (schema, stop) = (held_out.schema().cloned(), &held_out.task.stop_token_ids);
    let task = EvalTask::of_tokens(section, metric, schema, valid, &base.tokenizer, stop).or_fault()?;
    if task.items.is_empty() {
        return Err(user_error(
            format!(
                "no validation example can be measured by `{metric}`, which is to choose the best checkpoint"
            ),
            "look at `data.valid`, or leave `train.metric_for_best_model` out to go by the validation loss",
        ));
    }
    Ok(Some(Box::new(ByMetric { metric, task, tokenizer: &base.tokenizer })))
}

/// Whether there is such a metric; found before anything is loaded.
pub(crate) fn check_metric(run: &ResolvedRun) -> Problems {
    let mut problems = Problems::new();
    let recipe = &run.recipe;
    let Some(name) = recipe.train.best_metric() else { return problems };
    let can = |metric: &Metric| matches!(metric.needs(), Needs::Answer | Needs::Losses);
    let measured: Vec<Metric> =
        recipe.eval.iter().flat_map(|eval| eval.metrics.iter().copied()).filter(can).collect();
    if measured.iter().any(|metric| metric.name() == name) {
        return problems;
    }
    let mut allowed: Vec<&str> = vec![EVAL_LOSS];
    allowed.extend(measured.iter().map(|metric| metric.name()));
    let message = format!(
        "`metric_for_best_model` is `{}`, allowed is {}",
        recipe.train.metric_for_best_model,
        list_names(&allowed, allowed.len())
    );
    let hint = match Metric::of_name(name).filter(can) {
        Some(_) => {
            format!("measure `{name}` in an `[[eval]]`: its settings are taken for the validation data")
        }
        None => "leave the key out to go by the validation loss".to_owned(),
    };
    let at = run.location("train.metric_for_best_model");
    problems.push(Problem::error("unknown-metric", message).at(at).hint(hint));
    problems
}
