//! Numbers worked by hand, and every sentence.

use super::*;
use crate::cost::{Price, Tokens};
use std::collections::BTreeMap;
use time::{Date, Month};

fn near(a: Option<f64>, b: f64) {
    assert!(a.is_some_and(|a| (a - b).abs() <= 1e-9 * b.abs().max(1.0)), "{a:?} is not {b}");
}

/// 100 items, 100,000 tokens in and 50,000 out.
fn facts(name: &str, serving: Serving, is_not_worse: bool) -> CandidateFacts {
    CandidateFacts {
        name: name.into(),
        serving,
        accuracy: Some(0.8),
        interval: Some(Interval { low: 0.5, high: 1.0 }),
        items: 100,
        tokens: Tokens { input: 100_000, output: 50_000, ..Tokens::default() },
        is_not_worse,
    }
}

fn local(name: &str) -> CandidateFacts {
    facts(name, Serving::Local { seconds_per_item: Some(2.0), joules: Some(1000.0), is_trained: true }, true)
}

fn remote(name: &str) -> CandidateFacts {
    facts(name, Serving::Remote { model: name.into() }, true)
}

/// `gpt`: 1000 tokens in at 1 and 500 out at 2 a million are 0.002 an item. `big`: ten times that.
fn prices() -> PriceFile {
    let price = |input, output| Price { input, output, input_cache_read: None, input_cache_write: None };
    let models = BTreeMap::from([("gpt".to_owned(), price(1.0, 2.0)), ("big".to_owned(), price(10.0, 20.0))]);
    PriceFile { date: Date::from_calendar_date(2026, Month::May, 1).unwrap(), models }
}

/// 100 a month for the machine, 200 of care, 20 of training; no power: 320 a month.
fn section(items_per_month: Option<f64>) -> CostSection {
    CostSection {
        hardware_price: Some(3600.0),
        care_hours_per_month: 4.0,
        care_rate: 50.0,
        training_cost: 720.0,
        items_per_month,
        ..CostSection::default()
    }
}

fn report(items: Option<f64>, facts: &[CandidateFacts]) -> CostReport {
    CostReport::new(&section(items), Some(&prices()), facts)
}

#[test]
fn amounts_are_those_worked_by_hand() {
    let report = report(Some(100_000.0), &[local("adapter"), remote("gpt"), remote("big")]);
    let [adapter, gpt, big] = &report.candidates[..] else { panic!() };
    near(adapter.per_month, 320.0);
    near(adapter.per_1000, 3.2);
    near(adapter.per_correct, 0.004);
    near(adapter.capacity_per_month, 1_314_000.0);
    assert_eq!((adapter.is_within_capacity, adapter.is_local), (Some(true), true));
    near(gpt.per_1000, 2.0);
    near(gpt.per_month, 200.0);
    near(gpt.per_correct, 0.0025);
    let interval = gpt.per_correct_interval.unwrap();
    near(Some(interval.low), 0.002);
    near(Some(interval.high), 0.004);
    assert_eq!((gpt.capacity_per_month, gpt.is_within_capacity), (None, None));
    near(big.per_month, 2000.0);
    // 320 / 0.002
    assert_eq!(report.break_even_per_month, Some(160_000));
    near(report.energy_j_per_token, 0.02);
    assert_eq!(report.cheapest.as_deref(), Some("gpt"));
    assert_eq!(
        report.sentence,
        "The API wins: at 100,000 items a month `adapter` costs 320.00 USD and `gpt` 200.00 USD; local wins from 160,000 items a month."
    );
}

#[test]
fn an_untrained_candidate_pays_for_no_training() {
    let base = CandidateFacts {
        serving: Serving::Local { seconds_per_item: None, joules: None, is_trained: false },
        ..local("base")
    };
    let report = report(Some(1000.0), &[base]);
    near(report.candidates[0].per_month, 300.0);
    assert_eq!((report.candidates[0].capacity_per_month, report.energy_j_per_token), (None, None));
    assert!(
        report
            .assumptions
            .iter()
            .any(|(name, value)| name == "time of base" && value.contains("not measured"))
    );
}

#[test]
fn a_share_of_nothing_has_no_cost_of_a_right_answer() {
    let none = CandidateFacts {
        accuracy: Some(0.0),
        interval: Some(Interval { low: 0.0, high: 0.1 }),
        ..remote("gpt")
    };
    let unscored = CandidateFacts { accuracy: None, interval: None, items: 0, ..remote("gpt") };
    let report = report(None, &[none, unscored]);
    let [none, unscored] = &report.candidates[..] else { panic!() };
    assert_eq!((none.per_correct, none.per_correct_interval), (None, None));
    near(none.per_1000, 2.0);
    assert_eq!((unscored.per_1000, unscored.per_correct), (None, None));
}

#[test]
fn only_those_that_are_as_good_are_compared() {
    let worse = |facts: CandidateFacts| CandidateFacts { is_not_worse: false, ..facts };
    let sentence = |items, facts: &[CandidateFacts]| {
        let report = report(items, facts);
        (report.cheapest, report.break_even_per_month, report.sentence)
    };
    let named = |name: &str| Some(name.to_owned());
    // Against the large one: 320 / 0.02.
    assert_eq!(
        sentence(Some(20_000.0), &[local("adapter"), worse(remote("gpt")), remote("big")]),
        (
            named("adapter"),
            Some(16_000),
            "Local wins from 16,000 items a month: at 20,000 items a month `adapter` costs 320.00 USD and `big` 400.00 USD.".into()
        )
    );
    assert_eq!(
        sentence(None, &[local("adapter"), remote("big")]),
        (
            None,
            Some(16_000),
            "Local wins from 16,000 items a month: below that `big` is cheaper than `adapter`.".into()
        )
    );
    assert_eq!(
        sentence(Some(20_000.0), &[worse(local("adapter")), remote("gpt"), remote("big")]),
        (
            named("gpt"),
            None,
            "The API wins: `gpt` is the cheapest that is as good as the best, at 2.00 USD for 1000 items, and no local candidate is as good."
                .into()
        )
    );
    assert_eq!(
        sentence(Some(20_000.0), &[local("adapter"), worse(remote("gpt"))]),
        (
            named("adapter"),
            None,
            "Local wins: `adapter` costs 320.00 USD a month for 20,000 items, and no remote candidate is as good.".into()
        )
    );
    assert_eq!(sentence(None, &[local("adapter"), remote("nameless")]).0, named("adapter"));
    let (cheapest, _, said) = sentence(None, &[worse(local("adapter")), remote("nameless")]);
    assert_eq!(cheapest, None);
    assert!(said.starts_with("No candidate that is as good has a price, "), "{said}");
}

#[test]
fn a_machine_that_is_too_slow_does_not_win() {
    let many = Some(2_000_000.0);
    let with_api = report(many, &[local("adapter"), remote("big")]);
    assert_eq!(with_api.cheapest.as_deref(), Some("big"));
    assert_eq!(
        with_api.sentence,
        "The API wins: 2,000,000 items a month are asked, the machine of `adapter` does at most 1,314,000; `big` is the cheapest that \
         is as good as the best, at 20.00 USD for 1000 items."
    );
    let alone = report(many, &[local("adapter")]);
    assert_eq!((alone.cheapest, alone.candidates[0].is_within_capacity), (None, Some(false)));
    assert!(
        alone.sentence.contains("at most 1,314,000 items a month, 2,000,000 are asked"),
        "{}",
        alone.sentence
    );
    // The faster of two is taken.
    let mut fast = local("fast");
    fast.serving = Serving::Local { seconds_per_item: Some(1.0), joules: None, is_trained: true };
    assert_eq!(report(many, &[local("adapter"), fast]).cheapest.as_deref(), Some("fast"));
}

#[test]
fn where_it_never_pays_that_is_said() {
    let mut slow = local("adapter");
    slow.serving = Serving::Local { seconds_per_item: Some(20.0), joules: None, is_trained: true };
    // 131,400 items a month at most, 160,000 would be needed.
    let report = report(Some(1000.0), &[slow.clone(), remote("gpt")]);
    assert_eq!((report.break_even_per_month, report.cheapest.as_deref()), (None, Some("gpt")));
    assert!(
        report.sentence.ends_with(
            "`adapter` would have to do 160,000 items a month, and the machine does at most 131,400."
        ),
        "{}",
        report.sentence
    );
    let hungry = CostSection { power_price_per_kwh: 10.0, busy_watts: 400.0, ..section(None) };
    let report = CostReport::new(&hungry, Some(&prices()), &[slow, remote("gpt")]);
    assert_eq!((report.break_even_per_month, report.cheapest.as_deref()), (None, Some("gpt")));
    assert!(report.sentence.ends_with("its power alone costs as much."), "{}", report.sentence);
}

#[test]
fn what_has_no_price_is_told() {
    let report =
        CostReport::new(&CostSection::default(), Some(&prices()), &[local("adapter"), remote("gpt")]);
    assert!(
        report.sentence.contains("the local candidate that is as good has no price"),
        "{}",
        report.sentence
    );
    let report = CostReport::new(&CostSection::default(), None, &[local("adapter"), remote("gtp")]);
    assert!(report.sentence.contains("`hardware_price`") && report.cheapest.is_none());
    let report = CostReport::new(&section(None), Some(&prices()), &[remote("gptt")]);
    let told = report.assumptions.iter().find(|(name, _)| name == "price of gptt").unwrap();
    assert_eq!(told.1, "none is given for `gptt` (there is `gpt`)");
    assert_eq!(CostReport::new(&section(None), None, &[]).candidates, []);
}

#[test]
fn the_json_has_the_reports_shape_and_comes_back() {
    let report = report(Some(100_000.0), &[local("adapter"), remote("gpt")]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["candidates"][1]["per_correct_interval"]["high"], 0.004);
    assert_eq!(
        json["assumptions"][2],
        serde_json::json!(["power", "0 W idle, 0 W busy, 0.00 USD a kWh, busy as long as the items take"])
    );
    assert_eq!(json["assumptions"][3], serde_json::json!(["care", "4 h a month at 50.00 USD"]));
    assert_eq!(json["break_even_per_month"], 160_000);
    assert_eq!(serde_json::from_value::<CostReport>(json).unwrap(), report);
}
