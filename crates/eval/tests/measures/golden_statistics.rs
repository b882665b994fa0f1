//! Statistics beside scipy and statsmodels.

use crate::{golden, list, near, number, numbers};
use serde_json::Value;
use taper_eval::statistics::distributions::{
    beta_cdf, beta_quantile, binomial_cdf, binomial_pmf, noncentral_student_tail, normal_cdf,
    normal_quantile, student_cdf, student_quantile,
};
use taper_eval::statistics::{
    Bootstrap, Interval, PERMUTATIONS, PairedCounts, Tail, Units, clustered_mean_interval, cohen_dz, cohen_h,
    detectable_effect, discordant_odds, holm, items_for_effect, mcnemar_exact, mcnemar_mid_p, mean_interval,
    newcombe, paired_permutation, power_of_effect, power_of_gain, tango, wilson,
};

const EXACT: f64 = 1e-9;

fn statistics() -> Value {
    golden("statistics/statistics.json")
}

/// The rows of a table of numbers.
fn rows(golden: &Value, name: &str) -> Vec<Vec<f64>> {
    let rows: Vec<Vec<f64>> = list(&golden[name]).iter().map(numbers).collect();
    assert!(!rows.is_empty());
    rows
}

#[track_caller]
fn near_interval(got: Interval, expected: &Value, by: f64, what: &str) {
    near(got.low, number(&expected[0]), by, what);
    near(got.high, number(&expected[1]), by, what);
}

#[test]
fn distributions_are_those_of_scipy() {
    let golden = statistics();
    for row in rows(&golden, "normal") {
        near(normal_cdf(row[0]), row[1], 1e-14, "normal cdf");
        near(normal_quantile(row[2]), row[3], 1e-12, "normal quantile");
    }
    // Tails are right relative to their own size.
    assert!((normal_cdf(-9.0) / 1.128_588_405_953_840_6e-19 - 1.0).abs() < 1e-10);
    for row in rows(&golden, "student") {
        near(student_cdf(row[0], row[1]), row[2], 1e-11, "student cdf");
        near(student_quantile(row[3], row[1]), row[4], EXACT, "student quantile");
    }
    for row in rows(&golden, "beta") {
        near(beta_cdf(row[0], row[1], row[2]), row[3], 1e-11, "beta cdf");
        near(beta_quantile(0.025, row[1], row[2]), row[4], EXACT, "beta quantile");
    }
    for row in rows(&golden, "binomial") {
        let (k, n) = (row[0] as u64, row[1] as u64);
        near(binomial_cdf(k, n, row[2]), row[3], 1e-10, "binomial cdf");
        near(binomial_pmf(k, n, row[2]), row[4], 1e-10, "binomial pmf");
    }
    for row in rows(&golden, "noncentral") {
        near(noncentral_student_tail(row[0], row[1], row[2]), row[3], 1e-8, "noncentral student");
    }
}

#[test]
fn shares_are_those_of_statsmodels() {
    let golden = statistics();
    for row in rows(&golden, "wilson") {
        let interval = wilson(row[0] as usize, row[1] as usize);
        near(interval.low, row[2], EXACT, "wilson");
        near(interval.high, row[3], EXACT, "wilson");
    }
    for row in rows(&golden, "mcnemar") {
        let (won, lost) = (row[0] as usize, row[1] as usize);
        near(mcnemar_exact(won, lost), row[2], EXACT, "mcnemar");
        near(mcnemar_mid_p(won, lost), row[3], EXACT, "mid-p");
    }
    for row in rows(&golden, "odds") {
        let (odds, interval) = discordant_odds(row[0] as usize, row[1] as usize).unwrap();
        near(odds, row[0] / row[1], EXACT, "odds");
        near(interval.low, row[2], EXACT, "odds");
        near(interval.high, row[3], EXACT, "odds");
    }
    for row in rows(&golden, "cohen_h") {
        near(cohen_h(row[0], row[1]), row[2], EXACT, "h");
    }
}

#[test]
fn paired_differences_have_tangos_and_newcombes_intervals() {
    for case in list(&statistics()["paired"]) {
        let table: Vec<usize> = numbers(&case["table"]).into_iter().map(|count| count as usize).collect();
        let [both, won, lost, neither] = table[..] else { panic!("{table:?}") };
        let counts = PairedCounts { both, won, lost, neither };
        let what = format!("{table:?}");
        near_interval(newcombe(counts), &case["newcombe"], EXACT, &what);
        // The reference finds a maximum by search, which is right to half the digits.
        near_interval(tango(counts), &case["tango"], 1e-6, &what);
    }
}

#[test]
fn all_sign_flips_are_those_of_scipy() {
    for case in list(&statistics()["permutation"]) {
        let p = paired_permutation(&numbers(&case[0]), 0, PERMUTATIONS);
        near(p, number(&case[1]), EXACT, "permutation");
    }
}

#[test]
fn drawn_sign_flips_are_near_to_all() {
    let golden = statistics();
    let differences = numbers(&list(&golden["permutation"])[4][0]);
    // Pairs of equal values with alternating signs change no sum's chance much but make it too many to try all.
    let mut many = differences;
    many.extend((0..200).map(|i| if i % 2 == 0 { 0.01 } else { -0.01 }));
    let exact = number(&list(&golden["permutation"])[4][1]);
    near(paired_permutation(&many, 1, PERMUTATIONS), exact, 0.01, "permutation");
}

#[test]
fn bootstrap_intervals_are_those_of_scipy() {
    for case in list(&statistics()["bootstrap"]) {
        let bootstrap = Bootstrap {
            observed: number(&case["observed"]),
            replicates: numbers(&case["replicates"]),
            jackknife: numbers(&case["jackknife"]),
        };
        let name = case["name"].as_str().unwrap();
        near_interval(bootstrap.percentile(), &case["percentile"], EXACT, name);
        near_interval(bootstrap.bca(), &case["BCa"], EXACT, name);
    }
}

#[test]
fn means_have_the_intervals_of_statsmodels() {
    for case in list(&statistics()["means"]) {
        let values = numbers(&case["values"]);
        let groups: Vec<i64> = numbers(&case["groups"]).into_iter().map(|group| group as i64).collect();
        let units = Units::clusters(&groups);
        near_interval(mean_interval(&values, Tail::Student).unwrap(), &case["student"], EXACT, "student");
        near_interval(mean_interval(&values, Tail::Normal).unwrap(), &case["normal"], EXACT, "normal");
        let clustered = clustered_mean_interval(&values, &units, Tail::Student).unwrap();
        near_interval(clustered, &case["clustered"], EXACT, "clustered");
        near(cohen_dz(&values).unwrap(), number(&case["dz"]), EXACT, "dz");
    }
}

#[test]
fn several_p_values_are_adjusted_as_statsmodels_does() {
    for case in list(&statistics()["holm"]) {
        for (ours, theirs) in holm(&numbers(&case[0])).into_iter().zip(numbers(&case[1])) {
            near(ours, theirs, EXACT, "holm");
        }
    }
}

#[test]
fn power_is_that_of_statsmodels_and_of_every_table() {
    let golden = statistics();
    for row in rows(&golden, "effect_power") {
        near(power_of_effect(row[0] as u64, row[1]).unwrap(), row[2], 1e-7, "power");
    }
    for row in rows(&golden, "effect_items") {
        assert_eq!(items_for_effect(row[0]).unwrap() as f64, row[1]);
    }
    for row in rows(&golden, "effect_least") {
        near(detectable_effect(row[0] as u64).unwrap(), row[1], 1e-6, "least effect");
    }
    for row in rows(&golden, "gain_power") {
        near(power_of_gain(row[0] as u64, row[1], row[2]).unwrap(), row[3], EXACT, "power of a gain");
    }
}
