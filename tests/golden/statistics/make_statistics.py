"""What scipy and statsmodels give for the cases below. Writes `statistics.json` beside this file.

    python -m venv venv && venv/bin/pip install scipy==1.17.1 statsmodels==0.15.0 numpy==2.4.6
    venv/bin/python make_statistics.py

Tango's and Newcombe's intervals and the power of McNemar's exact test are in neither; they are computed here in another way than in the
Rust code: Tango's from the likelihood maximised by number, Newcombe's from statsmodels' Wilson intervals, power over every table.
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize
from statsmodels.stats.weightstats import DescrStatsW

Z = stats.norm.ppf(0.975)
# Both right, only the second, only the first, neither.
TABLES = [
    (36, 12, 2, 0), (20, 12, 2, 16), (0, 12, 2, 36), (50, 0, 0, 50), (10, 0, 0, 0), (0, 5, 0, 0), (0, 0, 5, 5), (30, 1, 0, 9), (80, 9, 3, 8),
    (800, 60, 45, 95), (1, 1, 1, 1), (500, 300, 100, 100), (3, 0, 7, 90),
]


def interval(pair):
    return [float(pair[0]), float(pair[1])]


def tango(table):
    both, won, lost, neither = table
    n, same = sum(table), both + neither

    def score(delta):
        # The likeliest share lost if the difference is delta, by a search on the log-likelihood.
        low, high = max(0.0, -delta), (1.0 - delta) / 2.0

        def minus_ln(share):
            parts = [(won, share + delta), (lost, share), (same, 1.0 - 2.0 * share - delta)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        share = optimize.minimize_scalar(minus_ln, bounds=(low, high), method="bounded", options={"xatol": 1e-14}).x
        # A maximum at an end of the range is not reached by the search.
        share = min([share, low, high], key=minus_ln)
        variance = n * (2.0 * share + delta * (1.0 - delta))
        distance = won - lost - n * delta
        return 0.0 if distance == 0 else distance / math.sqrt(max(variance, 1e-300))

    middle = (won - lost) / n
    ends = []
    for end, z in [(-1.0, Z), (1.0, -Z)]:
        at_end, at_middle = score(end * (1 - 1e-12)) - z, score(middle) - z
        ends.append(optimize.brentq(lambda d: score(d) - z, end * (1 - 1e-12), middle, xtol=1e-13) if at_end * at_middle < 0 else end)
    return ends


def newcombe(table):
    both, won, lost, neither = table
    n = sum(table)
    p1, p2 = (both + lost) / n, (both + won) / n
    l1, u1 = proportion_confint(both + lost, n, method="wilson")
    l2, u2 = proportion_confint(both + won, n, method="wilson")
    margins = [both + won, lost + neither, both + lost, won + neither]
    phi = 0.0
    if all(margins):
        product = both * neither - won * lost
        if product > n / 2:
            product -= n / 2
        elif product >= 0:
            product = 0.0
        phi = product / math.sqrt(math.prod(margins))
    d = p2 - p1
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    above = (u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2
    return [d - math.sqrt(below), d + math.sqrt(above)]


def power_of_mcnemar(n, disagreement, gain):
    """Over every table of won, lost and the rest."""
    won_share, lost_share = (disagreement + gain) / 2, (disagreement - gain) / 2
    total = 0.0
    for won in range(n + 1):
        for lost in range(min(won, n - won + 1)):
            if stats.binomtest(lost, won + lost).pvalue < 0.05:
                total += stats.multinomial.pmf([won, lost, n - won - lost], n, [won_share, lost_share, 1 - won_share - lost_share])
    return float(total)


def main():
    rng = np.random.default_rng(5)
    out = {"versions": {name: version(name) for name in ["scipy", "statsmodels", "numpy"]}}
    out["normal"] = [[x, stats.norm.cdf(x), p, stats.norm.ppf(p)] for x, p in zip([-9, -2.5, -1, 0, 0.3, 1.96, 7], [1e-12, 1e-4, 0.025, 0.4, 0.5, 0.9, 0.9999])]
    out["student"] = [
        [t, df, stats.t.cdf(t, df), p, stats.t.ppf(p, df)]
        for t, df, p in [(-3, 1, 0.975), (0, 2, 0.6), (2.1, 5, 0.975), (1.5, 29, 0.2), (-0.4, 120.5, 0.999), (2, 1e5, 0.975), (40, 3, 0.99999)]
    ]
    out["beta"] = [
        [x, a, b, stats.beta.cdf(x, a, b), stats.beta.ppf(0.025, a, b)]
        for x, a, b in [(0.3, 2, 5), (0.99, 0.5, 0.5), (0.01, 30, 1), (0.5, 500, 520), (0.7, 1, 1), (0.2, 3000, 12000), (0.001, 0.5, 50)]
    ]
    out["binomial"] = [
        [k, n, p, stats.binom.cdf(k, n, p), stats.binom.pmf(k, n, p)]
        for k, n, p in [(0, 10, 0.3), (3, 10, 0.3), (10, 10, 0.3), (480, 1000, 0.5), (9900, 20000, 0.5), (5, 100, 0.01), (2, 5, 0.0), (5, 5, 1.0)]
    ]
    out["noncentral"] = [[t, df, d, stats.nct.sf(t, df, d)] for t, df, d in [(2.0, 10, 0.0), (2.57, 5, 2.0), (1.98, 100, 2.8), (2.0, 60, 0.5), (12.7, 1, 3.0), (1.96, 5000, 3.0), (3.18, 3, 8.0)]]
    out["wilson"] = [[k, n, *interval(proportion_confint(k, n, method="wilson"))] for k, n in [(0, 10), (1, 10), (5, 10), (10, 10), (37, 200), (999, 1000), (1, 1)]]
    out["mcnemar"] = []
    for won, lost in [(4, 0), (0, 6), (8, 2), (5, 5), (25, 13), (130, 100), (600, 500), (1, 0), (0, 0)]:
        n, k = won + lost, min(won, lost)
        exact = float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue) if n else 1.0
        mid = 1.0 if won == lost else float(2 * stats.binom.cdf(k, n, 0.5) - stats.binom.pmf(k, n, 0.5))
        out["mcnemar"].append([won, lost, min(exact, 1.0), mid])
    out["odds"] = [[w, l, *(float(p / (1 - p)) for p in proportion_confint(w, w + l, method="beta"))] for w, l in [(8, 2), (3, 9), (60, 40), (1, 1)]]
    out["paired"] = [{"table": t, "tango": tango(t), "newcombe": newcombe(t)} for t in TABLES]
    out["permutation"] = []
    samples = [rng.normal(0.4, 1, 8).round(3), rng.choice([-0.5, 0, 0.5, 1], 12), rng.exponential(1, 11).round(2) - 0.6, np.array([0.1, 0.2, -0.3, 0.4, 0.0]), rng.normal(0.8, 1, 15).round(3)]
    for differences in samples:
        found = stats.permutation_test((differences, np.zeros_like(differences)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf)
        out["permutation"].append([differences.tolist(), float(found.pvalue)])
    out["bootstrap"] = []
    for name, values, statistic in [
        ("mean", rng.exponential(2, 25).round(3), np.mean),
        ("variance", rng.normal(0, 2, 20).round(3), np.var),
        ("few", np.array([0.0, 0, 1, 1, 1, 0, 1, 1]), np.mean),
        ("constant", np.array([1.0, 2, 3, 50]), np.mean),
    ]:
        cases = {}
        for method in ["percentile", "BCa"]:
            found = stats.bootstrap((values,), statistic, n_resamples=299, method=method, rng=np.random.default_rng(1), vectorized=False)
            cases[method] = interval(found.confidence_interval)
        jackknife = [float(statistic(np.delete(values, i))) for i in range(len(values))]
        replicates = sorted(found.bootstrap_distribution.tolist())
        out["bootstrap"].append({"name": name, "observed": float(statistic(values)), "jackknife": jackknife, "replicates": replicates, **cases})
    out["means"] = []
    for values, groups in [(rng.normal(1, 2, 12).round(3), np.arange(12) // 3), (rng.normal(0, 1, 30).round(3) + np.repeat(rng.normal(0, 1, 6).round(3), 5), np.repeat(np.arange(6), 5)), (np.array([1.0, 2, 4, 8, 9]), np.array([2, 0, 2, 1, 0]))]:
        described = DescrStatsW(values)
        fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        out["means"].append({
            "values": values.tolist(), "groups": groups.tolist(), "student": interval(described.tconfint_mean()), "normal": interval(described.zconfint_mean()),
            "clustered": interval(fit.conf_int()[0]), "dz": float(described.mean / described.std_ddof(1)),
        })
    out["holm"] = []
    for p in [[0.01, 0.04, 0.03, 0.6], [0.5, 0.5], [0.001, 0.001, 0.02, 0.04, 0.05, 0.9], [0.2], [1.0, 0.0, 0.3]]:
        out["holm"].append([p, multipletests(p, method="holm")[1].tolist()])
    out["cohen_h"] = [[a, b, float(proportion_effectsize(b, a))] for a, b in [(0.2, 0.5), (0.9, 0.95), (0.0, 1.0), (0.4, 0.1)]]
    test = TTestPower()
    out["effect_power"] = [[n, d, float(test.power(d, n, 0.025, alternative="larger"))] for n, d in [(10, 0.5), (34, 0.5), (200, 0.1), (5, 2.0), (2, 1.0), (1000, 0.09)]]
    out["effect_items"] = [[d, math.ceil(test.solve_power(effect_size=d, power=0.8, alpha=0.025, alternative="larger"))] for d in [0.5, 0.2, 0.1, 1.0, 0.03]]
    out["effect_least"] = [[n, float(test.solve_power(nobs=n, power=0.8, alpha=0.025, alternative="larger"))] for n in [10, 50, 200, 2000]]
    out["gain_power"] = [[n, d, g, power_of_mcnemar(n, d, g)] for n, d, g in [(20, 0.5, 0.3), (50, 0.2, 0.15), (60, 0.3, 0.0), (40, 0.9, 0.4), (30, 0.3, 0.3)]]
    text = json.dumps(out, separators=(",", ":"))
    (Path(__file__).parent / "statistics.json").write_text(text.replace('],"', '],\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
