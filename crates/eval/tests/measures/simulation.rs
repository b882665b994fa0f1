//! What the statistics promise, held against worlds in which the truth is known. Where a world is small enough its every outcome is
//! weighed instead of drawn; the others are drawn by counter, so that a run is like the last.

use taper_eval::Verdict;
use taper_eval::statistics::distributions::binomial_pmf;
use taper_eval::statistics::{
    ALPHA, Bootstrap, Interval, NonInferiority, PairedCounts, Tail, Units, clustered_mean_interval, decide,
    decide_shares, holm, items_for_effect, items_for_gain, mcnemar_exact, mean_interval, newcombe,
    non_inferiority, paired_permutation, paired_randomisation, power_of_effect, power_of_gain, tango, wilson,
};
use taper_kernels::rng::CounterRng;

/// The noise of a rate over so many runs: three standard deviations.
fn noise(rate: f64, runs: u64) -> f64 {
    3.0 * (rate * (1.0 - rate) / runs as f64).sqrt()
}

/// The share of runs of which this holds.
fn rate(runs: u64, mut holds: impl FnMut(u64) -> bool) -> f64 {
    (0..runs).filter(|run| holds(*run)).count() as f64 / runs as f64
}

/// Numbers of one run.
struct Draws {
    rng: CounterRng,
    at: u64,
}

impl Draws {
    fn new(name: u64, run: u64) -> Self {
        Self { rng: CounterRng::new(name, run), at: 0 }
    }

    fn uniform(&mut self) -> f64 {
        self.at += 1;
        self.rng.uniform_f64_at(self.at)
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        (2.0 * self.exponential()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// The outcome on `n` items of two candidates that differ on the share `disagreement` of them.
    fn pairs(&mut self, n: usize, disagreement: f64, gain: f64) -> PairedCounts {
        PairedCounts::of((0..n).map(|_| match self.uniform() {
            u if u < 0.5 * (disagreement + gain) => (false, true),
            u if u < disagreement => (true, false),
            _ => (true, true),
        }))
    }
}

/// The verdict on a table. What [`decide_shares`] adds, the items needed, takes long; that it decides so is checked on the first runs.
fn verdict(counts: PairedCounts, run: u64) -> Verdict {
    let verdict = match mcnemar_exact(counts.won, counts.lost) < ALPHA {
        true if counts.won > counts.lost => Verdict::Better,
        true => Verdict::Worse,
        false => Verdict::Inconclusive,
    };
    assert!(run >= 20 || decide_shares(counts).unwrap().verdict == verdict);
    verdict
}

#[test]
fn equal_candidates_are_called_unequal_in_at_most_a_run_of_twenty() {
    for (name, n, disagreement) in [(1, 20, 0.3), (2, 100, 0.1), (3, 100, 0.5), (4, 500, 0.2)] {
        let runs = 3000;
        let false_positives = rate(runs, |run| {
            verdict(Draws::new(name, run).pairs(n, disagreement, 0.0), run) != Verdict::Inconclusive
        });
        assert!(false_positives <= 0.05 + noise(0.05, runs), "{n} {disagreement}: {false_positives}");
        // It is what is computed: the chance of a verdict of either kind.
        let computed = 2.0 * power_of_gain(n as u64, disagreement, 0.0).unwrap();
        assert!(computed <= 0.05, "{computed}");
        assert!((false_positives - computed).abs() <= noise(0.05, runs), "{false_positives} {computed}");
    }
}

#[test]
fn equal_scores_are_called_unequal_in_at_most_a_run_of_twenty() {
    // Scores of both candidates from one skewed distribution around the item's difficulty: 12 items try all flips, 40 draw them.
    for (name, n) in [(11, 12), (12, 40)] {
        let runs = 1500;
        let false_positives = rate(runs, |run| {
            let mut draws = Draws::new(name, run);
            let differences: Vec<f64> = (0..n).map(|_| draws.exponential() - draws.exponential()).collect();
            paired_permutation(&differences, run, 999) < 0.05
        });
        assert!((false_positives - 0.05).abs() <= noise(0.05, runs), "{n}: {false_positives}");
    }
    // Four rows to a document: by documents the level is kept, by rows it is not.
    let runs = 800;
    let mut by_rows = 0.0;
    let by_documents = rate(runs, |run| {
        let mut draws = Draws::new(13, run);
        let differences: Vec<f64> = (0..20)
            .flat_map(|_| {
                let document = draws.normal();
                [0; 4].map(|_| document + 0.3 * draws.normal())
            })
            .collect();
        let labels: Vec<usize> = (0..80).map(|i| i / 4).collect();
        by_rows += f64::from(u8::from(paired_permutation(&differences, run, 199) < 0.05)) / runs as f64;
        paired_permutation(&Units::clusters(&labels).sums(&differences), run, 199) < 0.05
    });
    assert!(by_documents <= 0.05 + noise(0.05, runs), "{by_documents}");
    assert!(by_rows > 0.2, "{by_rows}");
}

#[test]
fn five_metrics_together_are_called_unequal_in_at_most_a_run_of_twenty() {
    let runs = 1500;
    let mut unadjusted = 0.0;
    let adjusted = rate(runs, |run| {
        let mut draws = Draws::new(15, run);
        let tables: Vec<PairedCounts> = (0..5).map(|_| draws.pairs(400, 0.5, 0.0)).collect();
        let p_values: Vec<f64> = tables.iter().map(|t| mcnemar_exact(t.won, t.lost)).collect();
        let is_any = holm(&p_values).iter().any(|p| *p < ALPHA);
        unadjusted += f64::from(u8::from(p_values.iter().any(|p| *p < ALPHA))) / runs as f64;
        if run < 10 {
            let mut decisions: Vec<_> = tables.iter().map(|t| (decide_shares(*t).unwrap(), true)).collect();
            decide(&mut decisions);
            assert_eq!(decisions.iter().any(|(d, _)| d.verdict != Verdict::Inconclusive), is_any);
        }
        is_any
    });
    assert!(adjusted <= 0.05 + noise(0.05, runs), "{adjusted}");
    assert!(unadjusted > 0.1, "{unadjusted}");
}

#[test]
fn equal_corpus_scores_are_called_unequal_in_at_most_a_run_of_twenty() {
    // A ratio of sums, as BLEU and perplexity are: matches over lengths, both at random by item and candidate.
    let runs = 600;
    let false_positives = rate(runs, |run| {
        let mut draws = Draws::new(21, run);
        let mut candidate = || -> Vec<(f64, f64)> {
            (0..30)
                .map(|_| {
                    let length = 1.0 + 5.0 * draws.exponential();
                    (length * draws.uniform(), length)
                })
                .collect()
        };
        let (a, b) = (candidate(), candidate());
        let statistic = |swapped: &[bool]| {
            let score = |first: bool| {
                let chosen = a.iter().zip(&b).zip(swapped).map(|((a, b), s)| if *s == first { b } else { a });
                let (matches, length) = chosen.fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
                matches / length
            };
            score(false) - score(true)
        };
        paired_randomisation(&Units::items(30), run, 299, statistic).unwrap() < 0.05
    });
    assert!((false_positives - 0.05).abs() <= noise(0.05, runs), "{false_positives}");
}

/// The chance that Wilson's interval holds the share, over every outcome.
fn wilson_coverage(n: usize, p: f64) -> f64 {
    (0..=n).filter(|k| wilson(*k, n).contains(p)).map(|k| binomial_pmf(k as u64, n as u64, p)).sum()
}

#[test]
fn wilsons_interval_holds_the_share_in_95_of_100_runs_on_the_whole() {
    for n in [20, 50, 100, 500] {
        // At one share it cannot be 95 %: an outcome more or less is in or out as a whole. On the whole it is.
        let shares: Vec<f64> = (0..181).map(|i| 0.05 + 0.005 * f64::from(i)).collect();
        let coverage: Vec<f64> = shares.iter().map(|p| wilson_coverage(n, *p)).collect();
        let mean = coverage.iter().sum::<f64>() / coverage.len() as f64;
        let least = coverage.iter().copied().fold(1.0, f64::min);
        assert!((0.94..=0.96).contains(&mean), "{n}: {mean}");
        assert!(least > 0.9, "{n}: {least}");
    }
}

/// The chance that something holds of the table of two candidates that both fail on a fifth of the items on which they agree, over every
/// number won and lost.
fn chance(n: u64, disagreement: f64, gain: f64, holds: impl Fn(PairedCounts) -> bool) -> f64 {
    let won_share = 0.5 * (disagreement + gain);
    let mut chance = 0.0;
    for won in 0..=n {
        let of_won = binomial_pmf(won, n, won_share);
        for lost in 0..=n - won {
            let of_lost = binomial_pmf(lost, n - won, (disagreement - won_share) / (1.0 - won_share));
            if of_won * of_lost < 1e-9 {
                continue;
            }
            let same = n - won - lost;
            let counts = [same * 4 / 5, won, lost, same - same * 4 / 5].map(|count| count as usize);
            let [both, won, lost, neither] = counts;
            if holds(PairedCounts { both, won, lost, neither }) {
                chance += of_won * of_lost;
            }
        }
    }
    chance
}

/// The chance that an interval holds the difference.
fn paired_coverage(n: u64, disagreement: f64, gain: f64, interval: fn(PairedCounts) -> Interval) -> f64 {
    chance(n, disagreement, gain, |counts| interval(counts).contains(gain))
}

#[test]
fn a_loss_of_the_margin_passes_as_none_in_at_most_a_run_of_forty() {
    let is_not_worse = |counts| non_inferiority(tango(counts), 0.05, true) == NonInferiority::NotWorse;
    for (n, disagreement) in [(100, 0.1), (200, 0.2), (300, 0.3)] {
        let passed = chance(n, disagreement, -0.05, is_not_worse);
        // The interval is a large-sample one: half a point over the level is its error.
        assert!(passed <= 0.03, "{n} {disagreement}: {passed}");
        // Candidates that are alike pass more often the more items there are.
        let alike = chance(n, 0.1, 0.0, is_not_worse);
        assert!(alike > if n == 300 { 0.7 } else { 0.25 }, "{n}: {alike}");
    }
}

#[test]
fn paired_intervals_hold_the_difference_in_95_of_100_runs() {
    let worlds = [(50, 0.3, 0.1), (100, 0.1, 0.0), (100, 0.2, 0.05), (100, 0.3, 0.2), (200, 0.15, 0.05)];
    for (n, disagreement, gain) in worlds {
        let coverage = paired_coverage(n, disagreement, gain, tango);
        assert!((0.94..=0.96).contains(&coverage), "tango {n} {disagreement} {gain}: {coverage}");
        // Newcombe's leans to the wide side.
        let coverage = paired_coverage(n, disagreement, gain, newcombe);
        assert!((0.94..=0.98).contains(&coverage), "newcombe {n} {disagreement} {gain}: {coverage}");
    }
    // With three differing items to be expected there are too few outcomes for 95 %.
    let few = paired_coverage(30, 0.1, 0.0, tango);
    assert!((0.95..=1.0).contains(&few), "{few}");
}

#[test]
fn intervals_of_means_hold_the_mean_in_95_of_100_runs() {
    let runs = 4000;
    let held = |name: u64, of: &dyn Fn(&mut Draws) -> (Option<Interval>, f64)| {
        rate(runs, |run| {
            let (interval, truth) = of(&mut Draws::new(name, run));
            interval.unwrap().contains(truth)
        })
    };
    let normal = held(31, &|draws| {
        let values: Vec<f64> = (0..10).map(|_| 3.0 + draws.normal()).collect();
        (mean_interval(&values, Tail::Student), 3.0)
    });
    assert!((0.94..=0.96).contains(&normal), "{normal}");
    let shares = held(32, &|draws| {
        let values: Vec<f64> = (0..200).map(|_| draws.uniform().powi(2)).collect();
        (mean_interval(&values, Tail::Normal), 1.0 / 3.0)
    });
    assert!((0.94..=0.96).contains(&shares), "{shares}");
    let grouped = held(33, &|draws| {
        let labels: Vec<usize> = (0..120).map(|i| i / 3).collect();
        let values: Vec<f64> = (0..40)
            .flat_map(|_| {
                let document = draws.normal();
                [0; 3].map(|_| document + draws.normal())
            })
            .collect();
        (clustered_mean_interval(&values, &Units::clusters(&labels), Tail::Student), 0.0)
    });
    assert!((0.94..=0.96).contains(&grouped), "{grouped}");
    // Exponential differences, ten of them: too few for any mean's interval to be 95 %.
    let skewed = held(34, &|draws| {
        let values: Vec<f64> = (0..10).map(|_| draws.exponential()).collect();
        (mean_interval(&values, Tail::Student), 1.0)
    });
    assert!((0.88..0.92).contains(&skewed), "{skewed}");
}

#[test]
fn bootstrap_intervals_hold_the_difference_in_95_of_100_runs() {
    let runs = 1500;
    let mut percentile = 0.0;
    let bca = rate(runs, |run| {
        let mut draws = Draws::new(41, run);
        // Uniform scores, the second's a tenth better: the difference is skewed by nothing but chance.
        let differences: Vec<f64> = (0..80).map(|_| draws.uniform() + 0.1 - draws.uniform()).collect();
        let bootstrap = Bootstrap::new(&Units::items(80), run, 600, |weights| {
            differences.iter().zip(weights).map(|(d, w)| d * f64::from(*w)).sum::<f64>() / 80.0
        });
        let bootstrap = bootstrap.unwrap();
        percentile += f64::from(u8::from(bootstrap.percentile().contains(0.1))) / runs as f64;
        bootstrap.bca().contains(0.1)
    });
    for (name, coverage) in [("bca", bca), ("percentile", percentile)] {
        assert!(
            (0.94 - noise(0.05, runs) / 3.0..=0.96 + noise(0.05, runs) / 3.0).contains(&coverage),
            "{name}: {coverage}"
        );
    }
}

#[test]
fn the_bootstrap_of_groups_is_as_wide_as_groups_make_it() {
    let runs = 500;
    let mut by_rows = 0.0;
    let by_documents = rate(runs, |run| {
        let mut draws = Draws::new(51, run);
        let values: Vec<f64> = (0..50)
            .flat_map(|_| {
                let document = draws.normal();
                [0; 4].map(|_| document + 0.3 * draws.normal())
            })
            .collect();
        let mean = |weights: &[u32]| {
            let total: u32 = weights.iter().sum();
            values.iter().zip(weights).map(|(v, w)| v * f64::from(*w)).sum::<f64>() / f64::from(total)
        };
        let labels: Vec<usize> = (0..200).map(|i| i / 4).collect();
        let of = |units: &Units| Bootstrap::new(units, run, 300, mean).unwrap().percentile().contains(0.0);
        by_rows += f64::from(u8::from(of(&Units::items(200)))) / runs as f64;
        of(&Units::clusters(&labels))
    });
    assert!((by_documents - 0.95).abs() <= 0.01 + noise(0.05, runs), "{by_documents}");
    assert!(by_rows < 0.8, "{by_rows}");
}

#[test]
fn gains_are_found_as_often_as_computed() {
    for (name, disagreement, gain) in [(61, 0.2, 0.1), (62, 0.3, 0.2), (63, 0.1, 0.1)] {
        let n = items_for_gain(disagreement, gain).unwrap();
        let runs = 2000;
        let found = rate(runs, |run| {
            verdict(Draws::new(name, run).pairs(n as usize, disagreement, gain), run) == Verdict::Better
        });
        let computed = power_of_gain(n, disagreement, gain).unwrap();
        assert!((found - computed).abs() <= noise(0.2, runs), "{n}: {found}, computed {computed}");
        assert!((0.8..0.87).contains(&computed), "{n}: {computed}");
    }
}

#[test]
fn effects_are_found_as_often_as_computed() {
    let runs = 2000;
    let n = items_for_effect(0.5).unwrap();
    let found = rate(runs, |run| {
        let mut draws = Draws::new(72, run);
        let differences: Vec<f64> = (0..n).map(|_| 0.5 + draws.normal()).collect();
        let is_found = paired_permutation(&differences, run, 999) < 0.05;
        is_found && differences.iter().sum::<f64>() > 0.0
    });
    // Computed for the t-test; the permutation test is as strong on normal differences.
    let computed = power_of_effect(n, 0.5).unwrap();
    assert!((found - computed).abs() <= noise(0.2, runs), "{n}: {found}, computed {computed}");
}
