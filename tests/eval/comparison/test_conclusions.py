"""What the report says first, and the rules it follows: the same numbers as the table, and never another verdict."""

import numpy as np
import pytest

from eval.comparison.comparison_table import Certainty, compare_rows
from eval.comparison.conclusions import conclude
from eval.statistics import DecisionRules, difference_columns

CLUSTERS = {"user": np.arange(300) // 3, "query_item": np.arange(300) % 60}
CERTAINTY = Certainty(CLUSTERS, seed=2, samples=2000)


def concluded(rows, **options):
    pairs = [("new", name) for name in rows if name != "new"]
    table = compare_rows(rows, pairs=pairs, certainty=CERTAINTY)
    found = conclude(rows, new="new", against=pairs[0][1], certainty=CERTAINTY, **options)
    return found, {(cell["b"], cell["metric"]): cell for cell in table["differences"]}


def rows_of(*names):
    rng = np.random.default_rng(0)
    return {name: {"MRR": rng.uniform(size=300), "hit@5": rng.uniform(size=300)} for name in names}


def test_several_rows():
    rows = rows_of("new", "a", "b", "c")
    for values in rows.values():
        values["MRR"][:10] = np.nan
    said, cells = concluded(rows)
    for metric in ("MRR", "hit@5"):
        columns = np.stack([rows["new"][metric] - rows[name][metric] for name in "abc"], axis=1)
        expected = difference_columns(columns, clusters=CLUSTERS, seed=2, samples=2000, together=True)
        for name, difference in zip("abc", expected, strict=True):
            cell = cells[name, metric]
            for key in ("mean", "low", "high", "p", "low_all", "high_all", "p_all"):
                assert cell[key] == pytest.approx(getattr(difference, key)), key
            assert cell["low_all"] < cell["low"] < cell["high"] < cell["high_all"]
    assert "both corrected for 3 comparisons" in said["conclusion"]
    weights = {"user": 290**2 / (2**2 + 96 * 3**2), "query_item": 290**2 / (50 * 5**2 + 10 * 4**2)}
    assert said["weights"] == pytest.approx(weights)
    assert said["memo"].startswith("new against a, MRR: ")
    assert said["decision"] is None


def test_two_rows_have_nothing_to_correct():
    said, cells = concluded(rows_of("new", "a"))
    assert not any("low_all" in cell for cell in cells.values())
    assert "corrected" not in said["conclusion"]


def test_a_row_of_fewer_queries_does_not_take_them_from_the_others():
    rows = rows_of("new", "a", "b", "logged order")
    rows["logged order"]["MRR"][:100] = np.nan
    _, cells = concluded(rows)
    assert cells["logged order", "MRR"]["queries"] == 200
    assert [cells[name, "MRR"]["queries"] for name in "ab"] == [300, 300]
    assert all("low_all" in cells[name, "MRR"] for name in ("a", "b", "logged order"))


def test_rules_decide_by_the_interval_of_all_comparisons():
    rows = rows_of("new", "a", "b")
    rules = DecisionRules(margin=0.2, guardrails={"hit@5": 0.001})
    said, cells = concluded(rows, rules=rules)
    (guardrail,) = said["decision"]["guardrails"]
    assert guardrail["low"] == pytest.approx(cells["a", "hit@5"]["low_all"])
    assert guardrail["held"] == "not sure"
    assert said["decision"]["margin_held"] == "sure"
    assert "ranks no worse than a, up to 0.2" in said["conclusion"]
    assert said["memo"].endswith("By the rules: still open.")
