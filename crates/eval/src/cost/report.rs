//! What the candidates cost, side by side.

use super::words::{money, sentence};
use super::{CandidateFacts, CostSection, LocalCost, PriceFile, Serving, break_even};
use crate::statistics::Interval;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_diagnostics::did_you_mean;

/// The cost of all candidates of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CostReport {
    /// The currency of all amounts.
    pub currency: String,
    /// Items a month that it was decided for.
    pub items_per_month: Option<f64>,
    /// The candidates, in the order that they were given.
    pub candidates: Vec<CandidateCost>,
    /// The candidate with the least bill of those that are not worse than the best and can do the items of the month. `None` where none
    /// has a price, or where it depends on how many items a month there are and that was not said.
    pub cheapest: Option<String>,
    /// All of it in a sentence.
    pub sentence: String,
    /// Items a month from which the cheapest local candidate that is not worse is no dearer than the cheapest remote one. `None` where
    /// there are not both, or it never is.
    pub break_even_per_month: Option<u64>,
    /// Joules for each token of the answers of that local candidate (else of the first that was measured). `None`: not measured.
    pub energy_j_per_token: Option<f64>,
    /// What was assumed: name and value, to be shown.
    pub assumptions: Vec<(String, String)>,
}

/// The cost of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateCost {
    /// Its name.
    pub name: String,
    /// Whether it runs on a machine of one's own.
    pub is_local: bool,
    /// Whether it is not worse than the best.
    pub is_not_worse: bool,
    /// The bill of 1000 items; of a local candidate at `items_per_month`.
    pub per_1000: Option<f64>,
    /// The bill of an item over the share of right answers.
    pub per_correct: Option<f64>,
    /// 95 % of it: that of the share of right answers, mapped through. How much tokens and times vary is not in it. `None` also
    /// where the share may be 0: there is no upper end then.
    pub per_correct_interval: Option<Interval>,
    /// Share of right answers.
    pub accuracy: Option<f64>,
    /// The bill of a month with `items_per_month`.
    pub per_month: Option<f64>,
    /// Items that its machine can do in a month, by the measured time.
    pub capacity_per_month: Option<f64>,
    /// Whether these are enough for `items_per_month`.
    pub is_within_capacity: Option<bool>,
}

/// A candidate that has a price.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender<'a> {
    pub(super) name: &'a str,
    /// An API is a machine that costs nothing while it rests and can do everything.
    pub(super) cost: LocalCost,
}

/// What the sentence is about.
#[derive(Debug)]
pub(super) struct Contest<'a> {
    pub(super) currency: &'a str,
    pub(super) items_per_month: Option<f64>,
    /// The cheapest of those that are not worse and have a price.
    pub(super) local: Option<Contender<'a>>,
    pub(super) api: Option<Contender<'a>>,
    pub(super) break_even: Option<u64>,
    /// Whether any, with a price or not, is not worse.
    pub(super) has_local: bool,
    pub(super) has_remote: bool,
}

impl CostReport {
    /// Put the candidates' cost side by side. `prices` are those of the user's file, where there is one; the section must have been
    /// checked.
    pub fn new(section: &CostSection, prices: Option<&PriceFile>, facts: &[CandidateFacts]) -> Self {
        let costs: Vec<Option<LocalCost>> =
            facts.iter().map(|facts| cost_of(section, prices, facts)).collect();
        let items = section.items_per_month;
        let bill = |cost: &LocalCost| items.map_or(cost.fixed_per_month, |items| cost.per_month(items));
        // Whom the machine is too slow for comes last.
        let is_slow = |cost: &LocalCost| items.is_some_and(|items| cost.can_do(items) == Some(false));
        let contenders = |local: bool| {
            let good = facts.iter().zip(&costs).filter(move |(f, _)| f.is_not_worse && f.is_local() == local);
            good.filter_map(|(facts, cost)| Some(Contender { name: &facts.name, cost: (*cost)? }))
        };
        let least = |a: &Contender<'_>, b: &Contender<'_>| {
            is_slow(&a.cost).cmp(&is_slow(&b.cost)).then(bill(&a.cost).total_cmp(&bill(&b.cost)))
        };
        let local = contenders(true).min_by(least);
        let api = contenders(false).min_by(|a, b| a.cost.per_item.total_cmp(&b.cost.per_item));
        let any = |local: bool| facts.iter().any(|facts| facts.is_not_worse && facts.is_local() == local);
        let contest = Contest {
            currency: &section.currency,
            items_per_month: items,
            break_even: local.zip(api).and_then(|(local, api)| break_even(&local.cost, api.cost.per_item)),
            local,
            api,
            has_local: any(true),
            has_remote: any(false),
        };
        Self {
            currency: section.currency.clone(),
            items_per_month: items,
            candidates: facts
                .iter()
                .zip(&costs)
                .map(|(facts, cost)| CandidateCost::new(facts, *cost, items))
                .collect(),
            cheapest: contest.cheapest().map(str::to_owned),
            sentence: sentence(&contest),
            break_even_per_month: contest.break_even,
            energy_j_per_token: energy(facts, contest.local.map(|local| local.name)),
            assumptions: assumptions(section, prices, facts),
        }
    }
}

impl<'a> Contest<'a> {
    /// Who wins where that can be said: at the volume, or at any.
    fn cheapest(&self) -> Option<&'a str> {
        match (&self.local, &self.api, self.items_per_month) {
            (Some(local), Some(api), Some(items)) => {
                let is_dearer = local.cost.per_month(items) > api.cost.per_month(items);
                let local_loses = is_dearer || local.cost.can_do(items) == Some(false);
                Some(if local_loses { api.name } else { local.name })
            }
            (Some(_), Some(api), None) => self.break_even.is_none().then_some(api.name),
            (Some(local), None, items) => {
                let is_slow = items.is_some_and(|items| local.cost.can_do(items) == Some(false));
                (!is_slow).then_some(local.name)
            }
            (None, api, _) => api.as_ref().map(|api| api.name),
        }
    }
}

impl CandidateFacts {
    fn is_local(&self) -> bool {
        matches!(self.serving, Serving::Local { .. })
    }
}

impl CandidateCost {
    fn new(facts: &CandidateFacts, cost: Option<LocalCost>, items: Option<f64>) -> Self {
        let is_local = facts.is_local();
        let per_month = cost.zip(items).map(|(cost, items)| cost.per_month(items));
        let per_item = match is_local {
            true => per_month.zip(items).map(|(bill, items)| bill / items),
            false => cost.map(|cost| cost.per_item),
        };
        let over = |share: f64| per_item.filter(|_| share > 0.0).map(|per_item| per_item / share);
        let per_correct_interval = facts
            .interval
            .and_then(|share| Some(Interval { low: over(share.high.min(1.0))?, high: over(share.low)? }));
        Self {
            name: facts.name.clone(),
            is_local,
            is_not_worse: facts.is_not_worse,
            per_1000: per_item.map(|per_item| 1000.0 * per_item),
            per_correct: facts.accuracy.and_then(over),
            per_correct_interval,
            accuracy: facts.accuracy,
            per_month,
            capacity_per_month: cost.and_then(|cost| cost.capacity_per_month),
            is_within_capacity: cost.zip(items).and_then(|(cost, items)| cost.can_do(items)),
        }
    }
}

/// `None` where it has no price, or nothing of it was measured.
fn cost_of(section: &CostSection, prices: Option<&PriceFile>, facts: &CandidateFacts) -> Option<LocalCost> {
    match &facts.serving {
        Serving::Local { seconds_per_item, is_trained, .. } => section.local(*seconds_per_item, *is_trained),
        Serving::Remote { model } => {
            let price = prices?.models.get(model)?;
            let per_item = (facts.items > 0).then(|| price.of(facts.tokens) / facts.items as f64)?;
            Some(LocalCost { fixed_per_month: 0.0, per_item, capacity_per_month: None })
        }
    }
}

fn energy(facts: &[CandidateFacts], preferred: Option<&str>) -> Option<f64> {
    let of = |facts: &CandidateFacts| match facts.serving {
        Serving::Local { joules: Some(joules), .. } if facts.tokens.output > 0 => {
            Some(joules / facts.tokens.output as f64)
        }
        _ => None,
    };
    let preferred = facts.iter().filter(|facts| Some(facts.name.as_str()) == preferred).find_map(of);
    preferred.or_else(|| facts.iter().find_map(of))
}

fn assumptions(
    section: &CostSection,
    prices: Option<&PriceFile>,
    facts: &[CandidateFacts],
) -> Vec<(String, String)> {
    let mut told: Vec<(String, String)> = Vec::new();
    let mut tell = |name: &str, value: String| told.push((name.to_owned(), value));
    let amount = |amount: f64| money(amount, &section.currency);
    if let Some(items) = section.items_per_month {
        tell("items a month", super::words::count(items));
    }
    match (section.rent_per_hour, section.hardware_price) {
        (Some(rent), _) => tell("machine", format!("rented at {} an hour, 730 hours a month", amount(rent))),
        (None, Some(price)) => {
            tell("machine", format!("{} over {} months", amount(price), section.months));
            let used = match section.utilisation {
                Some(share) => format!("busy {:.0} % of the time", 100.0 * share),
                None => "busy as long as the items take".to_owned(),
            };
            let (idle, busy) = (section.idle_watts, section.busy_watts);
            let price = amount(section.power_price_per_kwh);
            tell("power", format!("{idle} W idle, {busy} W busy, {price} a kWh, {used}"));
        }
        (None, None) => tell("machine", "no price given".into()),
    }
    tell("care", format!("{} h a month at {}", section.care_hours_per_month, amount(section.care_rate)));
    let training = amount(section.training_cost);
    tell("training", format!("{training} over {} months, paid by what was trained", section.months));
    if let Some(prices) = prices {
        tell("prices", format!("of {}", prices.date));
    }
    for facts in facts {
        match &facts.serving {
            Serving::Remote { model } if prices.is_none_or(|prices| !prices.models.contains_key(model)) => {
                let names = prices.into_iter().flat_map(|prices| prices.models.keys().map(String::as_str));
                let near = did_you_mean(model, names)
                    .map_or_else(String::new, |near| format!(" (there is `{near}`)"));
                tell(&format!("price of {}", facts.name), format!("none is given for `{model}`{near}"));
            }
            Serving::Local { seconds_per_item: None, .. } => {
                tell(
                    &format!("time of {}", facts.name),
                    "not measured: what it can do in a month is not known".into(),
                );
            }
            _ => {}
        }
    }
    tell("cost per correct answer", "its interval is that of the share of right answers alone".into());
    told
}

#[cfg(test)]
mod tests;
