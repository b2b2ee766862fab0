"""What a table of comparisons allows to say, as the report's own words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.comparison.comparison_table import Certainty
from eval.metrics import mean_metrics
from eval.metrics.beyond_accuracy import beyond_accuracy
from eval.statistics import (
    Clusters,
    DecisionRules,
    Difference,
    conclusion,
    decide,
    difference_columns,
    mean_interval,
)

BEYOND_NOTES = {
    "coverage": "share of the items that any list shows",
    "gini": "how unevenly items are shown, 0 all alike to 1",
    "diversity": "chance that two items of a list differ, in an attribute where one is named",
    "novelty": "mean surprise of the items shown, in bits",
}


def conclude(
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    *,
    new: str,
    against: str,
    certainty: Certainty,
    rules: DecisionRules | None = None,
) -> dict[str, Any]:
    """What the report says first, of new against `against`: {"conclusion", "minimum_detectable", "weights", "memo",
    "decision"}.

    All other rankers are compared with `new` at once, metric by metric, as in the table of `compare_rows`.

    Args:
      metrics: {ranker: {metric: float64 [query]}}, the first metric decides.
    """
    rules, primary = rules or DecisionRules(), next(iter(metrics[new]))
    queries = len(metrics[new][primary])
    certainty = certainty.over(queries)
    compared = dict.fromkeys([primary, *(metric for metric in rules.guardrails if metric in metrics[new])])
    differences = {name: _of_all(metrics, name, new=new, against=against, certainty=certainty) for name in compared}
    a, b = metrics[new][primary], metrics[against][primary]
    weights = Clusters.of(certainty.clusters, queries).effective(~np.isnan(a - b))
    means = [mean_metrics({primary: values})[primary]["mean"] for values in (a, b)]
    found = conclusion(
        new,
        against,
        differences[primary],
        metric=primary,
        means=None if np.isnan(means).any() else (means[0], means[1]),
        effective=weights,
        confidence=certainty.confidence,
        margin=rules.margin,
    )
    least = found.minimum_detectable
    return {
        "conclusion": found.text,
        "minimum_detectable": None if np.isnan(least) else float(least),
        "weights": weights,
        **decide(differences, new=new, against=against, rules=rules, confidence=certainty.confidence),
    }


def _of_all(
    metrics: Mapping[str, Mapping[str, np.ndarray]], name: str, *, new: str, against: str, certainty: Certainty
) -> Difference:
    """Of new against `against`, corrected for all that `new` is compared with."""
    others = [against, *(other for other in metrics if other not in (new, against))]
    columns = np.stack([metrics[new][name] - metrics[other][name] for other in others], axis=1)
    return difference_columns(columns, **certainty.of_differences(), together=True)[0]


def beyond_table(
    lists: Mapping[str, np.ndarray],
    *,
    items: int,
    k: int,
    attributes: Mapping[str, Sequence[str]],
    certainty: Certainty,
    popularity: np.ndarray | None = None,
) -> dict[str, Any]:
    """The report's "beyond" part: coverage, evenness and variety of each ranker's first k.

    Args:
      lists: {ranker: int [query, k]}, item rows, -1 where a list is shorter.
      attributes: to measure variety by.
      popularity: [item] interactions before the queries, to measure novelty by.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, shown in lists.items():
        found = beyond_accuracy(shown, items=items, k=k, attributes=attributes, popularity=popularity)
        rows[name] = {}
        for metric, value in found.items():
            if isinstance(value, np.ndarray):
                interval = mean_interval(value, **certainty.of_means())
                rows[name][metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            else:
                rows[name][metric] = value
    names = list(next(iter(rows.values())))
    notes = {key: note for key, note in BEYOND_NOTES.items() if any(name.startswith(key) for name in names)}
    return {"metrics": names, "rows": rows, "notes": notes}
