"""Intervals that hold for all comparisons at once are in the table where several rows are compared."""

import numpy as np
import pytest

from eval.comparison.comparison_table import Bootstrap, compare_rows
from eval.comparison.conclusions import conclude
from eval.statistics import simultaneous_intervals

CLUSTERS = np.arange(300) // 3
BOOTSTRAP = Bootstrap(CLUSTERS, seed=2)


def concluded(rows):
    pairs = [("new", name) for name in rows if name != "new"]
    table = compare_rows(rows, pairs=pairs, bootstrap=BOOTSTRAP)
    conclude(table, rows, new="new", against=pairs[0][1], bootstrap=BOOTSTRAP)
    return {(cell["b"], cell["metric"]): cell for cell in table["differences"]}


def rows_of(*names):
    rng = np.random.default_rng(0)
    return {name: {"MRR": rng.uniform(size=300), "hit@5": rng.uniform(size=300)} for name in names}


def test_several_rows():
    rows = rows_of("new", "a", "b", "c")
    for values in rows.values():
        values["MRR"][:10] = np.nan
    found = concluded(rows)
    columns = np.stack([rows["new"]["MRR"] - rows[name]["MRR"] for name in "abc"], axis=1)
    expected = simultaneous_intervals(columns, clusters=CLUSTERS, seed=2)
    for name, interval in zip("abc", expected, strict=True):
        cell = found[name, "MRR"]
        assert (cell["low_all"], cell["high_all"]) == pytest.approx((interval.low, interval.high))
        assert cell["low_all"] < cell["low"] < cell["high"] < cell["high_all"]
        assert "low_all" not in found[name, "hit@5"]


def test_two_rows_have_nothing_to_widen():
    assert not any("low_all" in cell for cell in concluded(rows_of("new", "a")).values())


def test_a_row_of_fewer_queries_does_not_take_them_from_the_others():
    rows = rows_of("new", "a", "b", "logged order")
    rows["logged order"]["MRR"][:100] = np.nan
    found = concluded(rows)
    assert "low_all" not in found["logged order", "MRR"]
    columns = np.stack([rows["new"]["MRR"] - rows[name]["MRR"] for name in "ab"], axis=1)
    expected = simultaneous_intervals(columns, clusters=CLUSTERS, seed=2)
    assert [found[name, "MRR"]["high_all"] for name in "ab"] == pytest.approx([i.high for i in expected])
