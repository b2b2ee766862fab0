"""The sample-ratio check against tea-tasting, and where one percent is missing."""

import pytest

from eval.experiments.sample_ratio import sample_ratio
from siglip_jax.errors import UserError


def test_p_is_that_of_tea_tasting(golden_experiment):
    found = sample_ratio({"A": 230, "B": 190}, {"A": 1, "B": 1})
    assert found.p == pytest.approx(golden_experiment["tea_tasting"]["split"]["pvalue"], rel=1e-9)
    assert found.ok
    assert found.expected == {"A": 210, "B": 210}


def test_one_percent_of_200_000_users_is_found():
    assert not sample_ratio({"A": 101_000, "B": 99_000}, {"A": 50, "B": 50}).ok
    assert sample_ratio({"A": 100_300, "B": 99_700}, {"A": 50, "B": 50}).ok
    assert sample_ratio({"A": 101_000, "B": 99_000}, {"A": 101, "B": 99}).p == 1
    assert not sample_ratio({"A": 10_000, "B": 20_000, "C": 21_000}, {"A": 1, "B": 2, "C": 2}).ok


@pytest.mark.parametrize("split", [{"A": 1}, {"A": 1, "C": 1}, {"A": 1, "B": 0}, {"A": 1, "B": -2}])
def test_a_split_that_is_none(split):
    with pytest.raises(UserError, match="--split=A=1,B=1"):
        sample_ratio({"A": 5, "B": 5}, split)
