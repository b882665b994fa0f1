//! What chooses the best checkpoint of a recipe, where it is not the validation loss.

use crate::fault::OrFault;
use crate::session::Session;
use taper_diagnostics::{Problem, Problems, list_names};
use taper_recipe::{RecipeError, ResolvedRun};
use taper_train::{EVAL_LOSS, Validator};

/// Who measures what `train.metric_for_best_model` names; `None` for the validation loss, which the training measures itself.
pub(crate) fn validator_of(session: &Session) -> anyhow::Result<Option<Box<dyn Validator + '_>>> {
    match session.run.recipe.train.best_metric() {
        None => Ok(None),
        Some(_) => Err(RecipeError::Problems(check_metric(&session.run))).or_fault(),
    }
}

/// Whether there is such a metric; found before anything is loaded.
pub(crate) fn check_metric(run: &ResolvedRun) -> Problems {
    let mut problems = Problems::new();
    let train = &run.recipe.train;
    if train.best_metric().is_some() {
        let allowed = list_names([EVAL_LOSS], 1);
        let message =
            format!("`metric_for_best_model` is `{}`, allowed is {allowed}", train.metric_for_best_model);
        let hint = "leave the key out to go by the validation loss";
        let at = run.location("train.metric_for_best_model");
        problems.push(Problem::error("unknown-metric", message).at(at).hint(hint));
    }
    problems
}
