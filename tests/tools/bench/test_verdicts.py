"""Simulations of what verdicts, intervals and power promise: small ones here, as large as the bench's when slow."""

import numpy as np
import pytest

from eval.statistics.clusters import effective_number
from siglip_jax import cli
from tools.bench import verdicts

BOTH = "users and query items"


@pytest.mark.parametrize(("effective", "exponent"), [(20, 0.8), (50, 1.0), (500, 0.5)])
def test_zipf_codes_weigh_as_asked(effective, exponent):
    random = np.random.default_rng(0)
    found = [
        effective_number(np.bincount(verdicts.zipf_codes(8000, effective, exponent=exponent, random=random)))
        for _ in range(10)
    ]
    assert np.mean(found) == pytest.approx(effective, rel=0.1)


def test_random_encoders_are_called_different_by_users_alone_and_not_by_both():
    found = {name: share for name, (share, _) in verdicts.false_verdicts(logs=8).items()}
    assert found["users"] > 0.5
    assert found[BOTH] <= 0.09


@pytest.mark.parametrize("comparisons", [1, 10])
def test_intervals_and_power_hold_what_they_promise(comparisons):
    found = verdicts.coverage(20, verdicts.SHARES["users and items"], comparisons=comparisons, repetitions=150, seed=1)
    assert found.alone == pytest.approx(0.95, abs=0.045)
    assert found.together == pytest.approx(0.95, abs=0.06)
    assert found.power == pytest.approx(0.8, abs=0.1)


def test_the_bench_prints_a_table_of_each(capsys):
    assert cli.main(["bench", "verdicts", "--logs=1", "--repetitions=2"]) == 0
    printed = capsys.readouterr().out
    for name in (BOTH, "both, pigeonhole bootstrap", "20 effective, effects of items", "500 effective"):
        assert name in printed


@pytest.mark.slow
def test_false_verdicts_of_many_logs():
    share, few = verdicts.false_verdicts(logs=60)[BOTH]
    assert share <= 0.06
    assert few <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("effective", verdicts.SIDES)
@pytest.mark.parametrize("effects", verdicts.SHARES)
def test_coverage_and_power_of_many_repetitions(effective, effects):
    """Of 600 repetitions the standard error is 0.9 points of coverage, and 1.6 of power."""
    for comparisons in verdicts.COMPARISONS:
        found = verdicts.coverage(effective, verdicts.SHARES[effects], comparisons=comparisons, repetitions=600, seed=0)
        assert 0.93 <= found.alone <= 0.975, comparisons
        assert 0.93 <= found.together <= 0.975, comparisons
        assert found.power == pytest.approx(0.8, abs=0.05), comparisons
