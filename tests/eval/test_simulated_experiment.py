"""A simulated experiment: who gets which lists, and that better lists get more taps."""

import dataclasses

import numpy as np
import pytest

from eval.simulated_experiment import ExperimentSessions, simulate_experiment
from siglip_jax.errors import UserError

ITEMS = 40
SESSIONS = ExperimentSessions(queries=600, users=80, length=4, pool=12, before=3, days=3)


class Grades:
    def __init__(self, grades):
        self.grades = grades

    def labels(self, queries):
        return self.grades[queries]


class Scores(Grades):
    def scores(self, queries, candidates=None):
        return np.take_along_axis(self.grades[queries], candidates, axis=1)


@pytest.fixture(scope="module")
def table():
    kind = np.arange(ITEMS) % 5
    grades = (kind[:, None] == kind).astype(float)
    noise = np.random.default_rng(0).normal(size=grades.shape)
    rankers = {"old": Scores(noise), "new": Scores(grades)}
    return simulate_experiment(Grades(grades), [f"i{i}" for i in range(ITEMS)], rankers, SESSIONS)


def test_half_of_the_users_get_the_other_lists_from_the_start_on(table):
    rows = table.to_pylist()
    assert {row["user_id"].startswith("simulated-") for row in rows} == {True}
    variants = {}
    start = np.datetime64("2024-07-01")
    for row in rows:
        inside = np.datetime64(row["time"].replace(tzinfo=None)) >= start
        if row["action"] == "impression":
            assert (row["variant"] is not None) == inside
        if row["variant"]:
            variants.setdefault(row["user_id"], set()).add(row["variant"])
        assert (row["value"] is not None) == (row["action"] == "purchase")
    assert max(map(len, variants.values())) == 1
    assert {min(v) for v in variants.values()} == {"old", "new"}


def test_better_lists_get_more_taps(table):
    counts = {}
    for row in table.to_pylist():
        counts[row["variant"], row["action"]] = counts.get((row["variant"], row["action"]), 0) + 1
    rates = {name: counts[name, "tap"] / counts[name, "impression"] for name in ("old", "new", None)}
    assert rates["new"] > 1.2 * rates["old"]
    assert sum(n for (_, action), n in counts.items() if action == "impression") == 600 * 4


@pytest.mark.parametrize("change", [{"pool": 40}, {"length": 20}, {"users": 0}])
def test_impossible_sessions(change):
    scores, sessions = Scores(np.eye(ITEMS)), dataclasses.replace(SESSIONS, **change)
    with pytest.raises(UserError, match="simulated experiment"):
        simulate_experiment(Grades(np.eye(ITEMS)), ["i"] * ITEMS, {"a": scores, "b": scores}, sessions)
