"""The comparison table against intervals of each column alone."""

import json

import numpy as np
import pytest

from eval.comparison.comparison_table import Certainty, compare_rows
from eval.statistics import paired_difference
from siglip_jax.errors import UserError


def test_comparison_table():
    rng = np.random.default_rng(0)
    old = {"nDCG@5": rng.random(80), "hit@5": rng.random(80)}
    old["hit@5"][:5] = np.nan
    new = {name: values + 0.1 + 0.02 * rng.normal(size=80) for name, values in old.items()}
    clusters = rng.integers(0, 30, 80)
    got = compare_rows(
        {"start": old, "tuned": new},
        pairs=[("tuned", "start")],
        tied={"start": np.arange(80) < 20},
        certainty=Certainty({"title": clusters}),
    )
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    start, tuned = got["rows"]
    assert (start["name"], start["tie_rate"], tuned["tie_rate"]) == ("start", 0.25, None)
    assert start["metrics"]["hit@5"]["left_out"] == 5
    assert start["metrics"]["nDCG@5"]["mean"] == pytest.approx(old["nDCG@5"].mean())
    assert (got["queries"], got["clusters"]) == (80, {"title": len(np.unique(clusters))})
    assert [(d["a"], d["b"], d["metric"]) for d in got["differences"]] == [("tuned", "start", name) for name in old]
    for name, cell in zip(old, got["differences"], strict=True):
        alone = paired_difference(new[name], old[name], clusters=clusters)
        for key in ("mean", "low", "high", "p", "queries", "left_out"):
            assert cell[key] == pytest.approx(getattr(alone, key), rel=1e-9), key
        assert cell["verdict"] == "better"
        assert cell["relative"] == pytest.approx(alone.mean / np.nanmean(old[name]))


def test_undefined_cells_are_null():
    nothing = {"MRR": np.full(4, np.nan)}
    got = compare_rows({"a": nothing, "b": nothing}, pairs=[("a", "b")], certainty=Certainty(samples=10))
    assert got["rows"][0]["metrics"]["MRR"]["mean"] is None
    assert got["differences"][0]["p"] is None
    assert got["differences"][0]["verdict"] == "not measured"
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "nothing to compare"),
        ({"a": {}, "b": {}}, {}, "row 'a' has no metric"),
        ({"a": {"MRR": np.ones(3)}, "b": {"MRR": np.ones(4)}}, {}, "'a' and 'b' differ"),
        ({"a": {"MRR": np.ones(3)}, "b": {"hit@1": np.ones(3)}}, {}, "differ"),
        ({"a": {"MRR": np.ones(3)}}, {"pairs": [("a", "c")]}, "unknown row 'c': rows are a"),
    ],
)
def test_comparison_errors(rows, options, message):
    with pytest.raises(UserError, match=message):
        compare_rows(rows, **options)
