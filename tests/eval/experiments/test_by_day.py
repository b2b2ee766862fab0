"""Day by day: what an A/A test shows on thirty looks, a planted effect that wears off, heavy users."""

import dataclasses

import numpy as np
import pytest

from eval.experiments.by_day import novelty, sequences
from eval.experiments.effects import Looks, compare
from eval.experiments.experiment_metrics import parse_metric
from eval.experiments.moments import moments, sample
from eval.experiments.read_out import read_out
from eval.experiments.within import heavy_users
from tools.bench.abtest import returning_users

METRICS = [parse_metric("CTR=tap/impression"), parse_metric("tappers=any(tap)")]


def simulated_users(rng, *, users=600, days=30, early=0.0, late=0.0):
    """Of the bench; with a lift of a user's first three days, and one of the others."""
    found = returning_users(rng, users=users, days=days)
    since = found.day - found.exposed[found.user]
    lift = np.where(since < 3, early, late) * (found.variant[found.user] == 1)
    more = rng.poisson(found.sums["tap"] * lift)
    return dataclasses.replace(found, sums={**found.sums, "tap": found.sums["tap"] + more})


def ever_significant(users, metric, look):
    """(by the sequence, by a single look's interval): whether any day excluded 0."""
    points = [line["points"] for line in sequences(users, [metric], look=look)]
    always = any(p["low"] > 0 or p["high"] < 0 for line in points for p in line)
    once = any(p["one_low"] > 0 or p["one_high"] < 0 for line in points for p in line)
    return always, once


def test_days_are_the_users_and_events_so_far():
    users = simulated_users(np.random.default_rng(0), days=10)
    (line,) = sequences(users, METRICS[:1], look=Looks())
    point = line["points"][3]
    day = point["day"]
    so_far = users.totals(users.day <= day)
    arms = []
    for place in (0, 1):
        chosen = (users.variant == place) & (users.exposed <= day)
        arms.append(sample(moments(np.stack([so_far["tap"], so_far["impression"]], axis=1)[chosen])))
    assert point["users"] == (users.exposed <= day).sum()
    assert point["one_low"] == pytest.approx(compare(*arms, Looks(looks="one")).relative_low)
    report = read_out(users, METRICS, look=Looks())
    assert line["points"][-1]["low"] == pytest.approx(compare(*_samples(users), Looks()).relative_low)
    assert {row["verdict"] for row in report["metrics"]} <= {"undecided", "better", "worse"}


def _samples(users):
    totals = users.totals()
    table = np.stack([totals["tap"], totals["impression"]], axis=1)
    return [sample(moments(table[users.variant == place])) for place in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_thirty_looks_at_nothing(metric):
    """A/A tests: at most 5 % ever significant (plus three standard errors of 400 runs); one look's interval is not."""
    rng = np.random.default_rng(1)
    runs = [ever_significant(simulated_users(rng), metric, Looks(lift=0.1)) for _ in range(400)]
    always, once = np.mean(runs, axis=0)
    assert always <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert once > 0.15


def test_few_looks_at_nothing():
    rng = np.random.default_rng(2)
    runs = [ever_significant(simulated_users(rng, users=400, days=12), METRICS[0], Looks(lift=0.1)) for _ in range(25)]
    assert np.sum(runs, axis=0)[0] <= 4  # of 25; 5 or more have a chance under 1 % at a level of 5 %


def test_an_effect_that_wears_off():
    rng = np.random.default_rng(3)
    users = simulated_users(rng, users=6000, days=20, early=1.0)
    found = novelty(users, METRICS[:1], look=Looks())[0]
    assert found["verdict"] == "wears off"
    assert found["early"] > found["late"]
    steady = simulated_users(rng, users=6000, days=20, early=0.4, late=0.4)
    assert novelty(steady, METRICS[:1], look=Looks())[0]["verdict"] == "undecided"


def test_heavy_users_are_named_and_the_lift_without_them():
    users = simulated_users(np.random.default_rng(4), users=800, days=6)
    taps = users.sums["tap"].copy()
    row = int(np.flatnonzero(users.variant[users.user] == 1)[0])
    taps[row] += 5000
    heavy = dataclasses.replace(users, sums={**users.sums, "tap": taps})
    (line,) = heavy_users(heavy, METRICS, look=Looks())
    assert [each["user"] for each in line["users"]] == [f"u{users.user[row]}"]
    rest = dataclasses.replace(
        users, variant=np.where(np.arange(800) == users.user[row], 2, users.variant), variants=("A", "B", "C")
    )
    assert line["without"]["B"] == pytest.approx(compare(*_samples(rest), Looks()).relative)
    assert heavy_users(users, METRICS, look=Looks()) == []
