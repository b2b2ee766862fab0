"""Metrics in words."""

import numpy as np
import pytest

from eval.experiments.experiment_metrics import parse_metric, read_metrics
from siglip_jax.errors import UserError


def test_terms_are_sums_of_users():
    sums = {"tap": np.array([0.0, 2, 3]), "impression": np.array([4.0, 5, 6]), "value(buy)": np.array([0.0, 0, 9.5])}
    assert parse_metric("ctr=tap/impression").columns(sums).tolist() == [[0, 4], [2, 5], [3, 6]]
    assert parse_metric("tappers = any( tap )").columns(sums).tolist() == [[0, 1], [1, 1], [1, 1]]
    assert parse_metric("money=value(buy)/any(tap)").columns(sums).tolist() == [[0, 0], [0, 1], [9.5, 1]]
    assert parse_metric("money=value(buy)").definition == "value(buy) by users"


@pytest.mark.parametrize("text", ["ctr", "=tap", "ctr=", "ctr=tap/", "ctr=tap/a/b", "ctr=sum(tap)", "ctr=any(tap"])
def test_what_is_no_metric(text):
    with pytest.raises(UserError, match="expected name=term"):
        parse_metric(text)


def test_guardrails_and_directions():
    found = read_metrics(
        ["a=x", "b=y", "c=z"], guardrails=[("b", "2%"), ("c", "0.5")], lower_is_better=["c"], covariates=[("a", "p/q")]
    )
    assert [(m.margin, m.relative_margin, m.lower_is_better) for m in found] == [
        (None, False, False),
        (0.02, True, False),
        (0.5, False, True),
    ]
    assert [str(term) for term in found[0].covariate] == ["p", "q"]
    with pytest.raises(UserError, match="every metric is a guardrail"):
        read_metrics(["a=x"], guardrails=[("a", "1%")])
