//! What the evaluations can say at all, known before anything is trained.

use crate::session::Session;
use crate::tasks::HeldOut;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use taper_eval::gate::{Ask, Requirement};
use taper_eval::statistics::detectable_effect;
use taper_eval::{ItemFacts, Metric, Pooling, detectable_gain, least_gain};

/// The share of answers in which base and adapter are taken to differ when nobody knows.
const DISAGREEMENT: f64 = 0.2;
/// Slices of a field that are told.
const MOST_SLICES: usize = 10;

/// Lines for people, the decisive metric of each evaluation first.
pub(super) fn lines(session: &Session) -> Vec<String> {
    session.tasks.iter().flat_map(|held_out| of_evaluation(session, held_out)).collect()
}

fn of_evaluation(session: &Session, held_out: &HeldOut) -> Vec<String> {
    let section = &held_out.task.section;
    let facts = held_out.task.facts();
    let n = units(&facts);
    let what = match (&section.cluster_by, section.metrics.len()) {
        (Some(field), _) => format!("{n} groups by `{field}` of {} rows", facts.len()),
        (None, _) => format!("{n} rows"),
    };
    let mut lines = Vec::new();
    let told: BTreeMap<&str, Vec<Metric>> =
        section.metrics.iter().fold(BTreeMap::new(), |mut told, metric| {
            let kind = if metric.pooling() == Pooling::Share { "share" } else { "scores" };
            told.entry(kind).or_insert_with(Vec::new).push(*metric);
            told
        });
    for (kind, metrics) in told {
        let least = if kind == "share" { of_share(n) } else { of_scores(n) };
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name()).collect();
        let gates: String = metrics.iter().map(|metric| asked(session, held_out, *metric, n)).collect();
        lines.push(format!("resolves    {}, {}: {what}, {least}{gates}", section.name, names.join(", ")));
    }
    for field in &section.slices {
        let sizes = sizes_by(&facts, field);
        let list: Vec<String> = sizes
            .iter()
            .take(MOST_SLICES)
            .map(|(value, n)| format!("{value} ({n}: {})", short(*n)))
            .collect();
        let more = if sizes.len() > MOST_SLICES { ", ..." } else { "" };
        lines.push(format!("resolves    {}, by `{field}`: {}{more}", section.name, list.join(", ")));
    }
    lines
}

/// What is counted by tests: items, or groups of them.
fn units(facts: &[ItemFacts]) -> usize {
    let clusters: BTreeSet<&String> = facts.iter().filter_map(|item| item.cluster.as_ref()).collect();
    let alone = facts.iter().filter(|item| item.cluster.is_none()).count();
    clusters.len() + alone
}

fn sizes_by(facts: &[ItemFacts], field: &str) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for value in facts.iter().filter_map(|item| item.slices.get(field)) {
        *sizes.entry(value.clone()).or_insert(0) += 1;
    }
    sizes
}

fn of_share(n: usize) -> String {
    match (least_gain(n), detectable_gain(n, DISAGREEMENT)) {
        (None, _) => "too few to show any gain".to_owned(),
        (Some(least), None) => format!("no gain below {} points shows", points(least)),
        (Some(least), Some(gain)) => format!(
            "no gain below {} points shows; one of {} does in 4 runs of 5, when a fifth of the answers differ",
            points(least),
            points(gain)
        ),
    }
}

fn of_scores(n: usize) -> String {
    match detectable_effect(n as u64) {
        Some(effect) if n >= 6 => format!(
            "a mean difference of {effect:.2} standard deviations of the items' differences shows in 4 runs of 5"
        ),
        _ => "too few to show any difference".to_owned(),
    }
}

fn short(n: usize) -> String {
    detectable_gain(n, DISAGREEMENT).map_or("too few".to_owned(), |gain| format!("{} points", points(gain)))
}

/// What the gates ask of this metric, and whether so many items can show it.
fn asked(session: &Session, held_out: &HeldOut, metric: Metric, n: usize) -> String {
    let recipe = &session.run.recipe;
    let section = &held_out.task.section;
    let requirements = recipe.gate.requirements(&recipe.eval, &recipe.candidate).unwrap_or_default();
    let is_of_it = |requirement: &&Requirement| {
        requirement.subject.eval.as_ref().is_none_or(|name| *name == section.name)
            && requirement.metric().or(section.metrics.first().copied()) == Some(metric)
    };
    let told = requirements.iter().filter(is_of_it).filter_map(|requirement| {
        let (what, size) = match requirement.ask {
            Ask::Effect { value, at_least: true, .. } if value > 0.0 => ("asks for", value),
            Ask::BetterThan { by, .. } if by > 0.0 => ("asks for", by),
            Ask::NotWorseThan { by, .. } => ("accepts a loss of", by),
            _ => return None,
        };
        let doubt = if metric.pooling() != Pooling::Share || can_show(n, size) {
            ""
        } else {
            ", which they can hardly show"
        };
        Some(format!("; the gate {what} {}{doubt}", points(size)))
    });
    told.collect()
}

/// Whether `n` rows show a gain of that size in four runs of five.
fn can_show(n: usize, gain: f64) -> bool {
    detectable_gain(n, DISAGREEMENT.max(gain)).is_some_and(|least| least <= gain)
}

fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

pub(super) fn json(held_out: &HeldOut) -> Value {
    let section = &held_out.task.section;
    let facts = held_out.task.facts();
    let n = units(&facts);
    let of = |n: usize, metric: Metric| match metric.pooling() {
        Pooling::Share => {
            json!({ "least_gain": least_gain(n), "detectable_gain": detectable_gain(n, DISAGREEMENT) })
        }
        _ => json!({ "detectable_effect_dz": detectable_effect(n as u64) }),
    };
    let metrics: serde_json::Map<String, Value> =
        section.metrics.iter().map(|metric| (metric.name().to_owned(), of(n, *metric))).collect();
    let first = section.metrics.first().copied();
    let slices = section.slices.iter().flat_map(|field| {
        let slice = move |(value, n): (String, usize)| {
            json!({ "field": field, "value": value, "items": n, "resolves": first.map(|metric| of(n, metric)) })
        };
        sizes_by(&facts, field).into_iter().map(slice)
    });
    json!({
        "name": section.name,
        "items": facts.len(),
        "units": n,
        "metrics": metrics,
        "slices": slices.collect::<Vec<_>>(),
        "at_disagreement": DISAGREEMENT,
    })
}

#[cfg(test)]
mod tests {
    use super::can_show;

    #[test]
    fn a_gain_shows_when_there_are_rows_enough() {
        assert!(can_show(200, 0.3) && can_show(200, 0.1));
        assert!(!can_show(200, 0.02) && !can_show(5, 0.5));
    }
}
