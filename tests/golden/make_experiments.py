"""What tea-tasting, statsmodels and ville say of a small experiment: writes experiments.json beside this file.

pip install tea-tasting==1.14.0 statsmodels==0.15.0 ville==0.1.0, then python tests/golden/make_experiments.py
"""

import importlib.metadata
import json
import pathlib

import numpy as np
import pyarrow as pa
import statsmodels.stats.api as sms
import tea_tasting as tt
from statsmodels.stats.multitest import multipletests
from ville.means import AsymptoticCS

USERS = (230, 190)
rng = np.random.default_rng(20240701)
rows = []
for variant, n in enumerate(USERS):
    taste = rng.gamma(2, 0.5, n)
    for u in range(n):
        before, shown = rng.poisson(8) + 1, rng.poisson(10) + 1
        taps = rng.binomial(shown, min(0.9, 0.12 * taste[u] * (1 + 0.35 * variant)))
        taps_before = rng.binomial(before, min(0.9, 0.12 * taste[u]))
        money = round(float(rng.gamma(2, 10)) * (rng.random() < 0.2), 2)
        rows.append((variant, int(taps), int(shown), int(taps_before), int(before), money))
names = ("variant", "taps", "shown", "taps_before", "shown_before", "money")
columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
table = pa.table(columns)
experiment = tt.Experiment(
    ctr=tt.RatioOfMeans("taps", "shown"),
    ctr_cuped=tt.RatioOfMeans("taps", "shown", "taps_before", "shown_before"),
    taps=tt.Mean("taps"),
    taps_cuped=tt.Mean("taps", "taps_before"),
    money=tt.Mean("money"),
    split=tt.SampleRatio(method="norm", correction=False),
)
result = experiment.analyze(table)
holm = tt.adjust_fwer(result, metrics={"ctr", "taps", "money"}, arbitrary_dependence=True, method="bonferroni")
found = {name: result[name]._asdict() for name in ("ctr", "ctr_cuped", "taps", "taps_cuped", "money", "split")}
adjusted = {str(each["metric"]): {k: float(each[k]) for k in ("pvalue_adj", "alpha_adj")} for each in holm.to_dicts()}

power = {}
for name, metric in (
    ("ctr", tt.RatioOfMeans("taps", "shown", rel_effect_size=0.1, power=0.8)),
    ("ctr_cuped", tt.RatioOfMeans("taps", "shown", "taps_before", "shown_before", rel_effect_size=0.1, power=0.8)),
):
    power[name] = int(metric.solve_power(table, "n_obs")[0].n_obs)
uneven = tt.RatioOfMeans("taps", "shown", rel_effect_size=0.1, n_obs=5000, ratio=0.25)
chance = float(uneven.solve_power(table, "power")[0].power)

arms = [np.array(columns["taps"], float)[np.array(columns["variant"]) == v] for v in (0, 1)]
means = sms.CompareMeans(sms.DescrStatsW(arms[1]), sms.DescrStatsW(arms[0]))
non_inferior = {
    str(margin): float(means.ttest_ind(alternative="larger", usevar="unequal", value=-margin)[1])
    for margin in (0.05, 0.2, 0.5)
}
t = means.ttest_ind(usevar="unequal")
interval = [float(each) for each in means.tconfint_diff(usevar="unequal")]
p = [0.011, 0.02, 0.04, 0.012, 0.3]
corrected = [float(each) for each in multipletests(p, method="holm")[1]]
solved = float(sms.TTestIndPower().solve_power(effect_size=0.1, power=0.8, alpha=0.05, ratio=1.0)) * 2

stream = rng.normal(0.1, 1.3, 300)
sequence = AsymptoticCS(t_opt=200, alpha=0.05, min_samples=2).update(stream)
looks = [9, 49, 299]

out = {
    "made_by": "tests/golden/make_experiments.py",
    "versions": {name: importlib.metadata.version(name) for name in ("tea-tasting", "statsmodels", "ville", "numpy")},
    "columns": columns,
    "tea_tasting": {
        name: {k: float(v) for k, v in each.items() if isinstance(v, int | float)} for name, each in found.items()
    },
    "tea_tasting_holm": adjusted,
    "tea_tasting_users": power,
    "tea_tasting_power_of_5000_one_in_five_treated": chance,
    "statsmodels": {
        "welch": [float(t[0]), float(t[1]), float(t[2])],
        "interval": interval,
        "non_inferior": non_inferior,
        "holm": [p, corrected],
        "users": solved,
    },
    "ville": {
        "stream": [float(x) for x in stream],
        "rho": float(sequence.rho_),
        "looks": looks,
        "low": [float(sequence.lower_[i]) for i in looks],
        "high": [float(sequence.upper_[i]) for i in looks],
    },
}
path = pathlib.Path(__file__).with_name("experiments.json")
path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
