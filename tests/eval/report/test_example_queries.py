"""Which queries are shown, and what each ranker puts first there."""

import numpy as np

from eval.protocols import AttributeAgreement, AttributeRelevance
from eval.rankers import VectorRanker
from eval.report.example_queries import ShownItems, example_queries, largest_changes


def test_largest_changes_by_loops():
    rng = np.random.default_rng(0)
    new, against = rng.integers(0, 5, 200) / 4, rng.integers(0, 5, 200) / 4
    new[7] = np.nan
    groups = rng.integers(0, 40, 200)
    gains, losses = largest_changes(new, against, groups=groups, count=9)
    for sign, found in ((1, gains), (-1, losses)):
        change = sign * (new - against)
        assert len(found) == 9
        assert len(set(groups[found])) == 9
        assert (change[found] > 0).all()
        assert (np.diff(change[found]) <= 0).all()
        best = sorted((np.nanmax(change[groups == g]) for g in set(groups)), reverse=True)
        np.testing.assert_array_equal(change[found], best[:9])
    again = largest_changes(new, against, groups=groups, count=9, seed=1)[0]
    assert again.tolist() != gains.tolist()  # equal changes are drawn
    same = largest_changes(new, new)
    assert [len(part) for part in same] == [0, 0]


def test_example_queries():
    x = np.random.default_rng(0).standard_normal((30, 4))
    kinds = [str(i % 3) for i in range(30)]
    relevance = AttributeRelevance([{"gain": 2, "agree": ["kind"]}], {"kind": kinds})
    items = ShownItems([f"i{n}" for n in range(30)], [f"item {n}" for n in range(30)])
    protocol, ranker = AttributeAgreement(relevance), {"a": VectorRanker("a", x)}
    values = {"a": np.arange(30) / 30}
    shown = example_queries(np.array([4, 11]), protocol, ranker, items, values=values, depth=3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for example, query in zip(shown, (4, 11), strict=True):
        assert (example["query"], example["title"]) == (f"i{query}", f"item {query}")
        assert example["values"] == {"a": query / 30}
        best = [n for n in np.argsort(-unit @ unit[query]) if n != query][:3]
        (system,) = example["systems"]
        assert [result["id"] for result in system["results"]] == [f"i{n}" for n in best]
        assert [result["gain"] for result in system["results"]] == [2 * (n % 3 == query % 3) for n in best]
    assert example_queries(np.zeros(0, int), protocol, ranker, items) == []
    assert "values" not in example_queries(np.array([4]), protocol, ranker, items)[0]
