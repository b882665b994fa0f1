//! What the candidates of a run cost.

use crate::candidates::{base_name, trained_name};
use crate::fault::OrFault;
use crate::output::say;
use crate::session::Session;
use taper_eval::cost::{CostReport, PriceFile, Serving, facts_of};
use taper_eval::{EvalResult, Evaluation, Pooling};

/// The cost by the first evaluation that counts right answers, where the recipe has `[cost]`; else by the first.
pub(crate) fn cost_report(
    session: &Session,
    evaluations: &[Evaluation],
) -> anyhow::Result<Option<CostReport>> {
    let recipe = &session.run.recipe;
    let counts =
        |evaluation: &&Evaluation| evaluation.metrics().any(|metric| metric.pooling() == Pooling::Share);
    let first = evaluations.iter().find(counts).or(evaluations.first());
    let (Some(section), Some(evaluation)) = (&recipe.cost, first) else { return Ok(None) };
    let today = time::OffsetDateTime::now_utc().date();
    let prices = section.prices.as_deref().map(|path| PriceFile::load(path, &section.currency, today));
    let prices = match prices.transpose() {
        Err(problems) => return Err(taper_data::Error::Problems(problems)).or_fault(),
        Ok(None) => None,
        Ok(Some((prices, warnings))) => {
            if !warnings.is_empty() {
                say(&warnings.to_string());
            }
            Some(prices)
        }
    };
    let serving = |result: &EvalResult| {
        let candidate = recipe.candidate.iter().find(|section| section.name == result.candidate);
        match candidate.and_then(|section| section.endpoint.as_ref()) {
            Some(endpoint) => Serving::Remote { model: endpoint.model.clone() },
            None => Serving::Local {
                seconds_per_item: result.usage.seconds_per_item,
                joules: result.usage.joules,
                is_trained: is_trained(session, &result.candidate),
            },
        }
    };
    Ok(Some(CostReport::new(section, prices.as_ref(), &facts_of(evaluation, &serving))))
}

/// Whether a local candidate has weights that this run trained.
fn is_trained(session: &Session, name: &str) -> bool {
    let section = session.run.recipe.candidate.iter().find(|section| section.name == name);
    match section {
        Some(section) => section.export.is_some() || section.is_served_trained(),
        None => name == trained_name(session) && Some(name) != base_name(session),
    }
}
